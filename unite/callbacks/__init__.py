"""Lightning callbacks, one per file; a yaml names those below."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.callbacks.averaging import WeightAveraging as WeightAveraging
    from unite.callbacks.bursts import BurstGuard as BurstGuard
    from unite.callbacks.generation_metrics import GenerationMetrics as GenerationMetrics
    from unite.callbacks.last_checkpoint import LastCheckpoint as LastCheckpoint
    from unite.callbacks.non_finite import NonFiniteGuard as NonFiniteGuard
    from unite.callbacks.stages.decoder import DecoderStage as DecoderStage
    from unite.callbacks.stages.few_steps import FewStepStudent as FewStepStudent
    from unite.callbacks.tuning.callback import RewardTuning as RewardTuning
    from unite.callbacks.two_stage import TwoStageTraining as TwoStageTraining

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "averaging": ["WeightAveraging"],
        "bursts": ["BurstGuard"],
        "generation_metrics": ["GenerationMetrics"],
        "stages.few_steps": ["FewStepStudent"],
        "stages.decoder": ["DecoderStage"],
        "tuning.callback": ["RewardTuning"],
        "two_stage": ["TwoStageTraining"],
        "last_checkpoint": ["LastCheckpoint"],
        "non_finite": ["NonFiniteGuard"],
    },
)

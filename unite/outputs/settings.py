"""What determines the samples of ``unite sample``."""

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unite.engine.selection import Only, Selection
from unite.flow import SamplingOptions
from unite.modalities.template import Wanted


@dataclass(frozen=True, kw_only=True)
class SampleSettings(SamplingOptions):
    """What determines the samples of a model; see :meth:`unite.UniteModule.generate`."""

    modality: str
    num_samples: int
    labels: list[int] | None
    batch_size: int
    seed: int
    only: Only | None = None
    max_drawn: int | None = None
    sizes: list[int] | None = None
    targets: dict[str, float] | None = None
    composition: str | None = None
    prompt: list[str] | None = None
    fix: str | None = None
    fix_atoms: list[int] | None = None

    @property
    def wanted(self) -> Wanted:
        """What samples are asked for."""
        return Wanted(**{field.name: getattr(self, field.name) for field in fields(Wanted)})

    def conditions(self) -> dict[str, Any]:
        """What was asked for beside classes, as ``unite sample`` writes it; empty for nothing."""
        asked = {name: value for name, value in vars(self.wanted).items() if value and name != "labels"}
        return {**asked, "guidance_scale": self.guidance_scale} if asked else {}

    def decisive(self) -> dict[str, Any]:
        """What determines the samples: not the size of batches, so that what ran out of memory can be continued."""
        values = {name: value for name, value in asdict(self).items() if name != "batch_size"}
        if self.fix is not None and Path(self.fix).is_file():
            values["fix"] = hashlib.sha256(Path(self.fix).read_bytes()).hexdigest()[:16]
        return values

    def selection(self) -> Selection:
        """Which samples are kept; nothing is drawn yet."""
        return Selection(self.num_samples, self.only, self.max_drawn)

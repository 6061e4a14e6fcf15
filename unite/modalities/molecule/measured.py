"""How molecules are measured: the part of the adapter that names metrics."""

from typing import Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchmetrics import Metric

from unite.modalities.molecule.metrics.generation import MoleculeGenerationMetrics
from unite.modalities.molecule.metrics.graphs import GraphGenerationMetrics, GraphReconstructionMetrics, TwoViews
from unite.modalities.molecule.metrics.reconstruction import MoleculeReconstructionMetrics
from unite.modalities.molecule.preparation import MoleculePrediction, PreparedMolecules
from unite.modalities.molecule.rewards import RewardedMolecules


class MeasuredMolecules(RewardedMolecules):
    """Metrics of generated and reconstructed molecules, as the view has them."""

    bonds: bool
    """Whether molecules have bonds and formal charges."""

    hydrogens: Literal["explicit", "counted"]
    """Whether hydrogens are atoms, or counted on the heavy ones."""

    def generation_metric(self, datamodule: LightningDataModule | None) -> Metric:
        """Validity, uniqueness and the like; novelty if the datamodule knows its training molecules.

        Judged from positions, from predicted bonds (names end in ``_bonds``), or both, as the view has it.
        """
        if not self.bonds:
            return self._shape_metric(datamodule)
        keys = getattr(datamodule, "training_graph_keys", None)
        metric = GraphGenerationMetrics(None if keys is None else keys())
        return TwoViews(self._shape_metric(datamodule), metric) if self.positions else metric

    def _shape_metric(self, datamodule: LightningDataModule | None) -> Metric:
        keys = getattr(datamodule, "training_keys", None)
        return MoleculeGenerationMetrics(None if keys is None else keys(self.hydrogens))

    def reconstruction_metric(self, datamodule: LightningDataModule | None = None) -> Metric:
        """Match rates, RMSD and type accuracy of shapes; accuracies of bonds and exact graphs; or both."""
        if not self.bonds:
            return MoleculeReconstructionMetrics()
        if not self.positions:
            return GraphReconstructionMetrics()
        return TwoViews(MoleculeReconstructionMetrics(), GraphReconstructionMetrics(), num_first=5)

    def metric_arguments(self, prediction: MoleculePrediction, prepared: PreparedMolecules) -> tuple[Tensor, ...]:
        """What the metric of the view takes: predicted and true values of shape, then of graph."""
        mask = prepared.mask
        arguments: tuple[Tensor, ...] = ()
        if self.positions:
            arguments += (prediction.types, prediction.positions, prepared.types, prepared.positions, mask)
        if prediction.graph is not None and prepared.graph is not None:
            found, true = prediction.graph, prepared.graph
            arguments += (prediction.types, found.bonds, found.charges, prepared.types, true.bonds, true.charges, mask)
        return arguments

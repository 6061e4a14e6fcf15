"""UNITE (arXiv:2603.22283) for PyTorch Lightning: one Generative Encoder tokenizes and generates.

The names below are imported on first use, so that ``import unite`` and ``unite --help`` take no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unite.files.version import __version__ as __version__

if TYPE_CHECKING:
    from unite.configurable import Configurable
    from unite.engine.optimizer import OptimizerSettings
    from unite.errors import UserError
    from unite.flow import TimeDistribution
    from unite.modalities.base import FileScores, ModalityAdapter, Template
    from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
    from unite.modalities.molecule.graph import data_from_mol, mol_from_data
    from unite.modalities.molecule.metrics.generation import score_molecules
    from unite.modalities.molecule.perception.molecule import Molecule
    from unite.module import UniteModule
    from unite.nn.generative_encoder import GenerativeEncoder, Tokens
    from unite.trainer import UniteTrainer

__all__ = [
    "Configurable",
    "FileScores",
    "GenerativeEncoder",
    "ModalityAdapter",
    "Molecule",
    "OptimizerSettings",
    "QM9DataModule",
    "Template",
    "TimeDistribution",
    "Tokens",
    "UniteModule",
    "UniteTrainer",
    "UserError",
    "__version__",
    "data_from_mol",
    "mol_from_data",
    "score_molecules",
]

_HOMES = {
    "Configurable": "unite.configurable",
    "GenerativeEncoder": "unite.nn.generative_encoder",
    "FileScores": "unite.modalities.base",
    "ModalityAdapter": "unite.modalities.base",
    "Molecule": "unite.modalities.molecule.perception.molecule",
    "OptimizerSettings": "unite.engine.optimizer",
    "QM9DataModule": "unite.modalities.molecule.data.qm9.datamodule",
    "Template": "unite.modalities.base",
    "TimeDistribution": "unite.flow",
    "Tokens": "unite.nn.generative_encoder",
    "UniteModule": "unite.module",
    "UniteTrainer": "unite.trainer",
    "UserError": "unite.errors",
    "data_from_mol": "unite.modalities.molecule.graph",
    "mol_from_data": "unite.modalities.molecule.graph",
    "score_molecules": "unite.modalities.molecule.metrics.generation",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unite' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The commands: one file each, and the table of them. Imports nothing heavy."""

from collections.abc import Mapping
from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        module: What to import.
        summary: The line in ``unite --help``.
        functions: Path of the function below ``module`` for each word that may follow the command, ``""`` if none does.
            Commands without one run a model: their module has ``run``, which takes the arguments.
    """

    module: str
    summary: str
    functions: Mapping[str, str] = {}

    def place(self, word: str) -> tuple[str, str]:
        """Module and name of the function for a word."""
        module, _, name = f"{self.module}.{self.functions[word]}".rpartition(".")
        return module, name


COMMANDS = {
    "fit": Command("unite.commands.model.lightning_cli", "train: unite fit qm9_small"),
    "tune": Command("unite.commands.model.tune", "tune a model by a reward: unite tune RUN", {"": "tune"}),
    "validate": Command("unite.commands.model.lightning_cli", "metrics of a checkpoint on the validation split"),
    "test": Command("unite.commands.model.lightning_cli", "metrics of a checkpoint on the test split"),
    "sample": Command("unite.commands.model.lightning_cli", "generate: unite sample runs/qm9_small --num_samples 100"),
    "reconstruct": Command("unite.commands.model.lightning_cli", "inputs beside their reconstructions, with metrics"),
    "predict": Command("unite.commands.model.lightning_cli", "latents of a data split as safetensors"),
    "score": Command(
        "unite.commands.score",
        "metrics of files: unite score molecules FILE.sdf",
        {
            "molecules": "molecules.score_molecules",
            "images": "images.score_images",
            "crystals": "crystals.score_crystals",
            "files": "files.score_files",
        },
    ),
    "ablate": Command(
        "unite.commands.ablate", "train variants of a config: unite ablate --overlays ...", {"": "ablate"}
    ),
    "compare": Command("unite.commands.compare", "runs side by side: unite compare RUN RUN ...", {"": "compare"}),
    "report": Command(
        "unite.commands.report",
        "an HTML page of runs or molecules: unite report RUN",
        {"": "report"},
    ),
    "align": Command(
        "unite.commands.align",
        "compare the two passes of a model, by layer: unite align RUN",
        {"": "align"},
    ),
    "latents": Command(
        "unite.commands.latents", "probes, neighbours, interpolations: unite latents RUN", {"": "latents"}
    ),
    "prepare": Command(
        "unite.commands.prepare",
        "caches, shards, statistics: unite prepare images SRC OUT",
        {
            "qm9": "prepare_qm9",
            "molecules": "prepare_molecules",
            "images": "prepare_images",
            "reference": "prepare_reference",
            "crystals": "prepare_crystals",
            "data": "prepare_data",
        },
    ),
    "import-official": Command(
        "unite.commands.import_official",
        "convert the authors' file: unite import-official FILE OUT",
        {"": "import_official"},
    ),
    "info": Command("unite.commands.info", "what a model is, and how to use it: unite info RUN", {"": "info"}),
    "doctor": Command(
        "unite.commands.doctor.command", "what is installed, what is missing, what is slow here", {"": "doctor"}
    ),
    "completion": Command(
        "unite.commands.line.completion",
        'completion for the shell: eval "$(unite completion bash)"',
        {"": "completion"},
    ),
    "export": Command("unite.commands.export", "a folder to share: unite export runs/qm9_small DIR", {"": "export"}),
}

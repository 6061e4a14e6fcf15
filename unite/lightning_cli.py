"""The commands that run a model: LightningCLI with run folders, and mistakes told in one line."""

import argparse
import pickle
import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from unite.errors import UserError
from unite.module import UniteModule
from unite.trainer import LAST_CHECKPOINT, UniteTrainer

CONFIG_FILE = "config.yaml"
NEEDS_DATA = ("fit", "validate", "test")


class SaveRunConfig(SaveConfigCallback):
    """Writes config.yaml, in fit only, without what belongs to one call rather than to the run."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save before the run begins. (As a validate or sample would add keys that fit then refuses.)"""
        if stage != "fit":
            return
        for key in ("config", "ckpt_path", "weights_only"):
            self.config.pop(key, None)
        super().setup(trainer, pl_module, stage)


class UniteCLI(LightningCLI):
    """LightningCLI whose ``--ckpt_path`` brings the configuration of its run along.

    Precedence: defaults, then the run's config.yaml (or, if there is none, the settings of the model within the
    checkpoint), then the command line. A ``--config`` replaces the run's.
    """

    def __init__(self, args: list[str]) -> None:
        self.ckpt_path, self.config_files, self.run_folder = None, [], None
        super().__init__(
            UniteModule,
            trainer_class=UniteTrainer,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )

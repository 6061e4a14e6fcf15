"""Captions read by a text encoder from elsewhere, whose embeddings are kept in a file. Letters as in ``text.py``."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unite.configurable import Configurable, as_config
from unite.errors import UserError, require
from unite.files import require_writable
from unite.files.checked import load_checked, save_checked
from unite.files.checked_json import DamagedFileError
from unite.files.locks import one_after_another
from unite.nn.text import TextEncoder

_HINT: Final = "name a writable folder with cache of the text encoder"


class CaptionEmbedder(Configurable, ABC):
    """A text encoder of your own, which is not trained: derive a class from this and name it by ``class_path``.

    Its arguments are settings (the name of a model, a path), and what it needs is loaded when it is first used.
    """

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels F of an embedding."""

    @abstractmethod
    def embed(self, captions: Sequence[str]) -> Sequence[Tensor]:
        """Embeddings of captions: for each the tokens (L, F), or one vector (F,)."""


class EmbeddedTextEncoder(TextEncoder):
    """Tokens from the embeddings of an encoder that the user brings, projected by a trained layer.

    The captions of the training data are embedded once, before training, and kept in a file, which changes with the
    settings of the embedder. Captions that are not in it, such as prompts, are embedded as they come.

    Args:
        embedder: The encoder.
        cache: Folder of the file.
        batch_size: Captions that are embedded at a time.
        max_tokens: Most tokens of a caption; the rest is left out.

    Raises:
        UserError: A number is below 1.
    """

    def __init__(
        self, embedder: CaptionEmbedder, cache: str = "data/captions", batch_size: int = 64, max_tokens: int = 64
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "max_tokens": max_tokens}.items():
            require(value >= 1, f"text.{name} is {value}; it must be at least 1")
        self.embedder = embedder
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        settings = json.dumps([as_config(embedder), max_tokens], sort_keys=True)
        name = f"{type(embedder).__name__}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.safetensors"
        self.path = Path(cache) / name
        self._known: dict[str, Tensor] = {}

    def build(self, width: int) -> None:
        """Make the layers; see the base class."""
        super().build(width)
        self.projection = nn.Sequential(nn.Linear(self.embedder.channels, width), nn.LayerNorm(width))

    def learn_from(self, captions: Iterable[str]) -> None:
        """Embed the captions of the training data, as far as the file does not have them, and write it.

        Raises:
            UserError: The embedder gives something else than embeddings, or the folder cannot be written to.
        """
        wanted = list(dict.fromkeys(captions))
        require_writable(self.path.parent, _HINT, "embeddings of captions")
        with one_after_another(self.path):  # of several processes, the first embeds for all
            self._known.update(self._load())
            if missing := [caption for caption in wanted if caption not in self._known]:
                self._embed(missing, show_progress=True)
                self._save()

    def read(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of captions; see the base class."""
        self._embed([caption for caption in captions if caption and caption not in self._known])
        nothing = torch.zeros(0, self.embedder.channels, dtype=torch.float16)
        rows = [self._known[caption] if caption else nothing for caption in captions]
        device = self.pooling.weight.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        padded = torch.zeros(len(rows), max(1, *map(len, rows)), nothing.shape[1])
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        values: Tensor = self.projection(padded.to(device))
        return values, torch.arange(values.shape[1], device=device) < lengths[:, None]

    @torch.no_grad()
    def _embed(self, captions: Sequence[str], show_progress: bool = False) -> None:
        with tqdm(total=len(captions), desc="embedding captions", unit="text", disable=not show_progress) as bar:
            for start in range(0, len(captions), self.batch_size):
                part = captions[start : start + self.batch_size]
                found = self.embedder.embed(part)
                require(len(found) == len(part), f"{self._name} gave {len(found)} embeddings of {len(part)} captions")
                self._known.update({caption: self._checked(row) for caption, row in zip(part, found, strict=True)})
                bar.update(len(part))

    @property
    def _name(self) -> str:
        return type(self.embedder).__name__

    def _checked(self, found: Tensor) -> Tensor:
        tokens: Tensor = torch.atleast_2d(torch.as_tensor(found)).detach().cpu().float()
        shape = tuple(tokens.shape)
        if tokens.dim() != 2 or shape[1] != self.embedder.channels or shape[0] < 1:
            raise UserError(f"{self._name} gave {shape} for a caption; it must be (tokens, {self.embedder.channels})")
        require(bool(tokens.isfinite().all()), f"{self._name} gave numbers that are not finite for a caption")
        return tokens[: self.max_tokens].half()

    def _save(self) -> None:
        texts = [caption.encode() for caption in self._known]
        tensors = {
            "values": torch.cat(list(self._known.values())),
            "lengths": torch.tensor([len(row) for row in self._known.values()]),
            "text": torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8),
            "text_lengths": torch.tensor([len(text) for text in texts]),
        }
        save_checked(tensors, self.path)

    def _load(self) -> dict[str, Tensor]:
        """What the file has; nothing if it is missing or damaged."""
        if not self.path.is_file():
            return {}
        try:
            tensors, _ = load_checked(self.path)
        except DamagedFileError:
            return {}
        rows = tensors["values"].split(tensors["lengths"].tolist())
        texts = tensors["text"].split(tensors["text_lengths"].tolist())
        return {text.numpy().tobytes().decode(): row for text, row in zip(texts, rows, strict=True)}

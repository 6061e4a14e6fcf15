"""Captions as tokens that the Generative Encoder reads in context. Letters: B captions, L tokens, D width, W words."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unite.configurable import Configurable
from unite.errors import UserError, require
from unite.nn.blocks import sinusoidal_embedding
from unite.nn.decoder import LatentDecoder
from unite.nn.generative_encoder import Tokens

MAX_WORD_BYTES = 16
"""Longer words are cut into pieces, which keeps the tokens of languages without blanks small, too."""


class TextEncoder(Configurable, nn.Module, ABC):
    """Makes a sequence of tokens of each caption, and a vector of them that joins the condition vector.

    The null caption is that of no tokens: a sample without a caption passes the Generative Encoder as it would in a
    model without text. Made in two steps, like an adapter: the constructor stores settings, :meth:`build` makes layers.
    """

    adamw_parameters: ClassVar[tuple[str, ...]] = ("byte_embedding",)
    """Parts of parameter names that Muon leaves to AdamW."""

    def build(self, width: int) -> None:
        """Make the layers. Subclasses extend this, and start with ``super().build(width)``.

        Args:
            width: Channels D of the Generative Encoder.

        Raises:
            UserError: This text encoder is part of an adapter already.
        """
        if hasattr(self, "pooling"):
            raise UserError(f"this {type(self).__name__} is part of an adapter already; make another one")
        # Without a bias, so that no tokens give the zero vector.
        self.pooling = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.pooling.weight, std=0.02)

    @abstractmethod
    def read(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of captions: values (B, L, D), and a mask (B, L) that is True where a token is real; L is at least 1.

        Args:
            captions: Captions, none twice; an empty one has no tokens.
        """

    def learn_from(self, captions: Iterable[str]) -> None:
        """Called once before training with the captions of the training data."""

    def require_readable(self, caption: str) -> None:
        """Refuse, with a :class:`UserError`, a caption of which a part would be left out."""

    def forward(self, captions: Sequence[str | None]) -> Tokens:
        """Tokens of the captions, values (B, L, D); none is real where there is no caption.

        Args:
            captions: Caption of each sample; None, and an empty one, for no caption.
        """
        texts = [caption or "" for caption in captions]
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        values, mask = self.read(list(place))
        rows = torch.tensor([place[text] for text in texts], device=values.device)
        # Their order is in the values; in the Generative Encoder, condition tokens have no place.
        return Tokens(values[rows], torch.zeros(values.shape[1], device=values.device), mask[rows])

    def pooled(self, tokens: Tokens) -> Tensor:
        """What of the tokens is added to the condition vector, shape (B, D): zero where none is real."""
        assert tokens.mask is not None
        real = tokens.mask[..., None]
        mean = (tokens.values * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        vector: Tensor = self.pooling(mean)
        return vector


class ByteTextEncoder(TextEncoder):
    """A small transformer over words, which are read from their bytes; trained along, and nothing is downloaded.

    A token is a word (letters and digits) or a sign. Its vector is the largest output of a convolution over its bytes,
    as in Kim et al. (arXiv:1508.06615), so that words that were never seen have one, too. Upper and lower case are
    alike.

    Args:
        depth: Blocks of the transformer.
        num_heads: Attention heads.
        max_tokens: Most tokens of a caption. What is longer is cut in training, and refused of a prompt.

    Raises:
        UserError: A number is below 1.
    """

    places: Tensor

    def __init__(self, depth: int = 2, num_heads: int = 4, max_tokens: int = 64) -> None:
        super().__init__()
        for name, value in {"depth": depth, "num_heads": num_heads, "max_tokens": max_tokens}.items():
            require(value >= 1, f"text.{name} is {value}; it must be at least 1")
        self.depth = depth
        self.num_heads = num_heads
        self.max_tokens = max_tokens

    def build(self, width: int) -> None:
        """Make the layers; see the base class."""
        super().build(width)
        self.byte_embedding = nn.Embedding(256, width, padding_idx=0)
        self.byte_convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)
        # The class token gives captions without a word something to attend to.
        self.transformer = LatentDecoder(width, width, self.depth, self.num_heads, class_token=True)
        self.register_buffer("places", sinusoidal_embedding(torch.arange(self.max_tokens), width), persistent=False)

    def require_readable(self, caption: str) -> None:
        """Refuse a caption of more than ``max_tokens`` words and signs.

        Raises:
            UserError: It is longer.
        """
        if (num := len(words_of(caption))) > self.max_tokens:
            raise UserError(f"a prompt of {num} words, but this model reads {self.max_tokens} at most: shorten it")

    def read(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of captions; see the base class."""
        words = [words_of(caption)[: self.max_tokens] for caption in captions]
        number = {word: place for place, word in enumerate(dict.fromkeys(word for row in words for word in row), 1)}
        vectors = F.pad(self._word_vectors(list(number)), (0, 0, 1, 0))  # (1 + W, D), the first for no word
        rows = torch.zeros(len(captions), max(1, *map(len, words)), dtype=torch.long)
        for row, found in zip(rows, words, strict=True):
            row[: len(found)] = torch.tensor([number[word] for word in found], dtype=torch.long)
        rows = rows.to(vectors.device)
        mask = rows > 0
        values: Tensor = self.transformer(vectors[rows], self.places[: rows.shape[1]], mask)
        return values, mask

    def _word_vectors(self, words: Sequence[bytes]) -> Tensor:
        """Vectors of words, shape (W, D)."""
        if not words:
            return self.byte_embedding.weight[:0]
        table = torch.zeros(len(words), max(map(len, words)), dtype=torch.long)
        for row, word in zip(table, words, strict=True):
            row[: len(word)] = torch.frombuffer(bytearray(word), dtype=torch.uint8)
        table = table.to(self.places.device)
        features = self.byte_convolution(self.byte_embedding(table).mT)  # (W, D, longest word)
        hidden = features.masked_fill((table == 0)[:, None], -torch.inf)
        return F.gelu(hidden.amax(dim=2))


def words_of(caption: str) -> list[bytes]:
    """Words and signs of a caption in lower case, as UTF-8, long ones in pieces; no zero byte is among them."""
    text = caption.casefold().replace("\0", "")
    found = [word.encode("utf-8", "replace") for word in re.findall(r"\w+|[^\w\s]", text)]
    return [word[start : start + MAX_WORD_BYTES] for word in found for start in range(0, len(word), MAX_WORD_BYTES)]

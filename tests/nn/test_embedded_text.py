"""Captions read by a text encoder from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.cases import tiny_image_adapter
from unite import UniteModule, UserError
from unite.configurable import as_config
from unite.nn import EmbeddedTextEncoder, GenerativeEncoder
from unite.nn.embedded_text import CaptionEmbedder


class LetterEmbedder(CaptionEmbedder):
    """A token of three numbers for each letter."""

    def __init__(self, scale: float = 1.0, fault: str = "") -> None:
        self.scale = scale
        self.fault = fault
        self.asked: list[str] = []

    @property
    def channels(self) -> int:
        return 3

    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        self.asked += captions
        if self.fault:
            return {"few": [], "wide": [torch.zeros(2, 4)] * len(captions), "nan": [torch.full((1, 3), torch.nan)]}[
                self.fault
            ]
        return [self.scale * torch.tensor([[ord(letter), 1.0, 2.0] for letter in text]) for text in captions]


def made(folder: Path, embedder: CaptionEmbedder | None = None) -> EmbeddedTextEncoder:
    torch.manual_seed(0)
    text = EmbeddedTextEncoder(embedder or LetterEmbedder(), cache=str(folder), batch_size=2, max_tokens=4)
    text.build(8)
    return text


def asked_of(text: EmbeddedTextEncoder) -> list[str]:
    assert isinstance(text.embedder, LetterEmbedder)
    return text.embedder.asked


def test_training_captions_are_embedded_once_and_kept(tmp_path: Path) -> None:
    text = made(tmp_path)
    text.learn_from(iter(["ab", "c", "ab", "defghi"]))
    assert asked_of(text) == ["ab", "c", "defghi"]
    again = made(tmp_path)
    again.learn_from(["c", "ab", "defghi", "é"])
    assert asked_of(again) == ["é"]
    tokens, expected = again(["ab", None, "defghi"]), text(["ab", None, "defghi"])
    assert torch.equal(tokens.values, expected.values)
    assert tokens.mask is not None
    assert tokens.mask.sum(dim=1).tolist() == [2, 0, 4]
    assert asked_of(again) == ["é"]
    assert asked_of(made(tmp_path, LetterEmbedder(scale=2.0))) == []  # another file
    assert len(list(tmp_path.glob("LetterEmbedder-*.safetensors"))) == 1
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    damaged = made(tmp_path)
    damaged.learn_from(["c"])
    assert asked_of(damaged) == ["c"]


def test_prompts_are_embedded_as_they_come_and_padding_changes_nothing(tmp_path: Path) -> None:
    text = made(tmp_path)
    alone, together = text(["ab"]), text(["ab", "abcd"])
    torch.testing.assert_close(alone.values[0], together.values[0, :2])
    assert asked_of(text) == ["ab", "abcd"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("few", "LetterEmbedder gave 0 embeddings of 1 captions"),
        ("wide", r"LetterEmbedder gave \(2, 4\) for a caption; it must be \(tokens, 3\)"),
        ("nan", "LetterEmbedder gave numbers that are not finite for a caption"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, LetterEmbedder(fault=fault))(["a"])


def test_a_model_generates_by_it_and_its_settings_travel(tmp_path: Path) -> None:
    text = EmbeddedTextEncoder(LetterEmbedder(scale=0.1), cache=str(tmp_path))
    encoder = GenerativeEncoder("XS", 4, depth=2, width=32, num_heads=2)
    module = UniteModule(encoder, {"image": tiny_image_adapter(channels=1, text=text)})
    assert len(module.generate("image", 2, prompt="abc", num_steps=1, seed=0)) == 2
    settings = module.hparams["adapters"]["image"]["init_args"]["text"]
    assert settings == as_config(text)
    assert settings["init_args"]["embedder"]["init_args"] == {"scale": 0.1}
    with pytest.raises(UserError, match=r"text\.batch_size is 0; it must be at least 1"):
        EmbeddedTextEncoder(LetterEmbedder(), batch_size=0)

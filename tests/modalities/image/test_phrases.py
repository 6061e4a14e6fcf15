"""Captions of digits."""

from pathlib import Path

import torch

from unite.modalities.image.adapter import ImageAdapter
from unite.modalities.image.digits import DigitsDataModule
from unite.modalities.image.phrases import NAMES, phrase, wordings


def test_a_fifth_of_the_wordings_is_held_out_but_none_of_their_words() -> None:
    read, held_out = set(wordings(False)), set(wordings(True))
    assert not read & held_out
    assert 0.15 < len(held_out) / len(read | held_out) < 0.25
    assert {word for wording in held_out for word in wording.split()} <= {
        word for wording in read for word in wording.split()
    }
    assert "{}" in read


def test_phrases_name_their_digit_and_no_other_in_words_and_signs() -> None:
    for held_out in (False, True):
        for digit, name in enumerate(NAMES):
            made = [phrase(digit, number, held_out) for number in range(50)]
            named = [{*NAMES, *"0123456789"} & set(text.split()) for text in made]
            assert {frozenset(names) for names in named} == {frozenset({name}), frozenset({str(digit)})}
            assert len(set(made)) > 30
    assert phrase(3, 7) == phrase(3, 7)


def test_captions_reach_the_adapter_with_their_images(tmp_path: Path) -> None:
    data = DigitsDataModule(str(tmp_path), batch_size=8, captions=True)
    samples = next(iter(data.train_dataloader()))["image"]
    for label, caption in zip(samples["labels"].tolist(), samples["captions"], strict=True):
        assert {str(label), NAMES[label]} & set(caption.split())
    adapter = ImageAdapter(8, 4, channels=1)
    assert adapter.template(adapter.prepare(samples)).captions is None  # it has no text encoder
    assert len(list(data.training_captions() or [])) == 1397
    plain = DigitsDataModule(str(tmp_path), batch_size=8)
    assert plain.training_captions() is None
    assert torch.equal(next(iter(plain.train_dataloader()))["image"]["images"], samples["images"])

"""The digits of scikit-learn: 1,797 images of 8x8 pixels, always there."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unite.errors import UserError, require, require_packages
from unite.modalities.image.data import SPLIT_SEED, ImageRowsDataModule, ImagesInMemory, Split
from unite.modalities.image.metrics.features import FeatureNetwork
from unite.modalities.image.phrases import phrase

#: Images of scikit-learn's digits in each split.
DIGITS_SPLIT: dict[Split, int] = {"train": 1397, "val": 200, "test": 200}


class DigitsDataModule(ImageRowsDataModule):
    """1,797 handwritten digits of 8x8 gray pixels in ten classes, which scikit-learn carries.

    The split is 1,397 / 200 / 200 images, the same on every machine and for every `seed`.

    Args:
        root: Folder for what is trained on the digits: the small network behind `fid_digits`.
        image_size: Pixels of a side, 8 or more.
        enlarge: How to get from 8 to `image_size` pixels: `resize` (bicubic) or `pad` (black border).
        batch_size: Images in a training batch of one process.
        eval_batch_size: Images in a batch of validation, test, and prediction; None for `batch_size`.
        seed: Of the order of training images; it does not change the split.
        num_train: Use the first n training images only; None for all.
        num_val: Use the first n validation images only; None for all.
        num_test: Use the first n test images only; None for all.
        predict_split: Split that `predict` runs over.
        captions: Whether each image has a caption that names its digit in other words:
            :func:`~unite.modalities.image.phrases.phrase`.
    """

    def __init__(
        self,
        root: str = "data/digits",
        image_size: int = 8,
        enlarge: Literal["resize", "pad"] = "resize",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        seed: int = 0,
        num_train: int | None = None,
        num_val: int | None = None,
        num_test: int | None = None,
        predict_split: Split = "test",
        captions: bool = False,
    ) -> None:
        super().__init__(
            image_size=image_size,
            channels=1,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            flip=False,  # a mirrored digit is none
            seed=seed,
            limits={"train": num_train, "val": num_val, "test": num_test},
            predict_split=predict_split,
            reference=None,
            num_workers=0,
        )
        require(
            image_size >= 8, f"data.image_size is {image_size}; the digits have 8x8 pixels and are not made smaller"
        )
        if enlarge not in ("resize", "pad"):
            raise UserError(f"data.enlarge is {enlarge!r}; it must be resize or pad")
        self.root = Path(root)
        self.enlarge = enlarge
        self.captions = captions

    @property
    def class_names(self) -> list[str]:
        """The ten digits."""
        return [str(digit) for digit in range(10)]

    def load(self, split: Split) -> ImagesInMemory:
        """The images of a split.

        Raises:
            UserError: scikit-learn is not installed.
        """
        require_packages("DigitsDataModule", "digits", "sklearn")
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)  # 17 levels of gray
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(SPLIT_SEED))
        parts = dict(zip(DIGITS_SPLIT, order.split(list(DIGITS_SPLIT.values())), strict=True))
        chosen = torch.stack([self._enlarged(image) for image in pixels[parts[split]]])
        labels = torch.from_numpy(digits.target).long()[parts[split]]
        captions = None
        if self.captions:
            captions = [phrase(label, row) for label, row in zip(labels.tolist(), parts[split].tolist(), strict=True)]
        return ImagesInMemory(chosen, labels, captions)

    def _enlarged(self, pixels: Tensor) -> Tensor:
        """Pixels (8, 8) as (1, image_size, image_size)."""
        size, border = self.image_size, (self.image_size - 8) // 2
        if self.enlarge == "pad":
            canvas = pixels.new_zeros(1, size, size)
            canvas[0, border : border + 8, border : border + 8] = pixels
            return canvas
        image = Image.fromarray(pixels.numpy()).resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image))[None]

    def feature_network(self) -> FeatureNetwork:
        """The network behind `fid_digits`: trained on the training digits in seconds, once, and kept in `root`."""
        from unite.modalities.image.metrics.digit_features import load_or_train  # only metrics need it

        train = self.images("train")
        assert isinstance(train, ImagesInMemory)
        return load_or_train(self.root, train.all_pixels, train.labels)

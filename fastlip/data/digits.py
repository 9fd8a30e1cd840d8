"""The handwritten digits that ship with scikit-learn: 1797 real images of 8x8 pixels with values 0 to 16."""

from __future__ import annotations

import torch

from fastlip._extras import needed_for
from fastlip.data.images import Data, TensorImages

_TEST_SHARE = 0.2
_SPLIT_SEED = 0


def digits() -> Data:
    """The digits (E. Alpaydin, C. Kaynak, UCI 1998) in a stratified 80/20 split with a fixed seed."""
    with needed_for("the digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images.reshape(-1, 1, 8, 8).astype("uint8"),
        labels.astype("int64"),
        test_size=_TEST_SHARE,
        stratify=labels,
        random_state=_SPLIT_SEED,
    )
    train_images, test_images, train_labels, test_labels = (torch.from_numpy(part) for part in split)
    return Data(
        name="digits",
        train=TensorImages(train_images, train_labels),
        test=TensorImages(test_images, test_labels),
        classes=tuple("0123456789"),
        shape=(1, 8, 8),
        divisor=16.0,
        mean=(0.3053,),
    )

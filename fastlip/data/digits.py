"""The handwritten digits that come with scikit-learn: 1797 real images of 8x8 pixels with values 0 to 16."""

from __future__ import annotations

import torch

from fastlip._extras import needed_for
from fastlip.data.images import Data, TensorImages

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


def digits() -> Data:
    """Returns the handwritten digits in a stratified 80/20 split, which is always the same.

    Source: E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998.

    Returns:
        1437 training and 360 test images of shape (1, 8, 8) in 10 classes; stored values are 0 to 16.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.

    Examples:
        >>> data = fastlip.data.digits()
        >>> data.shape, data.divisor, len(data.classes)
        ((1, 8, 8), 16.0, 10)
    """
    with needed_for("the digits"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images.reshape(-1, 1, 8, 8).astype("uint8"),
        labels.astype("int64"),
        test_size=_TEST_FRACTION,
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

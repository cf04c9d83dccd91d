"""digits: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; nothing to download."""

from __future__ import annotations

from typing import Any

import torch

from nern.originals.input_format import InputFormat
from nern.randomness import generator
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors

TEST_IMAGES = 597
FORMAT = InputFormat((1, 8, 8), (0.306,), (0.376,))


@register_task("digits", input_shape=FORMAT.shape, num_classes=10, train_images=1200, mean=FORMAT.mean, std=FORMAT.std)
def digits(
    train_kwargs: dict[str, Any],
    test_kwargs: dict[str, Any],
    input_format: InputFormat = FORMAT,
    use_workers: bool = True,
    **kwargs: Any,
) -> tuple[ImageTensors, ImageTensors]:
    """scikit-learn's handwritten digits: 1,200 training and 597 test images; augmented by crops padded by one pixel."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)  # values are 0 to 16
    labels = torch.from_numpy(data.target).long()
    order = torch.randperm(len(labels), generator=generator(0, "digits split"))
    whole = ImageTensors(images, labels, input_format.mean, input_format.std, pad=1)
    return whole.subset(order[TEST_IMAGES:]), whole.subset(order[:TEST_IMAGES])

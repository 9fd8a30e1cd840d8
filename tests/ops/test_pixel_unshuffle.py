"""pixel_unshuffle: which images the kernels take. Its values: test_agreement.py."""

import pytest
import torch

from fastlip import testing


@pytest.mark.parametrize(
    ("shape", "memory_format", "expected"),
    [
        ((64, 4, 16, 16), torch.channels_last, "native"),
        ((63, 4, 16, 16), torch.channels_last, "reference"),
        ((64, 4, 16, 16), torch.contiguous_format, "reference"),
        ((256, 1, 16, 16), torch.channels_last, "reference"),
    ],
)
def test_auto_takes_the_kernels_where_they_win(shape, memory_format, expected):
    op = testing.op("pixel_unshuffle")
    if op.status("native"):
        pytest.skip(op.status("native"))
    assert op.choose("auto", torch.zeros(shape).to(memory_format=memory_format), 2) == expected

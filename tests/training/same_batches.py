"""What every kind of random augmentation must keep: the batches of one process, however they are made."""

import torch

from fastlip.data import Share


def check_shares(make, count):
    """The shares of all processes are the batches; ``make(**options)`` returns them."""
    parts = [make(share=Share(rank, count)) for rank in range(count)]
    for batch, pairs in enumerate(zip(make().epoch(1), *(part.epoch(1) for part in parts), strict=True)):
        (x, _), *shares = pairs
        rows = [part.counts(batch)[0] for part in parts]
        assert torch.equal(torch.cat([share[0][:n] for share, n in zip(shares, rows, strict=True)]), x)


def check_workers(make):
    """Worker processes hand out the same batches."""
    for pair, expected in zip(make(workers=1).epoch(2), make().epoch(2), strict=True):
        assert all(map(torch.equal, pair, expected))

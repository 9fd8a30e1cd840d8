"""The reports of a run: progress bar or lines, the log, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastlip._extras import needed_for
from fastlip._files import write_text

COLUMNS: tuple[str, ...] = (
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "train_cra",
    "test_accuracy",
    "test_cra",
    "images_per_second",
    "seconds",
)
Row = Mapping[str, float]


class Console:
    """Shows a progress bar over all images on a terminal, and prints one line per epoch; quiet: neither."""

    def __init__(self, epochs: int, total: int, done: int, quiet: bool = False):
        self.epochs = epochs
        self.quiet = quiet
        with needed_for("the progress of training"):
            from tqdm import tqdm
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=quiet or None,
            file=sys.stderr,
        )

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, images: int, loss: float, accuracy: float, cra: float) -> None:
        """Advances the bar, with the epoch's averages so far."""
        self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}, CRA {cra:.1%}", refresh=False)
        self.bar.update(images)

    def epoch(self, row: Row) -> None:
        """Prints an epoch's line."""
        if self.quiet:
            return
        self.bar.write(
            f"epoch {row['epoch']:>{len(str(self.epochs))}}/{self.epochs}  loss {row['train_loss']:.4f}"
            f"  train {row['train_accuracy']:6.1%} CRA {row['train_cra']:6.1%}"
            f"  test {row['test_accuracy']:6.1%} CRA {row['test_cra']:6.1%}"
            f"  {row['images_per_second']:.0f} images/s",
            file=sys.stderr,
        )


def write_csv(path: Path, history: Sequence[Row]) -> None:
    """Replaces the log by these rows. After a crash it never has more epochs than the checkpoint."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a log."""
    with path.open(newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


class Board:
    """Writes TensorBoard scalars into a run's folder; does nothing where TensorBoard is not installed or wanted."""

    def __init__(self, folder: Path, first_epoch: int, wanted: bool = True):
        self.writer = None
        if wanted and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def epoch(self, row: Row) -> None:
        """Adds an epoch's scalars."""
        if self.writer is not None:
            for name in COLUMNS[1:]:
                self.writer.add_scalar(name, row[name], int(row["epoch"]))

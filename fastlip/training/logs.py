"""The reports of a run: progress bar and table, the log, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastlip._extras import needed_for
from fastlip._files import write_text
from fastlip._progress import WIDTH
from fastlip.training.text import radius_name

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
# The bar takes what is left of the line: at least 20 columns, also for runs of many hours.
_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Console:
    """Shows a progress bar over all images on a terminal, and prints a table with a line for each epoch.

    Args:
        epochs: number of epochs of the run.
        total: number of images in them.
        done: how many of these images were trained on before.
        eps: the radius of CRA.
        bar: whether to show the bar.
        lines: whether to print the table.
    """

    def __init__(self, epochs: int, total: int, done: int, eps: float, *, bar: bool = True, lines: bool = True):
        self.epochs = epochs
        self.lines = lines
        self.table = Table(epochs, eps)
        with needed_for("the progress of training"):
            from tqdm import tqdm
        self.bar = tqdm(
            total=total,
            initial=done,
            bar_format=_BAR,
            ncols=WIDTH,
            leave=False,
            disable=None if bar else True,
            file=sys.stderr,
        )

    def __enter__(self) -> Console:
        for line in self.table.head if self.lines else ():
            self._print(line)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self, images: int, epoch: int, loss: float) -> None:
        """Advances the bar, with the epoch and its mean loss so far."""
        self.bar.set_postfix_str(f"epoch {epoch}/{self.epochs}, loss {loss:.3g}", refresh=False)
        self.bar.update(images)

    def epoch(self, row: Row) -> None:
        """Prints an epoch's line."""
        if self.lines:
            self._print(self.table.line(row))

    def _print(self, line: str) -> None:
        self.bar.write(line, file=sys.stderr)


class Table:
    """The table of epochs that a run prints; its lines have at most 72 columns up to 999 epochs.

    Args:
        epochs: number of epochs of the run.
        eps: the radius of CRA.
    """

    def __init__(self, epochs: int, eps: float):
        self.epochs = epochs
        self._digits = len(str(epochs))
        self._first = max(len("epoch"), 2 * self._digits + 1)
        self._cra = f"CRA({radius_name(eps)})"

    @property
    def head(self) -> tuple[str, str]:
        """Its head: two lines."""
        pair = len("accuracy") + 2 + len(self._cra)
        groups = f"{'':{self._first + 8}}  {'training images':>{pair}}  {'test images':>{pair}}"
        names = f"{'epoch':>{self._first}}  {'loss':>6}  accuracy  {self._cra}  accuracy  {self._cra}  images/s"
        return groups, names

    def line(self, row: Row) -> str:
        """The line of an epoch."""
        epoch = f"{row['epoch']:>{self._digits}.0f}/{self.epochs}"
        shares = (
            f"{row[f'{split}_accuracy']:>8.1%}  {row[f'{split}_cra']:>{len(self._cra)}.1%}"
            for split in ("train", "test")
        )
        loss = f"{row['train_loss']:>#6.3g}"
        return "  ".join((f"{epoch:>{self._first}}", loss, *shares, f"{row['images_per_second']:>8.0f}"))


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

"""The progress of a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """The progress of a run: completed epochs, batches and sums of the present epoch, and one row per epoch."""

    epoch: int = 0
    batch: int = 0
    images: int = 0
    loss: float = 0.0
    correct: float = 0.0
    certified: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def add(self, images: int, loss: float, correct: float, certified: float) -> None:
        """Counts one batch."""
        self.batch += 1
        self.images += images
        self.loss += loss * images
        self.correct += correct
        self.certified += certified

    def averages(self) -> tuple[float, float, float]:
        """Loss, accuracy and CRA of the epoch so far."""
        n = max(self.images, 1)
        return self.loss / n, self.correct / n, self.certified / n

    def close_epoch(self, row: dict[str, float]) -> None:
        """Appends the epoch's row and starts the next epoch."""
        self.epoch += 1
        self.batch = self.images = 0
        self.loss = self.correct = self.certified = self.seconds = 0.0
        self.history.append(row)

"""The table of other packages' layers next to fastlip's, from the results of ``fastlip bench``."""

from __future__ import annotations

from tables import measured, read, table

from fastlip.models import TITLES

_COLUMNS = ("train", "evaluate", "saved")


def peers() -> str:
    """Ratios to the plain network of a method's fused layers and of its counterparts elsewhere."""
    file, found = read("peers_XS_cpu_*.json")
    options = found["options"]
    command = (
        "fastlip bench --rounds 5 --method aoc --contestant fused --contestant orthogonium --contestant deel-torchlip"
    )
    about = measured(file, command, f"{options['machine']}, {options['threads']} threads", options["torch"])
    sizes = (
        f"Batch {options['batch_size']}, images {options['image_size']}×{options['image_size']}; {options['peers']}."
    )
    rows = [
        (
            TITLES[row["method"]],
            "fastlip" if row["contestant"] == "fused" else row["contestant"],
            *(f"{row[column]:.2f}" for column in _COLUMNS),
        )
        for row in found["rows"]
    ]
    head = ("method", "layers of", "training step", "evaluation", "saved for backward")
    return f"{about} {sizes}\n\n{table(head, rows)}"

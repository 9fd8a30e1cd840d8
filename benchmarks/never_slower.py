"""Is what ``"auto"`` picks ever slower than the reference, eager or compiled? At every benchmark case of every op.

``python benchmarks/never_slower.py [--op NAME ...] [--json FILE]``: forward and backward of the three alternate in
every round; ratios are medians of each round's ratio. Exits with 1 where one exceeds 1 by more than noise may add.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

from fastlip import testing
from fastlip.benchmarking import keep_pages
from fastlip.ops._case import Case

RIVALS = ("reference", "compiled reference")


@click.command()
@click.option("--op", "names", multiple=True, help="Give it once for each.  [default: all]")
@click.option("--device", default="cpu")
@click.option("--tolerance", default=0.1, help="What noise may add to a ratio of 1.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False))
def main(names: tuple[str, ...], device: str, tolerance: float, path: Path | None) -> None:
    keep_pages()
    rows = []
    for op_name, case_name, case in testing.op_cases(bench=True):
        if names and op_name not in names:
            continue
        ratios = compare(op_name, case, device)
        rows.append({"op": op_name, "case": case_name, **ratios})
        told = "   ".join(f"{rival}: {ratio:.2f}" for rival, ratio in ratios.items())
        print(f"{op_name:<16} {case_name:<28} auto / {told}", flush=True)
    if path:
        about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
        path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    slower = [row for row in rows if max(row[rival] for rival in RIVALS) > 1 + tolerance]
    for row in slower:
        print(f"slower: {row}")
    sys.exit(bool(slower))


def compare(op_name: str, case: Case, device: str) -> dict[str, float]:
    """Seconds of what auto picks as ratios to the reference's and the compiled reference's."""
    torch.manual_seed(0)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.make(torch.float32, device).items()}
    torch._dynamo.reset()
    functions = {
        "auto": lambda **tensors: testing.call(op_name, "auto", case, tensors),
        "reference": lambda **tensors: testing.call(op_name, "reference", case, tensors),
    }
    functions["compiled reference"] = torch.compile(functions["reference"], dynamic=False)
    steps = {name: step(function, leaves) for name, function in functions.items()}
    seconds = {name: [] for name in steps}
    for turn in range(3 + rounds(steps["auto"])):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - started)
    return {
        rival: statistics.median(ours / theirs for ours, theirs in zip(seconds["auto"], seconds[rival], strict=True))
        for rival in RIVALS
    }


def step(function: Callable[..., torch.Tensor], leaves: dict[str, torch.Tensor]) -> Callable[[], None]:
    cotangent = torch.randn_like(function(**leaves))

    def run() -> None:
        torch.autograd.grad(function(**leaves), list(leaves.values()), cotangent)
        if cotangent.is_cuda:
            torch.cuda.synchronize()

    return run


def rounds(run: Callable[[], None]) -> int:
    """As many rounds as fill about half a second, between 9 and 200."""
    run()
    started = time.perf_counter()
    run()
    return max(9, min(200, int(0.5 / (time.perf_counter() - started))))


if __name__ == "__main__":
    main()

"""Is what ``"auto"`` picks ever slower than the reference, eager or compiled? At every benchmark case of every op.

``python benchmarks/never_slower.py [--op NAME ...] [--case TEXT ...] [--every-case] [--eager] [--json FILE]``:
forward and backward of the contestants alternate in every round; ratios are medians of each round's ratio. Exits with
1 where one exceeds 1 by more than noise may add. Torch compiles no complex arithmetic: where an op has any, the
compiled reference runs that part as it does eagerly. Rows of ops that the JSON file holds already, and that are not
timed now, stay in it.
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
from fastlip.kernels.common.case import Case

# What is divided by what. In a compiled program both are compiled.
RATIOS = (("auto", "reference"), ("auto", "compiled reference"), ("compiled auto", "compiled reference"))


@click.command()
@click.option("--op", "names", multiple=True, help="Give it once for each.  [default: all]")
@click.option("--case", "texts", multiple=True, help="Cases whose name contains it; once for each.  [default: all]")
@click.option("--every-case", is_flag=True, help="The small cases of the tests too.")
@click.option("--eager", is_flag=True, help="Compile nothing.")
@click.option("--dtype", type=click.Choice(["float32", "complex64"]), default="float32")
@click.option("--device", default="cpu")
@click.option("--tolerance", default=0.1, help="What noise may add to a ratio of 1.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False))
def main(
    names: tuple[str, ...],
    texts: tuple[str, ...],
    every_case: bool,
    eager: bool,
    dtype: str,
    device: str,
    tolerance: float,
    path: Path | None,
) -> None:
    keep_pages()
    rows = []
    for op_name, case_name, case in cases(every_case):
        if (names and op_name not in names) or not any(text in case_name for text in texts or ("",)):
            continue
        if getattr(torch, dtype) not in testing.dtypes_of(op_name):
            continue
        ratios = compare(op_name, case, getattr(torch, dtype), device, eager)
        rows.append({"op": op_name, "case": case_name, "dtype": dtype, **ratios})
        told = "   ".join(f"{name}: {ratio:.2f}" for name, ratio in ratios.items())
        print(f"{op_name:<16} {case_name:<28} {told}", flush=True)
        if path:
            about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device}
            path.write_text(json.dumps({**about, "rows": merged(path, rows)}, indent=1) + "\n")
    slower = [row for row in rows if max(row.get(" / ".join(pair), 0) for pair in RATIOS) > 1 + tolerance]
    for row in slower:
        print(f"slower: {row}")
    sys.exit(bool(slower))


def cases(every_case: bool) -> list[tuple[str, str, Case]]:
    chosen = list(testing.op_cases(bench=True))
    return sorted(chosen + list(testing.op_cases()), key=lambda found: found[0]) if every_case else chosen


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """The rows of the file, those timed again replaced."""
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    keyed = {(row["op"], row["case"], row["dtype"]): row for row in (*found, *rows)}
    return [keyed[key] for key in sorted(keyed)]


def compare(op_name: str, case: Case, dtype: torch.dtype, device: str, eager: bool) -> dict[str, float]:
    """Ratios of seconds, by name."""
    torch.manual_seed(0)
    leaves = {name: tensor.requires_grad_() for name, tensor in case.make(dtype, device).items()}
    torch._dynamo.reset()
    pairs = RATIOS[:1] if eager else RATIOS
    steps = {name: step(function_of(name, op_name, case), leaves) for pair in pairs for name in pair}
    seconds = {name: [] for name in steps}
    for turn in range(3 + rounds(steps["auto"])):
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            if turn >= 3:
                seconds[name].append(time.perf_counter() - started)
    return {
        f"{ours} / {theirs}": statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
        for ours, theirs in pairs
    }


def function_of(name: str, op_name: str, case: Case) -> Callable[..., torch.Tensor]:
    def function(**tensors: torch.Tensor) -> torch.Tensor:
        return testing.call(op_name, name.removeprefix("compiled "), case, tensors)

    return torch.compile(function, dynamic=False) if name.startswith("compiled ") else function


def step(function: Callable[..., torch.Tensor], leaves: dict[str, torch.Tensor]) -> Callable[[], None]:
    cotangent = torch.randn_like(function(**leaves))

    def run() -> None:
        torch.autograd.grad(function(**leaves), list(leaves.values()), cotangent, allow_unused=True)
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

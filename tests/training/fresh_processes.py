"""Fresh processes for tests, from a server that has imported everything once and has computed nothing."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.distributed import TCPStore

MODULES = ["torch", "fastlip.cli", "fastlip.training.loop", "sklearn.datasets", "sklearn.model_selection", __name__]

PATIENCE = 150.0  # seconds after which a process is thought to hang
HUNG = -9  # the exit code of a process that was killed
_stores = []


def start(function, *arguments, environment=None, folder="."):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    target = _run, (function, arguments, environment or {}, str(folder))
    process = context.Process(target=target[0], args=target[1])
    process.start()
    return process


def start_ranks(function, *arguments, size=2, folder="."):
    """The same function in as many processes, with what torchrun tells them; this one keeps its store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    shared |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return [
        start(
            function,
            *arguments,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            folder=folder,
        )
        for rank in range(size)
    ]


def join(processes, timeout=PATIENCE):
    """Their exit codes; a process that has not ended by then is killed, and its output has its stack."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def outputs(folder):
    """What the processes of this folder wrote."""
    return [path.read_text() for path in sorted(Path(folder).glob("output-*.txt"))]


def run_ranks(function, *arguments, folder):
    """The exit codes of both ranks; once more where one hangs, and then the stacks are on the terminal.

    In one of some thousand runs a process did not end although the other one had passed the last barrier. Why is not
    known.
    """
    codes = join(start_ranks(function, *arguments, folder=folder))
    if HUNG in codes:
        print("a process hung:", *outputs(folder), sep="\n", file=sys.__stderr__, flush=True)
        codes = join(start_ranks(function, *arguments, folder=folder))
    return codes


def _run(function, arguments, environment, folder):
    os.environ.update(environment)
    os.chdir(folder)
    # More threads than cores would spin while they wait for each other.
    at_once = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) * int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // at_once))
    # Left open, so that the stack of a process that hangs while it ends is there too.
    output = open(f"output-{environment.get('RANK', '')}.txt", "w")  # noqa: SIM115
    sys.stdout = sys.stderr = output
    faulthandler.dump_traceback_later(0.9 * PATIENCE, file=output)
    try:
        function(*arguments)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(3)
    finally:
        output.flush()


def command(*arguments):
    """The command line in this process; ends it with the command's exit code."""
    from fastlip.cli import main

    main([str(argument) for argument in arguments])

"""Fresh processes for tests, from a server that has imported everything once and has computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback

from torch.distributed import TCPStore

MODULES = ["torch", "fastlip.cli", "fastlip.training.loop", "sklearn.datasets", "sklearn.model_selection", __name__]

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


def join(processes, timeout=200):
    """Their exit codes."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _run(function, arguments, environment, folder):
    os.environ.update(environment)
    os.chdir(folder)
    with open(f"output-{environment.get('RANK', '')}.txt", "w") as output:
        sys.stdout = sys.stderr = output
        try:
            function(*arguments)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            sys.exit(3)


def command(*arguments):
    """The command line in this process; ends it with the command's exit code."""
    from fastlip.cli import main

    main([str(argument) for argument in arguments])

"""Worker processes for the grid, which survive a failed run and leave none behind when they are stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tqdm import tqdm

from .plan import Run
from .runs import do_run


def execute(runs: Sequence[Run], processes: int) -> Iterator[tuple[Run, str | None]]:
    """Run all, ``processes`` at a time; yields each run as it ends, with the error of a failed one.

    Each process imports torch and MONAI once and takes one run after the other. Closing the iterator ends them all.
    """
    waiting = list(reversed(runs))
    threads = 1 if processes > 1 else None
    busy: dict[Connection, tuple[BaseProcess, Run]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < processes:  # at the start, and after a process was killed
                process, connection = _start(threads)
                busy[connection] = process, waiting.pop()
                connection.send(busy[connection][1])
            for connection in wait(list(busy)):
                process, run = busy[connection]
                error = _answer(process, connection)
                if waiting and process.is_alive():
                    busy[connection] = process, waiting.pop()
                    connection.send(busy[connection][1])
                else:
                    connection.close()  # which ends the process
                    del busy[connection]
                yield run, error
    finally:
        for process, _ in busy.values():
            process.terminate()


def _start(threads: int | None) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads))
    process.start()
    theirs.close()
    return process, ours


def _answer(process: BaseProcess, connection: Connection) -> str | None:
    """The error of the run that has ended, or None."""
    try:
        return connection.recv()
    except EOFError:  # killed from outside: its run has failed, the others go on
        process.join()
        return f"its process was killed (exit code {process.exitcode}); out of memory?"


def _work(connection: Connection, threads: int | None) -> None:
    """A worker's life: runs come in, errors (or None) go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    # tqdm's own is of the system and outlives a process that is ended, which Python tells of behind our last line
    tqdm.set_lock(threading.RLock())

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    # a killed comparison must not leave a process that writes into the folder of the next one
    threading.Thread(target=end_with_parent, daemon=True).start()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        connection.send(do_run(run))

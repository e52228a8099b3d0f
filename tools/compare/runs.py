"""Running the grid: worker processes that survive a failed run and leave nothing half done when they are stopped."""

from __future__ import annotations

import copy
import gc
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from .plan import Run

RUN_FILE = "run.json"  # a run's whole configuration


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


def do_run(run: Run) -> str | None:
    """Train and evaluate; everything that is printed goes to ``run.log``. Returns the error's text, if any."""
    run.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(run.folder / "run.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    try:
        _train(run)
        (run.folder / "models" / "checkpoint.pt").unlink(missing_ok=True)  # large, and of no more use
        if not run.cases.is_file():
            raise FileNotFoundError(f"{run.cases}: the `run` of the bundle's config did not write it")
    except (Exception, SystemExit) as error:  # whatever it is, the other runs go on
        traceback.print_exc()
        return root_cause(error)
    finally:
        gc.collect()
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        os.close(kept[0]), os.close(kept[1])
    return None


def _train(run: Run) -> None:
    checkpoint = run.folder / "models" / "checkpoint.pt"
    if checkpoint.is_file():
        try:
            return _monai_run(run, resume=True)
        except (Exception, SystemExit) as error:
            if not any(isinstance(one, ValueError) and str(checkpoint) in str(one) for one in _chain(error)):
                raise
            logging.getLogger(__name__).warning("%s; starting the run again.", error)  # damaged, or of older code
            shutil.rmtree(checkpoint.parent)
    return _monai_run(run)


def _monai_run(run: Run, **more: Any) -> None:
    import monai.bundle

    folders = {"ckpt_dir": str(run.folder / "models"), "output_dir": str(run.folder / "eval")}
    # run.json holds every key of the files before it, as they were when the comparison started
    monai.bundle.run(config_file=[*run.config_files, str(run.folder / RUN_FILE)], **folders, **more)


def root_cause(error: BaseException) -> str:
    """The error below those that MONAI wraps around it, on one line."""
    error = _chain(error)[-1]
    text = " ".join(str(error).split())
    return text if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those it was raised from, the innermost last."""
    return [error] if error.__cause__ is None else [error, *_chain(error.__cause__)]


def effective_config(run: Run) -> dict[str, Any]:
    """The configuration of a run as MONAI will merge it, unresolved.

    Raises:
        SystemExit: an override of a key that no config file has.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(run.config_files)
    unknown = sorted({key for key in run.overrides if key.replace("#", "::").split("::")[0] not in parser.get()})
    if unknown:
        raise SystemExit(f"{run.variant}: expected overrides of keys of {', '.join(run.config_files)}, found "
                         f"{', '.join(unknown)}")
    parser.update(copy.deepcopy(run.overrides))
    config = dict(parser.get())
    config.pop("_meta_", None)
    return config


def claim_folders(runs: Sequence[Run]) -> None:
    """Store each run's configuration in its folder as ``run.json``, unless another one is there.

    Raises:
        SystemExit: an older run of another configuration is in a folder: results must not mix.
    """
    problems = []
    configs = {run.folder: effective_config(run) for run in runs}
    for run in runs:
        file = run.folder / RUN_FILE
        changes = _changes(json.loads(file.read_text(encoding="utf-8")), configs[run.folder]) if file.is_file() else []
        if changes:
            problems.append(f"{run.folder}: {'; '.join(changes[:3])}{'; ...' if len(changes) > 3 else ''}")
    if problems:
        shown = [*problems[:5], *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])]
        todo = "give another --output, or delete these folders to run them again"
        raise SystemExit("\n  ".join([f"these runs were made with another configuration; {todo}:", *shown]))
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        file, part = run.folder / RUN_FILE, run.folder / f"{RUN_FILE}.tmp"
        part.write_text(json.dumps(configs[run.folder], indent=1), encoding="utf-8")
        os.replace(part, file)


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        below = {key: f"{path}::{key}" if path else key for key in [*old, *new]}
        return [line for key, name in below.items() for line in _changes(old.get(key), new.get(key), name)]
    return [] if old == new else [f"{path} was {_short(old)}, is now {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

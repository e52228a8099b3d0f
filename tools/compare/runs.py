"""One run of a comparison: its folder, its configuration there, its training and evaluation."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from common.data.output_dir import check_output_dir
from common.data.temporary import replaced
from common.engine import root_cause
from common.engine.overrides import repeated_in_configs

from .plan import Run

logger = logging.getLogger(__name__)
RUN_FILE = "run.json"  # a run's whole configuration


def do_run(run: Run) -> str | None:
    """Train and evaluate; everything that is printed goes to ``run.log``. Returns the error's text, if any."""
    run.folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    whole, start = not run.checkpoint.is_file(), monotonic()
    run.seconds.unlink(missing_ok=True)
    with open(run.folder / "run.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    try:
        _train(run)
        if not run.cases.is_file():
            raise FileNotFoundError(f"{run.cases}: the `run` of the bundle's config did not write it")
        run.checkpoint.unlink(missing_ok=True)  # large, and of no more use
        if whole:
            _write(run.seconds, f"{monotonic() - start:.0f}\n")
    except (Exception, SystemExit) as error:  # whatever it is, the other runs go on
        traceback.print_exc()
        return one_line(error)
    finally:
        gc.collect()
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        os.close(kept[0]), os.close(kept[1])
    return None


def _train(run: Run) -> None:
    if run.checkpoint.is_file():
        try:
            return _monai_run(run, resume=True)
        except (Exception, SystemExit) as error:
            cause = root_cause(error)
            if not isinstance(cause, ValueError) or str(run.checkpoint) not in str(cause):
                raise
            logger.warning("%s; starting the run again.", one_line(error))  # damaged, or written by older code
            shutil.rmtree(run.checkpoint.parent)
    return _monai_run(run)


def _monai_run(run: Run, **more: Any) -> None:
    import monai.bundle

    folders = {"ckpt_dir": str(run.folder / "models"), "output_dir": str(run.folder / "eval")}
    # run.json holds every key of the files before it, as they were when the comparison started
    monai.bundle.run(config_file=[*run.config_files, str(run.folder / RUN_FILE)], **folders, **more)


def one_line(error: BaseException) -> str:
    """The error below those that MONAI wraps around it."""
    error = root_cause(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, SystemExit) else f"{type(error).__name__}: {text}"


def claim_folders(runs: Sequence[Run]) -> None:
    """Store each run's configuration in its folder as ``run.json``: results of two configurations must not mix.

    Raises:
        OSError: see :func:`.check_output_dir`.
        SystemExit: a folder holds results, or a checkpoint, of another configuration; or an override is unknown.
    """
    problems = []
    configs = {run.folder: effective_config(run) for run in runs}
    for run in runs:
        file = run.folder / RUN_FILE
        if file.is_file() and (run.cases.is_file() or run.checkpoint.is_file()):
            changes = _changes(json.loads(file.read_text(encoding="utf-8")), configs[run.folder])
            if changes:
                problems.append(f"{run.folder}: {'; '.join(changes[:3])}{'; ...' if len(changes) > 3 else ''}")
    if problems:
        shown = [*problems[:5], *([f"and {len(problems) - 5} more"] if len(problems) > 5 else [])]
        todo = "give another --output, or delete these folders to run them again"
        raise SystemExit("\n  ".join([f"these runs were made with another configuration; {todo}:", *shown]))
    for run in runs:
        check_output_dir(run.folder)
        _write(run.folder / RUN_FILE, json.dumps(configs[run.folder], indent=1))


def _write(file: Path, text: str) -> None:
    """At once: a comparison that is killed leaves no half of it."""
    with replaced(file) as part:
        part.write_text(text, encoding="utf-8")


def effective_config(run: Run) -> dict[str, Any]:
    """The configuration of a run as MONAI merges it, unresolved.

    Raises:
        SystemExit: an override of what no config file has, or a key twice in one of them.
    """
    from monai.bundle import ConfigParser

    if repeated := repeated_in_configs(run.config_files):
        raise SystemExit("\n".join(repeated))
    parser = ConfigParser()
    parser.read_config(run.config_files)
    unknown = []
    for key, value in run.overrides.items():
        if _is_known(key, parser):
            parser[key] = copy.deepcopy(value)
        else:
            unknown.append(key)
    if unknown:
        files = ", ".join(run.config_files)
        raise SystemExit(f"{run.variant}: expected overrides of what {files} has, found {', '.join(unknown)}")
    config = {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}
    return json.loads(json.dumps(config))  # tuples of the command line as the lists they become in the file


def _is_known(key: str, parser: Any) -> bool:
    """Whether there is such an entry, or a component which it is an argument of: that refuses a wrong one itself."""
    section = key.replace("#", "::").rpartition("::")[0]
    return key in parser or bool(section) and section in parser and "_target_" in parser[section]


def _changes(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        below = {key: f"{path}::{key}" if path else key for key in [*old, *new]}
        return [line for key, name in below.items() for line in _changes(old.get(key), new.get(key), name)]
    return [] if old == new else [f"{path} was {_short(old)}, is now {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

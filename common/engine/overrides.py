"""Refuse misspelt overrides on the command line, which MONAI takes as new keys that nobody reads; and repeated keys."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from pydoc import locate
from typing import Any

from monai.bundle import (
    ConfigComponent,
    ConfigParser,
    ConfigWorkflow,
    ReferenceResolver,
    create_workflow,
    run,
    run_workflow,
    update_kwargs,
)
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, ID_SEP_KEY
from monai.utils import ensure_tuple

from .readable_errors import on_command_line

# Arguments of MONAI's own functions, which arrive beside the overrides.
_ARGUMENTS = {
    name
    for function in (run, run_workflow, create_workflow, ConfigWorkflow.__init__)
    for name in inspect.signature(function).parameters
}


def refuse_unknown_keys() -> None:
    """Check the config files of the running ``monai.bundle run``, and its overrides against their keys.

    Unknown is a top-level key, or a part of a nested one, that no config file has; the files include the user's own
    overlays, which may add keys. A component (a section with ``_target_``) has the arguments of its class besides; one
    that takes any argument, or that only the run itself makes known, refuses what it does not know. Of a part below
    which more is asked for (``--train::trainr::max_epochs``) MONAI's parser refuses to begin, with its own text.
    Neither the parser nor the workflow remembers what came from files and what from the command line, but MONAI's
    ``run`` does, and it is among the callers of this function. Without it (``ConfigParser``, a workflow made by hand)
    nothing is checked.

    Raises:
        ValueError: keys that stand twice in a file, and unknown ones; all of them, each of these with the nearest known
            one. On the command line SystemExit with the same text, because MONAI would wrap an error and bury the text
            in a traceback of fifty lines.
    """
    arguments = _arguments_of_run()
    if not arguments.get("config_file"):
        return
    repeated = repeated_in_configs(arguments["config_file"])
    config = ConfigParser.load_config_files(arguments["config_file"])
    known = set(config) | {ConfigParser.meta_key} | _tracking_keys(arguments.get("tracking"))
    overrides = {ReferenceResolver.normalize_id(key) for key in arguments.keys() - _ARGUMENTS}
    problems = [problem for key in sorted(overrides) if (problem := _problem(key, config, known, overrides))]
    if repeated or problems:
        known_keys = [f"Known are the keys of {arguments['config_file']}; nothing was run."]
        lines = [*repeated, *problems, *(known_keys if problems else ["Nothing was run."])]
        raise (SystemExit if on_command_line() else ValueError)("\n".join(lines))


def repeated_in_configs(files: str | PathLike | Sequence[str | PathLike] | Mapping) -> list[str]:
    """One line for each key that stands twice in one object of a config file: MONAI warns, and takes the last.

    Args:
        files: as MONAI's ``config_file``.
    """
    if isinstance(files, Mapping):
        return []
    problems = []
    for file in ensure_tuple(files):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ConfigParser.load_config_file(file)
        texts = [str(warning.message) for warning in caught]
        found = [text.removeprefix("Duplicate key: ") for text in texts if text.startswith("Duplicate key: ")]
        problems += [f"{file}: expected each key once in an object, found {key} twice; remove one" for key in found]
    return problems


def _arguments_of_run() -> dict[str, Any]:
    """What ``monai.bundle.run`` or ``run_workflow`` was called with, `args_file` merged in; empty when neither runs."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in (run.__code__, run_workflow.__code__):
            local = frame.f_locals
            base = local["args_file"]
            given = {key: local[key] for key in ("config_file", "tracking") if key in local}
            # a copy: MONAI writes into the dict it is given
            return update_kwargs(dict(base) if isinstance(base, dict) else base, **given,
                                 **local.get("override", local.get("kwargs", {})))
        frame = frame.f_back
    return {}


def _tracking_keys(tracking: Any) -> set[str]:
    if tracking is None:
        return set()
    named = isinstance(tracking, str) and tracking in DEFAULT_EXP_MGMT_SETTINGS
    settings = DEFAULT_EXP_MGMT_SETTINGS[tracking] if named else ConfigParser.load_config_files(tracking)
    return set(settings.get("configs", {}))


def _problem(key: str, config: dict, known: set[str], overrides: set[str]) -> str:
    first, *rest = key.split(ID_SEP_KEY)
    if first not in known:
        return _unknown(key, first, "", known)
    section, path, component = config.get(first), first, False
    for part in rest:
        if {path, f"{path}{ID_SEP_KEY}_target_"} & overrides:
            return ""  # replaced on the same command line
        below = _parts(section, component)
        if below is None:
            return ""
        if part not in below:
            return _unknown(key, part, path + ID_SEP_KEY, below)
        component = component or isinstance(section, Mapping) and "_target_" in section
        section = section[int(part)] if isinstance(section, list) else section.get(part)
        path += ID_SEP_KEY + part
    return ""


def _parts(section: Any, of_component: bool) -> Collection[str] | None:
    """What may stand in a section; None where that is not known, as in a table that a component takes."""
    if isinstance(section, list):
        return [str(i) for i in range(len(section))]
    if not isinstance(section, Mapping):
        return None
    if "_target_" not in section:
        return None if of_component else section
    arguments = _arguments_of(section)
    return None if arguments is None else {*section, *arguments, *ConfigComponent.non_arg_keys}


def _arguments_of(component: Mapping[str, Any]) -> Collection[str] | None:
    """The names of a component's arguments; None where it takes any, or where its class is not found."""
    target = component["_target_"]
    found = locate(target) if isinstance(target, str) and "." in target else None  # others are MONAI's short names
    parameters: dict[str, inspect.Parameter] = {}
    for cls in found.__mro__ if inspect.isclass(found) else [found] if callable(found) else []:
        try:
            own = dict(inspect.signature(cls.__init__ if inspect.isclass(cls) else cls).parameters)
        except ValueError:  # written in C
            return None
        own.pop("self", None)
        parameters |= own
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values()):
            return parameters
    return None


def _unknown(key: str, part: str, path: str, candidates: Any) -> str:
    near = get_close_matches(part, list(candidates), n=1)
    hint = f"did you mean --{path}{near[0]}?" if near else f"expected one of {', '.join(sorted(candidates))}"
    return f"unknown override --{key}: {hint}"

"""Objects that describe themselves as plain data, so that a file can say what a model is and a later run rebuild it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

CLASS = "class"  # the key of a description that names the class
_CLASSES: dict[str, type] = {}


def described(leave_out: Sequence[str] = ()) -> Callable[[type], type]:
    """Class decorator: an object remembers the arguments it was made with, and :func:`rebuild` may make another.

    A new argument of such a class needs no other line: it is in every description from then on.

    Args:
        leave_out: arguments that are of no use to a later run, such as a file of first weights.
    """

    def decorate(cls: type) -> type:
        original = cls.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)  # first: its own error names the class
            if type(self) is cls:  # a subclass describes itself
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                _, *arguments = bound.arguments.items()
                kept = {name: value for name, value in arguments if name not in leave_out}
                object.__setattr__(self, "_made_with", kept)

        cls.__init__ = __init__
        cls.__jit_ignored_attributes__ = ["_made_with"]  # TorchScript would compile it, and fails at networks in it
        cls._left_out = tuple(leave_out)
        _CLASSES[_name(cls)] = cls
        return cls

    return decorate


def describe(thing: Any, strict: bool = True) -> Any:
    """The thing as data that JSON holds; an object of a described class as ``{"class": name, argument: value, ...}``.

    Args:
        strict: refuse what could not be rebuilt; otherwise other objects are described by their class alone.

    Raises:
        TypeError: strict, and there is an object of a class that is not described.
    """
    if isinstance(thing, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        thing = thing.module  # a run of several GPUs may go on with one
    made_with = getattr(thing, "_made_with", None)
    if isinstance(made_with, dict):
        own = {name: describe(value, strict) for name, value in made_with.items()}
        return {CLASS: _name(type(thing)), **own}
    if isinstance(thing, Mapping):
        return {str(key): describe(value, strict) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [describe(value, strict) for value in thing]
    if isinstance(thing, np.generic):
        thing = thing.item()
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if strict:
        raise TypeError(
            f"expected plain data or an object of a described class, found {_name(type(thing))}, which a model file "
            "cannot hold; put `@described()` (common/description.py) on its class."
        )
    return {CLASS: _name(type(thing))}


def rebuild(description: Mapping[str, Any], **changes: Any) -> Any:
    """The object that was described. Values stay what they are; no text is evaluated and nothing is imported.

    A network that is rebuilt refuses weights that are not finite, whoever loads them: MONAI's export asks nothing.

    Args:
        changes: arguments to take in place of the described ones.

    Raises:
        ValueError: it is no description, of a class that no module in use has described, with other arguments than
            the class takes, or with values that it refuses or cannot use.
    """
    name = description.get(CLASS) if isinstance(description, Mapping) else None
    if not isinstance(name, str) or name not in _CLASSES:
        raise ValueError(
            f"model.json: expected the description of a class out of {', '.join(sorted(_CLASSES))}, found "
            f"{_short(description if name is None else name)}; use the bundle and the release that trained the model."
        )
    cls = _CLASSES[name]
    given = {key: _rebuild_parts(value) for key, value in {**description, **changes}.items() if key != CLASS}
    _check_arguments(cls, given, changes)
    try:
        thing = cls(**given)
    except Exception as error:  # a text in place of a number fails anywhere, such as in a library
        found = _short({**description, **changes}, 400)
        raise ValueError(
            f"model.json, {name}: expected values that it can be made of, found {found}, which end in "
            f"{type(error).__name__}: {error}; correct the override of it, or copy the file from its folder again."
        ) from None
    if isinstance(thing, nn.Module):
        thing.register_load_state_dict_post_hook(lambda module, _: refuse_not_finite(module.state_dict(), name))
    return thing


def refuse_not_finite(state: Mapping[str, torch.Tensor], name: str | PathLike) -> None:
    """One such weight makes all logits NaN, of which the largest is that of the background: an empty map.

    Args:
        name: of the network or its file, for the error.

    Raises:
        ValueError: some weights are NaN or infinite.
    """
    bad = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(
            f"{name}: expected finite weights, found NaN or Inf in {len(bad)} of {len(state)} tensors, such as "
            f"{bad[0]}; use the model of another training, or train again with a lower learning_rate."
        )


def _rebuild_parts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rebuild(value) if CLASS in value else {key: _rebuild_parts(part) for key, part in value.items()}
    return [_rebuild_parts(part) for part in value] if isinstance(value, list) else value


def _check_arguments(cls: type, given: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """An argument that is missing would silently take the default of today."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    expected = {one.name: one.default for one in parameters if one.name not in cls._left_out}
    in_file = [f"expected `{key}`, found none{_today(expected[key])}" for key in expected if key not in given]
    in_file += [f"found `{key}`, which it does not take" for key in given if key not in {**expected, **changes}]
    misspelt = [f"found the override `{key}`, which it does not take: {_meant(key, expected)}"
                for key in changes if key not in expected]  # fmt: skip
    if in_file or misspelt:
        todo = ["The model is of another release, or its file was edited: use the release that trained it, or correct "
                "the file."] * bool(in_file) + ["Correct or leave out the override."] * bool(misspelt)  # fmt: skip
        raise ValueError(f"model.json, {_name(cls)}: {'; '.join(in_file + misspelt)}. {' '.join(todo)}")


def _meant(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(known)}"


def _today(default: Any) -> str:
    return "" if default is inspect.Parameter.empty else f" (the default of this release is {_short(default)})"


def differences(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two descriptions differ: the place, such as ``network.width``, and both values (None where one has none).

    1 and 1.0 are the same number, and True is none.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        below = f"{path}." if path else ""
        return [found for key in dict.fromkeys([*one, *other])
                for found in differences(one.get(key), other.get(key), f"{below}{key}")]  # fmt: skip
    if isinstance(one, list) and isinstance(other, list):
        same = len(one) == len(other) and not any(map(differences, one, other))
    else:
        same = one == other and isinstance(one, bool) == isinstance(other, bool)
    return [] if same else [(path, one, other)]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _short(value: Any, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."

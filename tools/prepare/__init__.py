"""``python -m tools prepare NAME --source DIR --output DIR``: public data sets, as they are downloaded, made ready."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from common.data.dataset import DataError
from tools.prepare import acdc, brats, chaos, fundus, la, mscmr, pancreas, prostate, synapse
from tools.prepare.recipe import Recipe, run

__all__ = ["RECIPES", "prepare"]

RECIPES = {"acdc": acdc.RECIPE, "brats": brats.RECIPE, "chaos": chaos.RECIPE, "fundus": fundus.RECIPE, "la": la.RECIPE,
           "mscmr": mscmr.RECIPE, "pancreas": pancreas.RECIPE, "prostate": prostate.RECIPE, "synapse": synapse.RECIPE}
CONFIGURE = {"acdc": acdc.configure, "brats": brats.configure, "la": la.configure, "pancreas": pancreas.configure}


def prepare(name: str, source: str, output: str, **options: Any) -> None:
    """Turn a public data set, as its users download it, into a folder that the bundles train on.

    Args:
        name: one of ``RECIPES``.
        source: the unpacked download; never written to.
        output: folder to create, for ``--dataset_dir``.
        options: those of the data set's ``configure``, where it has one.

    Raises:
        SystemExit: with the text of the error, when the data cannot be used or there is no such data set or option.
    """
    if name not in RECIPES:
        raise SystemExit(f"name: expected one of {', '.join(sorted(RECIPES))}, found {name}")
    try:
        recipe = _configured(name, options)
        folder = run(recipe, Path(source), Path(output))
    except (DataError, FileExistsError) as error:
        raise SystemExit(str(error)) from error
    about = recipe.about
    print(f"{name}: written to {folder}\n  reference: {about['reference']}\n  licence: {about['licence']}")


def _configured(name: str, options: dict[str, Any]) -> Recipe:
    known = list(inspect.signature(CONFIGURE[name]).parameters) if name in CONFIGURE else []
    unknown = [option for option in options if option not in known]
    if unknown:
        listed = ", ".join(f"--{option}" for option in known) or "no further option"
        raise DataError(f"{name}: expected {listed}, found {', '.join(f'--{option}' for option in unknown)}")
    # the command line gives numbers and True where it looks like them; only one option is a number
    options = {key: value if key == "labelled" or value is None else str(value) for key, value in options.items()}
    return CONFIGURE[name](**options) if name in CONFIGURE else RECIPES[name]

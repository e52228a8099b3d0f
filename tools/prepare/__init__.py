"""``python -m tools prepare NAME --source DIR --output DIR``: public data sets, as they are downloaded, made ready."""

from __future__ import annotations

from pathlib import Path

from common.data.dataset import DataError
from tools.prepare import chaos, fundus, mscmr, prostate, synapse
from tools.prepare.recipe import run

__all__ = ["RECIPES", "prepare"]

RECIPES = {"chaos": chaos.RECIPE, "fundus": fundus.RECIPE, "mscmr": mscmr.RECIPE, "prostate": prostate.RECIPE,
           "synapse": synapse.RECIPE}


def prepare(name: str, source: str, output: str) -> None:
    """Turn a public data set, as its users download it, into a folder that the bundles train on.

    Args:
        name: one of ``RECIPES``.
        source: the unpacked download; never written to.
        output: folder to create, for ``--dataset_dir``.

    Raises:
        SystemExit: with the text of the error, when the data cannot be used or there is no such data set.
    """
    if name not in RECIPES:
        raise SystemExit(f"name: expected one of {', '.join(sorted(RECIPES))}, found {name}")
    try:
        folder = run(RECIPES[name], Path(source), Path(output))
    except (DataError, FileExistsError) as error:
        raise SystemExit(str(error)) from error
    about = RECIPES[name].about
    print(f"{name}: written to {folder}\n  reference: {about['reference']}\n  licence: {about['licence']}")

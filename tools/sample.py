"""``python -m tools sample BUNDLE``: generate a bundle's sample data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def sample(bundle: str, output: str | None = None, seed: int = 0) -> None:
    """Generate the sample data of a bundle and say where it went.

    Args:
        bundle: name of the bundle, e.g. apscl_fewshot.
        output: folder to create; by default the bundle's own sample_data, where training looks for it.
        seed: which data; training without any override uses 0.
    """
    names = sorted(folder.name for folder in BUNDLES.iterdir() if (folder / folder.name / "sample.py").is_file())
    if bundle not in names:
        raise SystemExit(f"there is no bundle '{bundle}' with sample data; there are: {', '.join(names)}")
    target = Path(output) if output else BUNDLES / bundle / "sample_data"
    if str(BUNDLES / bundle) not in sys.path:
        sys.path.insert(0, str(BUNDLES / bundle))
    generator = importlib.import_module(f"{bundle}.sample")
    try:
        generator.generate_sample_data(target, seed=seed)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    print(f"sample data of {bundle}, seed {seed}: {target}")

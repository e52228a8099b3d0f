"""``python -m tools sample BUNDLE``: generate a bundle's sample data."""

from __future__ import annotations

import importlib
from pathlib import Path

from tools.bundles import home_of, put_on_path


def sample(bundle: str, output: str | None = None, seed: int = 0) -> None:
    """Generate the sample data of a bundle and say where it went.

    Args:
        bundle: name of the bundle, e.g. apscl_fewshot.
        output: folder to create; by default the bundle's own sample_data, where training looks for it.
        seed: which data; training without any override uses 0.
    """
    home = home_of(bundle)
    target = Path(output) if output else home / "sample_data"
    put_on_path(home)
    generator = importlib.import_module(f"{bundle}.sample")
    try:
        generator.generate_sample_data(target, seed=seed)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    print(f"sample data of {bundle}, seed {seed}: {target}")

"""APSCL: few-shot segmentation with an anatomical prior, spatial contrastive learning and mutual guidance."""

import sys
from pathlib import Path

_BUNDLE = Path(__file__).resolve().parents[1]
# A packed bundle carries its own `common`; a checkout has it two levels up.
_HOME = _BUNDLE if (_BUNDLE / "common").is_dir() else _BUNDLE.parents[1]
if str(_HOME) not in sys.path:
    sys.path.append(str(_HOME))

try:
    import common
except ImportError as error:
    raise ImportError(
        f"the package `common` is neither in {_BUNDLE} nor in {_HOME}. The folder of one bundle is not enough: clone "
        "the whole repository, or unpack a released bundle."
    ) from error

__version__ = "0.1.0"
if getattr(common, "__version__", None) != __version__:
    raise ImportError(
        f"apscl_fewshot {__version__} needs `common` {__version__}, but version "
        f"{getattr(common, '__version__', 'unknown')} at {getattr(common, '__file__', 'unknown')} was imported "
        "first. Use bundles of one release in one process, and keep other packages named `common` off the path."
    )


def bundle_root() -> str:
    """The bundle's folder, whatever the working directory."""
    return str(_BUNDLE)


# Loaded now: MONAI Label takes the bundle's folder off the path once a task is built, and model.json names these parts.
from . import (  # noqa: E402, F401
    adaptation,
    data,
    decoders,
    encoder,
    evaluator,
    guidance,
    inferer,
    latent,
    network,
    objective,
    position,
    sample,
)

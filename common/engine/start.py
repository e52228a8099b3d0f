"""What happens before a run."""

from __future__ import annotations

from collections.abc import Sequence

from .output_dir import check_output_dir
from .overrides import refuse_unknown_keys
from .readable_errors import make_errors_readable


def start(folders: Sequence[str]) -> None:
    """Refuse misspelt overrides, see to it that errors end readably, and try the folders: a config's first step.

    Args:
        folders: that the run writes into; they are made where they are missing.

    Raises:
        ValueError: see :func:`.refuse_unknown_keys`; on the command line SystemExit.
        OSError: see :func:`.check_output_dir`.
    """
    make_errors_readable()
    refuse_unknown_keys()
    for folder in folders:
        check_output_dir(folder)

"""The error of data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """The user's data cannot be used; the text lists every problem found, one line each."""

    @classmethod
    def of(cls, problems: list[str], where: str) -> DataError:
        """The error for a list of problems: a count, then one line for each."""
        return cls("\n  ".join([f"{len(problems)} problem{'s' * (len(problems) > 1)} in {where}:", *problems]))

"""What is taken away from a prediction at the end, the same for scores and for inference."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import Compose, FillHoles, KeepLargestConnectedComponent

STEPS = {
    "largest_together": (lambda: KeepLargestConnectedComponent(independent=False, is_onehot=False),
                         "of all structures together the largest component"),
    "largest": (lambda: KeepLargestConnectedComponent(is_onehot=False), "of each structure the largest component"),
    "fill_holes": (lambda: FillHoles(connectivity=1), "holes filled"),
}  # fmt: skip


def make_cleanup(steps: Sequence[str]) -> Compose:
    """The transform of a label map ``(1, *spatial)``, or of one mask of that shape.

    Args:
        steps: in this order, out of ``largest_together`` (the largest connected component of all structures as one: for
            those that touch, since a stray that is larger than its structure goes then), ``largest`` (that of each
            structure) and ``fill_holes`` (what a structure encloses becomes that structure, another one inside too: not
            for a cavity in its wall); an empty list changes nothing.

    Raises:
        ValueError: another step.
    """
    if not isinstance(steps, (list, tuple)) or any(step not in list(STEPS) for step in steps):
        raise ValueError(f"cleanup: expected a list out of {', '.join(STEPS)}, found {steps!r}.")
    return Compose([STEPS[step][0]() for step in steps])


def describe_cleanup(steps: Sequence[str]) -> str:
    """In words, for a summary; empty where nothing is done."""
    return ", then ".join(STEPS[step][1] for step in steps)

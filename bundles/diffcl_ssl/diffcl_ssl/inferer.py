"""How a whole scan or photograph goes through the network: by overlapping patches."""

from common.engine import PatchInferer

__all__ = ["PatchInferer"]

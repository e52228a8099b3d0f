"""Networks that two or more bundles use, and what they are built of."""

from .linear_head import find_linear_head, forward_with_features
from .vnet import VNet

__all__ = ["VNet", "find_linear_head", "forward_with_features"]

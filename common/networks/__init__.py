"""Networks that two or more bundles use, and what they are built of."""

from .high_frequency_mamba import HighFrequencyMamba
from .linear_head import find_linear_head, forward_with_features
from .mamba import MambaBlock
from .vnet import VNet

__all__ = ["HighFrequencyMamba", "MambaBlock", "VNet", "find_linear_head", "forward_with_features"]

"""Networks that two or more bundles use, and what they are built of."""

from .efficientnet_lite import EfficientNetLite0
from .features import forward_with_features, forward_with_inputs, linear_classifier
from .high_frequency_mamba import HighFrequencyMamba
from .lite_unet import LiteUNet
from .mamba import MambaBlock
from .vnet import VNet

__all__ = [
    "EfficientNetLite0", "HighFrequencyMamba", "LiteUNet", "MambaBlock", "VNet", "forward_with_features",
    "forward_with_inputs", "linear_classifier",
]  # fmt: skip

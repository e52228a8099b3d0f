"""Losses that do not belong to one method: one idea a file."""

from .bank_contrastive import BankContrastiveLoss, ClassMemoryBank
from .class_statistics import ClassStatistics, GaussianStats
from .dice_ce_region import DiceCERegionLoss
from .expected_cross_entropy import ExpectedCrossEntropyLoss, margin_tables
from .gaussian_contrastive import GaussianContrastiveLoss
from .gaussian_kl import GaussianKLLoss, gaussian_kl
from .spatial_contrastive import SimilarityContrastiveLoss, spatial_similarity
from .symmetric_kl import SymmetricKLLoss

__all__ = [
    "BankContrastiveLoss",
    "ClassMemoryBank",
    "ClassStatistics",
    "DiceCERegionLoss",
    "ExpectedCrossEntropyLoss",
    "GaussianContrastiveLoss",
    "GaussianKLLoss",
    "GaussianStats",
    "SimilarityContrastiveLoss",
    "SymmetricKLLoss",
    "gaussian_kl",
    "margin_tables",
    "spatial_similarity",
]

"""Losses that do not belong to one method: one idea a file."""

from .gaussian_kl import GaussianKLLoss, gaussian_kl
from .spatial_contrastive import SimilarityContrastiveLoss, spatial_similarity

__all__ = ["GaussianKLLoss", "SimilarityContrastiveLoss", "gaussian_kl", "spatial_similarity"]

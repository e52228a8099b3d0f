"""The selective scan of Mamba, on every machine: one function, and the backends it chooses from."""

from .dispatch import available_backends, selective_scan

__all__ = ["available_backends", "selective_scan"]

"""Synthetic scans that several bundles show themselves on, one folder a body part."""

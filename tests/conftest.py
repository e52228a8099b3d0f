import pytest
import torch


@pytest.fixture
def bfloat16_units(monkeypatch):
    """A CPU that computes in bfloat16, whatever this one does."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)

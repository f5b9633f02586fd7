import pytest
import torch


@pytest.fixture
def generator() -> torch.Generator:
    """The same random numbers for every run of every test."""
    return torch.Generator().manual_seed(20240229)

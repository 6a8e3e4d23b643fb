"""What every test shares: no network, few threads, a small run."""

import os
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

from rectiflow.recipes.registry import resolve
from rectiflow.training.generator_config import RunConfig

# No test is timed: machines are busy, and this one with others of its kind.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SMALL = (
    "network={patch: 4, width: 16, depth: 1, heads: 2}",
    "steps=6",
    "batch=8",
    "every={log: 2, held_out: 3, preview: 0, save: 3}",
    "precision=float32",
)


@pytest.fixture(autouse=True, scope="session")
def _threads():
    torch.set_num_threads(1)


@pytest.fixture
def small() -> RunConfig:
    """A run of six steps that takes a fraction of a second."""
    return resolve("digits", settings=SMALL)


def same(left, right):
    """Whether two nested states are equal, tensors to the bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right

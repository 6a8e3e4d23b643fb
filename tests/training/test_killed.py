"""Runs that are killed at any moment, again and again, end as if they had never been."""

import hashlib
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.manifest import read_manifest
from tests.conftest import same
from tests.training.deaths import (
    FAULTS,
    KINDS,
    STEPS,
    Death,
    attempt,
    averages_forgotten,
    killed_outside,
)

OF_TIME = {"seconds", "images_per_second", "waiting_for_data", "utilisation", "memory_mb", "memory_peak_mb"}


def left_by(run, scratch):
    """All that two equal runs have in common: the last checkpoint, every metric but times, the files of the models."""
    found = {}
    for part in (run, run / "autoencoder"):
        if not (part / "run.yaml").is_file():
            continue
        saved = Checkpoints(part / "checkpoints", 2)
        assert saved.newest_good(pytest.fail) == STEPS
        dcp_to_torch_save(saved.shelf.path(STEPS), scratch)
        state = torch.load(scratch, weights_only=False)
        assert state.keys() == {"module", "ema", "optimiser", "guard", "step"}
        assert sum(tensor.numel() for tensor in state["module"].values()) > 1000
        lines = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
        assert sum("loss" in line for line in lines) >= STEPS - 1
        found[part.name if part != run else "run"] = {
            "state": state,
            "metrics": [{name: line[name] for name in sorted(line.keys() - OF_TIME)} for line in lines],
            "metric of the checkpoint": read_manifest(saved.shelf.path(STEPS)).metric,
            "kept": saved.steps(),
        }
    files = [path for name in ("model", "latents") for path in sorted((run / name).glob("*")) if path.name != ".lock"]
    assert len(files) > 1
    found["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    # In these a line of two entries stands in any order.
    found["averages"] = {path.name: load_file(path) for path in (run / "averages").glob("*")}
    return found


def differing(left, right, at=""):
    """Where two nested values differ, tensors to the bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        names = [name for name in {**left, **right} if name not in left or name not in right]
        inner = [d for name in left if name in right for d in differing(left[name], right[name], f"{at}/{name}")]
        return [f"{at}/{name}" for name in names] + inner
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for i, both in enumerate(zip(left, right, strict=True)) for d in differing(*both, f"{at}/{i}")]
    return [] if same(left, right) else [at]


SAVES = [
    "the state is copied",
    "nothing is written",
    "tensors are written",
    "the table is written",
    "hashing",
    "all is hashed",
    "the manifest is written",
    "the checkpoint is renamed",
    "an old one goes",
    "half a model",
    "between the model's renames",
    "the model is renamed",
]
STEP_POINTS = ["a step begins", "gradients are there", "the optimiser has moved"]
DEATHS = {
    "flow": [
        *STEP_POINTS,
        "any change",
        "half a line",
        "the state is copied",
        "the table is written",
        "between the model's renames",
    ],
    "autoencoder": ["between the turns", "the manifest is written", "hashing", "gradients are there", "half a model"],
    "latents": [
        "gradients are there",
        "any change",
        "a shard of latents",
        "a shard without its note",
        "a shard and its note",
        "the optimiser has moved",
        "tensors are written",
    ],
    "shards": ["a step begins", "nothing is written", "an old one goes", "all is hashed", "the model is renamed"],
    "detour": ["gradients are there", "the checkpoint is renamed", "nothing is written", "any change", "half a line"],
}
OUTSIDE = 1
MOST = {"any change": 45, **dict.fromkeys(SAVES, 2), **dict.fromkeys(STEP_POINTS, 4), "half a line": 4}


def plan(kind):
    """The deaths of a kind of run, at random times that are the same each time."""
    draw = random.Random(kind)
    return [Death(point, draw.randint(1, MOST.get(point, 2))) for point in DEATHS[kind]]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """What a run of a kind leaves that was never stopped."""
    found = {}

    def left(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            assert not attempt(kind, folder / "a" / "run")
            found[kind] = left_by(folder / "a" / "run", folder / "state.pt"), folder
        return found[kind]

    return left


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_it_ends_as_if_never_stopped(kind, whole):
    expected, folder = whole(kind)
    run, kills, draw = folder / "b" / "run", 0, random.Random(kind)
    for death in plan(kind):
        assert attempt(kind, run, death), f"it ended before it met: {death}"
        kills += 1
    for _ in range(OUTSIDE):
        kills += killed_outside(kind, run, draw.uniform(0, 0.3))
    kills += attempt(kind, run, Death("half of the last model"))
    assert not attempt(kind, run)
    assert kills == len(DEATHS[kind]) + OUTSIDE + 1
    assert differing(expected, left_by(run, folder / "state.pt")) == []


def test_kills_are_many():
    """Of the test above, that counts them."""
    assert sum(len(deaths) + OUTSIDE + 1 for deaths in DEATHS.values()) >= 40
    assert {death.point for kind in KINDS for death in plan(kind)} >= {*STEP_POINTS, *SAVES}


def test_the_comparison_can_fail(whole):
    """A run of another seed differs, and one that goes on from step 28 with anything but what it should have."""
    for kind, faults in FAULTS.items():
        expected, folder = whole(kind)
        for fault in (None, *faults):
            run = folder / (fault.__name__ if fault else "sound") / "run"
            shutil.copytree(folder / "a" / "run", run)
            for path in (run / "checkpoints").glob(f"step-*{STEPS}"):
                shutil.rmtree(path)
            assert not attempt(kind, run, change=fault)
            found = differing(expected, left_by(run, folder / "state.pt"))
            assert any("/state/" in name for name in found) == (fault is not None), (fault, found)
            if fault is averages_forgotten:
                assert not any("/module/" in name for name in found)
    expected, folder = whole("detour")
    other = folder / "other" / "run"
    assert not attempt("detour", other, seed=1)
    assert any("/module/" in name for name in differing(expected, left_by(other, folder / "state.pt")))

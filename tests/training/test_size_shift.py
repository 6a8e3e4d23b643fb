"""Stills and clips of one run, each under the time shift of its size."""

import pytest
import torch

from rectiflow.data.config import DataConfig
from rectiflow.data.sets import open_set
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.times import Uniform, shift, stratified
from rectiflow.networks.config import VideoDiTConfig
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.stages import FlowStage

STEPS, BATCH = 12, 4


def test_a_still_and_a_clip_in_one_run_see_different_shifts():
    config = RunConfig(
        recipe="test",
        data=DataConfig(set="digit-clips", frames=5, stills=0.5),
        network=VideoDiTConfig(patch=8, width=16, depth=1, heads=2),
        flow=FlowConfig(shift_by_size=True),
        steps=STEPS,
        batch=BATCH,
    )
    stage = FlowStage(config, open_set(config.data), torch.device("cpu"))
    seen = []
    stage.flow.network.register_forward_pre_hook(lambda module, given: seen.append((given[0].shape[2], given[1])))
    for step in range(STEPS):
        stage.loss(step)
        frames, t = seen[-1]
        u = stratified(Uniform(), stage._key("time", step), torch.arange(BATCH), BATCH)
        factor = (3 * 5 * 32 * 32 / 4096) ** 0.5 if frames == 5 else 1.0  # a still has 3072 elements
        assert t.tolist() == pytest.approx(shift(u, factor).tolist(), abs=1e-6)
    assert {frames for frames, _ in seen} == {1, 5}

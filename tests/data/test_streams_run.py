"""Runs on shards: gone on with bit for bit, encoded, and told of by `rectiflow data`."""

import pytest
import torch

from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.data.config import LatentsConfig
from rectiflow.data.latents import fingerprint
from rectiflow.data.sets import open_set
from rectiflow.recipes.registry import resolve
from rectiflow.training.run import INDEX_NAME, read_run, train
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.conftest import SMALL, same
from tests.data.shard_files import opened, settings, write_parquet, write_tar
from tests.training.test_run import QUIET, stop_at


def state(folder):
    """Everything that the newest checkpoint of a run on shards holds."""
    config = read_run(folder)
    stage = FlowStage(config, open_set(config.data, folder / INDEX_NAME), torch.device("cpu"))
    trainer = Trainer(stage, config, folder, torch.device("cpu"))
    assert trainer.restore(print) == config.steps
    return trainer._state()


@pytest.fixture
def run(tmp_path):
    """Six steps of eight on 40 pictures: more than an epoch."""
    write_tar(tmp_path / "set" / "0.tar", range(20))
    write_parquet(tmp_path / "set" / "1.parquet", range(20, 40))
    shards = f'data.shards=["{tmp_path}/set/*.tar", "{tmp_path}/set/*.parquet"]'
    return resolve("folder", settings=[*SMALL, "data.set=shards", shards, "data.size=8", "data.workers=1"])


def test_a_run_on_shards_resumes_bit_for_bit_whatever_has_come_beside_them(run, tmp_path, monkeypatch):
    assert run.data.size == 8
    train(run, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert not train(run, tmp_path / "stopped", QUIET).finished
    write_tar(tmp_path / "set" / "2.tar", range(5))
    assert train(read_run(tmp_path / "stopped"), tmp_path / "stopped", QUIET).finished
    assert same(*(state(tmp_path / name) for name in ("whole", "stopped")))


def test_a_shard_that_is_gone_stops_a_run_that_goes_on_and_its_checkpoint_stays(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        train(run, tmp_path / "run", QUIET)
    (tmp_path / "set" / "0.tar").rename(tmp_path / "away.tar")
    with pytest.raises(InputError, match=r"0\.tar is missing; restore it"):
        train(run, tmp_path / "run", QUIET)
    (tmp_path / "away.tar").rename(tmp_path / "set" / "0.tar")
    assert train(run, tmp_path / "run", QUIET).finished


def test_latents_of_other_shards_are_told_apart(tmp_path):
    path = write_tar(tmp_path / "x.tar", range(20))

    def pictures():
        config = settings(path)
        return fingerprint("sha", opened(path), config, LatentsConfig())["pictures"]

    first = pictures()
    assert pictures() == first
    write_tar(path, range(1, 21))
    assert pictures() != first


def test_the_data_command_tells_of_shards(tmp_path, capsys):
    write_tar(tmp_path / "0.tar", range(30))
    assert main(["data", str(tmp_path / "*.tar"), "--set", "data.size=8", "data.labels=cls"]) == 0
    told = capsys.readouterr().out
    assert "30  pictures in 1 shard of" in told
    assert "2 classes: cat, dog" in told
    assert "  number 1\n" in told
    assert main(["data", str(tmp_path / "gone" / "*.tar")]) == 2
    assert "nothing matches" in capsys.readouterr().err

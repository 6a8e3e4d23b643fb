"""Two processes that train one model: as one process does, whatever way they share it."""

import json
import os
import socket

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from rich.console import Console

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.training.alike import check_alike
from rectiflow.training.config import ParallelConfig
from rectiflow.training.parts import parts
from rectiflow.training.run import train
from tests.conftest import SMALL
from tests.training.test_run import stop_at

QUIET = Console(quiet=True)
FSDP = ParallelConfig(kind="fsdp")
AUTOENCODER = (
    "data={set: digit-scenes, size: null, crop: center, flip: false}",
    "network={width: 8, multipliers: [1, 2], latent_channels: 2, groups: 4, attention: false}",
    "discriminator={width: 8, start: 0.34, lead: 0.17, lecam: 0.01}",
    "steps=6",
    "batch=4",
    "precision=float32",
    "every={log: 1, held_out: 3, preview: 0, first_preview: 0, save: 6}",
)
HSDP = ParallelConfig(kind="fsdp", shard=1)


def asked(**changes):
    config = resolve("digits", settings=(*SMALL, "network.depth=2", "every.preview=6", "every.log=1"))
    return config.model_copy(update=changes)


def _others(rank, port, world, work, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ranks.joined():
        work(folder)


def together(work, folder, world=2):
    """Have `work` done by processes that have joined."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_others, args=(port, world, work, folder), nprocs=world)


def losses(run, names=("loss", "held_out_loss")):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines if name in line] for name in names}


def _each_way(folder):
    train(asked(), folder / "ddp", QUIET)
    train(asked(accumulate=2), folder / "accumulated", QUIET)
    train(asked(parallel=FSDP), folder / "fsdp", QUIET)
    train(asked(parallel=FSDP, accumulate=2, activation_checkpointing=True), folder / "fsdp accumulated", QUIET)
    train(asked(parallel=HSDP), folder / "hsdp", QUIET)
    train(asked(batch=7), folder / "uneven", QUIET)
    train(asked(), folder / "handed on", QUIET)
    train(asked(parallel=FSDP), folder / "handed on to shards", QUIET)


def test_two_processes_are_one(tmp_path, monkeypatch):
    """The same losses at every step as one process has at the same batch and seed, to rounding; and the same model."""
    train(asked(), tmp_path / "whole", QUIET)
    train(asked(batch=7), tmp_path / "whole of 7", QUIET)
    with monkeypatch.context() as patch:
        stop_at(patch, 1)  # one process begins, two go on
        for name in ("handed on", "handed on to shards"):
            assert not train(asked(), tmp_path / name, QUIET).finished
    together(_each_way, tmp_path)
    for name in ("ddp", "accumulated", "fsdp", "fsdp accumulated", "hsdp", "handed on", "handed on to shards"):
        for kind, values in losses(tmp_path / "whole").items():
            found = losses(tmp_path / name)[kind]
            torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-5, msg=f"{name} {kind}")
        model = Pipeline.load(tmp_path / name)
        for one, other in zip(
            model.flow.parameters(), Pipeline.load(tmp_path / "whole").flow.parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert (tmp_path / name / "samples" / "00000006.png").is_file()
    uneven, whole = (losses(tmp_path / name)["loss"] for name in ("uneven", "whole of 7"))
    torch.testing.assert_close(uneven, whole, rtol=1e-4, atol=1e-5)


def _autoencoders(folder):
    from rectiflow.training.autoencoder_config import AutoencoderRunConfig
    from rectiflow.training.run_folder import read_run

    asked = read_run(folder / "whole")
    assert isinstance(asked, AutoencoderRunConfig)
    train(asked, folder / "pair", QUIET)


def test_two_processes_train_an_autoencoder_against_its_discriminator(tmp_path):
    """As one process does that takes the batch in two parts: the adaptive weight is each part's own."""
    config = resolve("autoencoder", settings=AUTOENCODER)
    train(config.model_copy(update={"accumulate": 2}), tmp_path / "in parts", QUIET)
    train(config, tmp_path / "whole", QUIET)
    together(_autoencoders, tmp_path)
    names = ("loss", "loss_discriminator", "logits_real", "adaptive_weight", "held_out_psnr")
    pair, parts_of_one, whole = (losses(tmp_path / name, names) for name in ("pair", "in parts", "whole"))
    assert len(pair["loss_discriminator"]) == 4
    for name in names:
        torch.testing.assert_close(pair[name], parts_of_one[name], rtol=2e-3, atol=2e-3, msg=name)
    assert pair["logits_real"] != whole["logits_real"]


def _latents_of_a_folder(folder):
    from rectiflow import workflow
    from tests.test_workflow import SMALL as LATENT

    pictures = f"data={{set: folder, dir: {folder / 'pictures'}, size: 8, colour: grey, workers: 0}}"
    outcome = workflow.run(resolve("latent", settings=(*LATENT, pictures)), folder / "run", QUIET)
    assert outcome.finished
    assert outcome.trained


def test_two_processes_begin_a_run_of_latents_of_a_folder(tmp_path):
    """Of the autoencoder's pictures too, which are the run's, the others take what the first one found."""
    (tmp_path / "pictures").mkdir()
    draws = np.random.default_rng(0)
    for number in range(8):
        pixels = draws.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    together(_latents_of_a_folder, tmp_path)
    for part in ("run", "run/autoencoder"):
        assert (tmp_path / part / "model" / "config.json").is_file()
        assert (tmp_path / part / "inventory").is_dir()


def test_parts_of_all_processes_are_the_batch(monkeypatch):
    config = asked(batch=11, accumulate=2)
    found = []
    monkeypatch.setattr(ranks, "world", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found += parts(config)
    assert [i for part in found for i in range(11)[part]] == list(range(11))
    assert {part.stop - part.start for part in found} == {1, 2}


def test_what_processes_cannot_do_is_told(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"fsdp is for several processes.*torchrun"):
        train(asked(parallel=FSDP), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
    for recipe, setting, words in (
        ("digits", "parallel.shard=2", r"parallel.shard=2 is of parallel.kind=fsdp"),
        ("digits", "optimiser.kind=muon", "optimiser.kind=muon needs whole matrices"),
        ("vae", "steps=2", "recipe vae cannot be trained in shards"),
        ("autoencoder", "steps=2", "recipe autoencoder cannot be trained in shards"),
    ):
        kind = "ddp" if "shard" in setting else "fsdp"
        with pytest.raises(InputError, match=words):
            resolve(recipe, settings=[setting, f"parallel.kind={kind}"])
    monkeypatch.setattr(ranks, "world", lambda: 9)
    with pytest.raises(InputError, match=r"^batch=8 is too small for 9 processes.*at least 9"):
        train(asked(), tmp_path / "run", QUIET)


def test_processes_of_two_minds_are_named(monkeypatch):
    mine = asked()
    monkeypatch.setattr(ranks, "started", lambda: True)
    monkeypatch.setattr(ranks, "gather", lambda said: [said, said])
    check_alike(mine.model_dump(mode="json"))

    def other(said):
        settings = {**said["settings"], "batch": 16, "optimiser": {**said["settings"]["optimiser"], "lr": 1.0}}
        return [said, {**said, "settings": settings, "code of rectiflow": "another"}]

    monkeypatch.setattr(ranks, "gather", other)
    with pytest.raises(
        InputError, match=r"process 1 differs from process 0 in code of rectiflow, batch, optimiser.lr;"
    ):
        check_alike(mine.model_dump(mode="json"))

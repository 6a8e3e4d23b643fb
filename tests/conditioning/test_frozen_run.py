"""Whole runs that are told captions by a frozen encoder and a learned one together."""

import csv
import json
import logging
import shutil
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image
from rich.console import Console

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.conditioning.cache import Cached
from rectiflow.conditioning.frozen import Frozen
from rectiflow.conditioning.tokens import Tokens
from rectiflow.data.sets import open_set
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.request import Request
from rectiflow.training.run_folder import read_run
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from rectiflow.training.weights_at import weights_at
from tests.conditioning.tiny import encoder
from tests.conftest import same

CPU = torch.device("cpu")
QUIET = Console(quiet=True)
PROMPTS = ("a red 7 in the top left", "a blue 3 above a green 4")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of 40 pictures, each with two captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text"])
        for i in range(40):
            Image.new("RGB", (8, 8), (6 * i, 255 - 6 * i, 90)).save(folder / f"{i:02d}.png")
            rows.writerow([f"{i:02d}.png", f"a picture of green {i}"])
    for i in range(5):
        Image.new("RGB", (8, 8), (6 * i, 9, 90)).save(folder / f"more {i}.png")
        (folder / f"more {i}.txt").write_text(f"first of {i}\nsecond of {i}\n")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """Captions that frozen encoders were asked for."""
    seen, original = [], Frozen.encode
    monkeypatch.setattr(Frozen, "encode", lambda self, captions: seen.extend(captions) or original(self, captions))
    return seen


def config_of(tmp_path, pictures, *more, kinds=("t5",), embed=False):
    each = []
    for kind in kinds:
        if not (tmp_path / kind).exists():
            encoder(tmp_path / kind, kind)
        each.append({"kind": "frozen", "name": str(tmp_path / kind), "embed": embed})
    both = [*each, {"kind": "learned", "vocabulary": 270, "length": 16, "depth": 1, "width": 32}]
    settings = (
        f"data={{set: folder, dir: '{pictures}', size: 8, held_out: 0.2}}",
        "latent=null",
        "network={kind: mmdit, patch: 4, width: 32, depth: 1, heads: 2}",
        f"text={{encoders: {json.dumps(both)}}}",
        "preview={count: 1, rows: 2, steps: 2}",
        *("steps=6", "batch=8", "every={log: 2, held_out: 3, preview: 3, save: 3}"),
        *("precision=float32", "compile=false", "device=cpu"),
    )
    return resolve("scenes", settings=[*settings, *more])


def run(config, folder):
    return workflow.run(config, folder, QUIET)


def stop_at(monkeypatch, step):
    original = Trainer._train

    def interrupted(self, current):
        if current == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, current)

    monkeypatch.setattr(Trainer, "_train", interrupted)


def weights(folder):
    return (folder / "model" / "flow.safetensors").read_bytes()


def test_two_encoders_train_and_sample(tmp_path, pictures, asked):
    config = config_of(tmp_path, pictures, kinds=("t5", "clip"))
    assert run(config, tmp_path / "run").finished
    pipeline = Pipeline.load(tmp_path / "run")
    assert [type(each) for each in pipeline.conditioner.encoders] == [Frozen, Frozen, Tokens]
    assert [each.gives.kind for each in pipeline.conditioner.encoders] == ["states", "states", "tokens"]
    assert (pipeline.network_config.texts[1].features, pipeline.network_config.texts[1].pooled) == (32, 32)
    pixels = pipeline.sample(Request(prompts=PROMPTS, steps=4, guidance=1.0)).pixels
    assert pixels.isfinite().all()
    assert not torch.equal(pixels[0], pixels[1])
    single = pipeline.sample(Request(prompts=PROMPTS[:1], steps=4, guidance=1.0)).pixels
    torch.testing.assert_close(single[0], pixels[0], atol=1e-4, rtol=1e-4)
    record = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["texts"][0]
    assert record["name"] == str(tmp_path / "t5")
    assert len(record["sha256"]) == 64
    out = tmp_path / "out.png"
    assert main(["sample", str(tmp_path / "run"), "--prompt", PROMPTS[0], "--steps", "2", "--out", str(out)]) == 0
    assert out.exists()
    state = pipeline.flow.state_dict()
    assert same(weights_at(tmp_path / "run", 6, state)[0], state)


def test_each_caption_is_encoded_once_and_never_in_training(tmp_path, pictures, asked, monkeypatch):
    config = config_of(tmp_path, pictures)
    during = []
    original = Trainer.fit

    def fit(self, *arguments):
        during.append(len(asked))
        assert [type(each) for each in self.stage.encoders] == [Cached, Tokens]
        assert self.stage.encoders[0].encoder._model is None
        done = original(self, *arguments)
        assert self.stage.encoders[0].encoder._model is None
        return done

    monkeypatch.setattr(Trainer, "fit", fit)
    run(config, tmp_path / "run")
    assert len(asked) == during[0]  # neither batches nor previews nor held-out losses
    cached = tmp_path / "run" / "captions" / "encoder-0"
    manifest = json.loads((cached / "captions.json").read_text())
    assert sum(shard["captions"] for shard in manifest["shards"]) == 50  # both captions of the five
    assert {f"second of {i}" for i in range(5)} <= set(asked)
    shutil.rmtree(tmp_path / "run" / "model")
    asked.clear()
    assert run(read_run(tmp_path / "run"), tmp_path / "run").trained  # the model alone is written again
    assert asked == []


@pytest.mark.parametrize("step", [0, 4])
def test_resumed_is_never_stopped_bit_for_bit(step, tmp_path, pictures, monkeypatch):
    config = config_of(tmp_path, pictures)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        assert not run(config, tmp_path / "stopped").finished
    assert run(read_run(tmp_path / "stopped"), tmp_path / "stopped").finished
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")


def test_stopped_while_captions_are_encoded_it_goes_on(tmp_path, pictures, monkeypatch):
    config = config_of(tmp_path, pictures)
    run(config, tmp_path / "whole")
    monkeypatch.setattr("rectiflow.conditioning.cache_writer._SHARD", 10)
    with monkeypatch.context() as patch:
        original, calls = Frozen.encode, []

        def failing(self, captions):
            calls.append(captions)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return original(self, captions)

        patch.setattr(Frozen, "encode", failing)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "stopped")
    assert list((tmp_path / "stopped" / "captions" / "encoder-0").glob("*.arrow"))
    assert run(config, tmp_path / "stopped").finished
    whole, other = (Pipeline.load(tmp_path / name) for name in ("whole", "stopped"))
    for one, two in zip(whole.flow.parameters(), other.flow.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)


def test_runs_share_a_cache(tmp_path, pictures, asked):
    more = f"text.cache={tmp_path / 'shared'}"
    run(config_of(tmp_path, pictures, more), tmp_path / "one")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*.arrow")}
    assert before
    asked.clear()
    run(config_of(tmp_path, pictures, more, "seed=1"), tmp_path / "two")
    assert len(asked) <= 16  # of the trial step alone
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("*.arrow")} == before
    assert not (tmp_path / "two" / "captions").exists()


def test_another_encoder_in_the_same_place_is_refused(tmp_path, pictures, monkeypatch):
    config = config_of(tmp_path, pictures)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        run(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "t5")
    encoder(tmp_path / "t5", "t5", seed=1)
    with pytest.raises(InputError, match="captions/encoder-0 was made by another encoder"):
        run(read_run(tmp_path / "run"), tmp_path / "run")
    with pytest.raises(InputError, match=r"not the text encoder that .* was trained with"):
        Pipeline.load(tmp_path / "run")
    shutil.rmtree(tmp_path / "t5")
    with pytest.raises(InputError, match="put it back there"):
        Pipeline.load(tmp_path / "run")
    assert main(["info", str(tmp_path / "run")]) == 0  # tells of a model whose encoder is gone


@pytest.mark.parametrize("latent", ["latent=null", "latent={}"])
def test_a_missing_encoder_is_told_before_the_pictures_are_looked_into(tmp_path, pictures, monkeypatch, latent):
    def never(*given):
        raise AssertionError

    config = config_of(tmp_path, pictures, latent)
    shutil.rmtree(tmp_path / "t5")
    monkeypatch.setattr("rectiflow.data.inventory._facts", never)
    with pytest.raises(InputError, match=r"no text encoder at .*t5"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_embedded_encoder_goes_with_the_model(tmp_path, pictures):
    run(config_of(tmp_path, pictures, embed=True), tmp_path / "run")
    before = Pipeline.load(tmp_path / "run").sample(Request(prompts=PROMPTS, steps=3)).pixels
    shutil.rmtree(tmp_path / "t5")
    shutil.move(tmp_path / "run" / "model", tmp_path / "moved")
    pipeline = Pipeline.load(tmp_path / "moved")
    assert torch.equal(pipeline.sample(Request(prompts=PROMPTS, steps=3)).pixels, before)
    pipeline.save(tmp_path / "again")
    assert torch.equal(Pipeline.load(tmp_path / "again").sample(Request(prompts=PROMPTS, steps=3)).pixels, before)
    pipeline.save(tmp_path / "moved")  # in its own place
    assert torch.equal(Pipeline.load(tmp_path / "moved").sample(Request(prompts=PROMPTS, steps=3)).pixels, before)


def test_a_negative_prompt_is_what_guidance_leads_away_from(tmp_path, pictures):
    run(config_of(tmp_path, pictures, kinds=("clip",)), tmp_path / "run")
    pipeline = Pipeline.load(tmp_path / "run")
    draws = torch.Generator().manual_seed(0)
    for parameter in pipeline.flow.parameters():  # six steps teach too little
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    w, steps, negative = 1.5, 4, "a green 9"
    request = Request(prompts=PROMPTS, steps=steps, guidance=w, negative=negative)
    first, *_ = pipeline.states(request)
    given = [pipeline.condition(torch.full((2,), -1), texts) for texts in (PROMPTS, [negative] * 2)]
    x, times = first.x_t, torch.linspace(1, 0, steps + 1).tolist()
    with torch.no_grad():
        for t, s in pairwise(times):
            at = torch.full((2,), t)
            v_y, v_neg = (pipeline.flow(x, at, condition).velocity for condition in given)
            x = x + (s - t) * ((1 + w) * v_y - w * v_neg)
    found = pipeline.sample(request).pixels
    torch.testing.assert_close(found, pipeline.autoencoder.decode(x, (8, 8)), atol=2e-4, rtol=1e-4)
    plain = pipeline.sample(replace(request, negative="")).pixels
    assert (found - plain).abs().max() > 0.01


def test_dropout_of_one_encoder(tmp_path, pictures):
    config = config_of(tmp_path, pictures, "condition_dropout=0.2")
    first, second = config.text.encoders
    text = config.text.model_copy(
        update={"encoders": (first.model_copy(update={"dropout": 0.3}), second.model_copy(update={"dropout": 0.5}))}
    )
    config = config.model_copy(update={"text": text})
    stage = FlowStage(config, open_set(config.data), CPU)
    count = 4000
    condition = stage._condition(torch.full((1,), -1), ["a red 7"], None)
    condition = Condition.concatenate([condition] * count)
    kept = [text.mask.any(1) for text in stage._dropped(condition, 5, torch.arange(count)).texts]
    share = [float(each.float().mean()) for each in (*kept, kept[0] & kept[1], ~kept[0] & ~kept[1])]
    expected = [0.8 * 0.7, 0.8 * 0.5, 0.8 * 0.7 * 0.5, 0.2 + 0.8 * 0.3 * 0.5]
    assert share == pytest.approx(expected, abs=0.03)
    again = [text.mask.any(1) for text in stage._dropped(condition, 5, torch.arange(count)).texts]
    assert all(map(torch.equal, kept, again))


def test_a_prompt_that_is_too_long_is_told(tmp_path, pictures, caplog):
    run(config_of(tmp_path, pictures), tmp_path / "run")
    pipeline = Pipeline.load(tmp_path / "run")
    with caplog.at_level(logging.WARNING, "rectiflow"):
        pipeline.sample(Request(prompts=["seven " * 40], steps=2))
    assert any("is cut to the 16 of" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("where", ["_encoded", "_loaded"])
def test_an_encoder_that_finds_no_room_says_what_does(tmp_path, pictures, monkeypatch, where):
    """No setting of batches helps there, so none is told."""

    def full(self, *given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Frozen, where, full)
    with pytest.raises(InputError, match=r"^cpu had no memory left for the text encoder .*t5: name a smaller one"):
        workflow.run(config_of(tmp_path, pictures), tmp_path / "run", QUIET)

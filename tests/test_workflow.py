"""Autoencoder → latents → flow → scores as one restartable whole, small."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.models.autoencoder import digest, load_autoencoder
from rectiflow.pipeline import Pipeline, Request
from rectiflow.recipes.registry import resolve, with_settings
from rectiflow.training.run import train
from rectiflow.training.run_folder import read_run
from rectiflow.training.trainer import Trainer

EVERY = "{log: 2, held_out: 0, preview: 0, first_preview: 0, save: 3}"
FIRST = (
    "latent.train.network={width: 8, multipliers: [1, 2], latent_channels: 3, groups: 4, linear: true}",
    "latent.train.discriminator={width: 8, layers: 1}",
    "latent.train.steps=4",
    "latent.train.batch=4",
    f"latent.train.every={EVERY}",
    "latent.train.precision=float32",
)
SMALL = (
    *FIRST,
    "data={set: digits, size: null}",
    "network={patch: 2, width: 16, depth: 1, heads: 2}",
    "steps=4",
    "batch=8",
    f"every={EVERY}",
    "preview.steps=4",
    "precision=float32",
)


def config(*settings):
    return resolve("latent", settings=(*SMALL, *settings))


@pytest.fixture
def console():
    return Console(record=True, width=300, force_terminal=False, file=open("/dev/null", "w"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Few samples in the report; its figures are tested elsewhere."""
    monkeypatch.setattr(workflow, "_MOST", 40)


def test_one_command_leaves_one_model(tmp_path, console):
    run = tmp_path / "run"
    outcome = workflow.run(config(), run, console)
    assert outcome.finished
    assert sorted(p.name for p in (run / "model").iterdir()) == [
        "autoencoder.safetensors",
        "config.json",
        "flow.safetensors",
    ]
    pipeline = Pipeline.load(run)
    assert isinstance(pipeline.autoencoder, LatentSpace)
    assert digest(pipeline.autoencoder) == digest(load_autoencoder(str(run / "autoencoder")))
    samples = pipeline.sample(Request(classes=["3"], count=2, steps=3))
    assert samples.pixels.shape == (2, 1, 8, 8)
    assert json.loads((run / "evaluation" / "report.json").read_text())["scores"]["count"] == 40
    assert main(["sample", str(run), "--count", "1", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert main(["sample", str(run / "autoencoder"), "--count", "2", "--out", str(tmp_path / "prior.png")]) == 0
    assert main(["info", str(run)]) == 0
    # Everything is there: nothing is done again.
    times = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert not workflow.run(config(), run, console).trained
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_each_stage_goes_on_where_it_was_stopped(tmp_path, console, monkeypatch, capsys):
    """Cut off in stage 1, in encoding and in stage 2, it ends with the weights of one never stopped."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    workflow.run(config(), whole, console)
    original, cut = Trainer._train, {"autoencoder", "latent"}

    def failing(self, step):
        if step == 3 and self.config.recipe in cut:
            cut.remove(self.config.recipe)
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(Trainer, "_train", failing)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config(), run, console)
    assert read_run(run).recipe == "latent"  # it can be gone on with by --resume from the start
    encode = workflow.encode_set
    monkeypatch.setattr(workflow, "encode_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(InputError, match=r"other settings \(latent\.train\.batch; "):
        workflow.run(with_settings(read_run(run), ["latent.train.batch=2", "latent.train.keep=1"]), run, console)
    now = ["latent.train.keep=1", "latent.train.every.save=1"]
    assert not workflow.run(with_settings(read_run(run), now), run, console).finished
    assert [path.name for path in (run / "autoencoder" / "checkpoints").iterdir()] == ["step-00000004"]
    assert (read_run(run).latent.train.keep, read_run(run).latent.train.every.save) == (1, 1)  # --resume alone has them
    assert "whole shards are kept" in console.export_text(clear=False)
    assert main(["train", "--resume", str(run)]) == 130
    assert f"Go on: rectiflow train --resume {run}" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(workflow, "encode_set", encode)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(read_run(run), run, console)
    assert workflow.run(read_run(run), run, console).finished
    for name in ("flow.safetensors", "autoencoder.safetensors"):
        assert (run / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_an_autoencoder_can_be_taken_and_is_watched(tmp_path, console):
    first = resolve("autoencoder", settings=[s.removeprefix("latent.train.") for s in FIRST])
    first = first.model_copy(update={"data": config().data})
    workflow.run(first, tmp_path / "ae", console)
    run, asked = tmp_path / "run", config(f"latent.autoencoder={tmp_path / 'ae'}")
    workflow.run(asked, run, console)
    assert not (run / "autoencoder").exists()
    # Another autoencoder in its place: the latents are refused, and nothing is touched.
    other = first.model_copy(update={"seed": 1})
    workflow.run(other, tmp_path / "other", console)
    (tmp_path / "ae").rename(tmp_path / "ae-old")
    (tmp_path / "other").rename(tmp_path / "ae")
    (run / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"latents was made by another autoencoder"):
        workflow.run(read_run(run), run, console)


def test_stage_2_sees_a_draw_of_the_normalised_latents(tmp_path, console):
    run = tmp_path / "run"
    workflow.run(config(), run, console)
    space = load_autoencoder(str(run / "autoencoder"))
    from rectiflow.data.builtin import digits
    from rectiflow.data.latents import fingerprint, open_latents
    from rectiflow.training.stages import FlowStage, Latents

    settings = read_run(run)
    data = digits()
    made_by = fingerprint(digest(space), data, settings.data, settings.latent.cache)
    latents = open_latents(run / "latents", made_by, data)
    stage = FlowStage(settings, data, torch.device("cpu"), Latents(space, latents))
    x, condition, _ = stage._batch(0, slice(None))
    again, _, _ = stage._batch(0, slice(None))
    assert torch.equal(x, again)
    assert x.shape == (8, 3, 4, 4)
    assert condition is not None
    many = torch.cat([stage._batch(step, slice(None))[0] for step in range(100)])
    assert many.mean((0, 2, 3)).abs().max() < 0.15
    torch.testing.assert_close(many.std((0, 2, 3)), torch.ones(3), rtol=0.15, atol=0)
    assert next(iter(stage._held_out_batches()))[0].shape[1:] == (3, 4, 4)


def test_a_preset_for_256_pixels_runs_small(tmp_path, console):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(draws.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    tiny = [s for s in FIRST if not s.startswith("latent.train.network")]
    asked = resolve(
        "latent-256",
        settings=[
            *tiny,
            f"data={{dir: {folder}, size: 32}}",
            "latent.train.network={width: 8, groups: 4, blocks: 1}",
            "network={width: 16, depth: 1, heads: 2}",
            "steps=2",
            "batch=2",
            f"every={EVERY}",
            "precision=float32",
        ],
    )
    workflow.run(asked, tmp_path / "run", console)
    pipeline = Pipeline.load(tmp_path / "run")
    assert pipeline.sample(Request(count=1, steps=2)).pixels.shape == (1, 3, 32, 32)
    assert pipeline.autoencoder.latent_shape((3, 256, 256)) == (16, 32, 32)
    assert pipeline.sample(Request(count=1, steps=2, size=(30, 46))).pixels.shape == (1, 3, 30, 46)  # padded, cropped
    with pytest.raises(InputError, match=r"24×40 have latents of 3×5, which the network's 2 does not.*is 32×32"):
        pipeline.sample(Request(count=1, steps=2, size=(24, 40)))
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    assert main(["evaluate", str(tmp_path / "run" / "autoencoder"), "--count", "20"]) == 0
    report = json.loads((tmp_path / "run" / "autoencoder" / "evaluation" / "report.json").read_text())
    assert report["reconstruction"]["count"] == report["count"]


def test_bad_calls_are_one_line(tmp_path, capsys):
    assert main(["train", "latent", "--autoencoder", str(tmp_path / "none"), "--run", str(tmp_path / "r")]) == 2
    assert main(["encode", str(tmp_path), "--out", str(tmp_path / "o"), "--set", "data.set=digits", "data.size=8"]) == 2
    coarse = ["data.set=digits", "data.size=8", "network.preset=f16"]
    assert main(["train", "autoencoder", "--set", *coarse, "--run", str(tmp_path / "a")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("rectiflow: ") for line in lines)


def refused(asked, folder, console, words):
    with pytest.raises(InputError, match=words):
        workflow.run(asked, folder, console)
    assert not folder.exists()


def test_what_cannot_begin_leaves_nothing_behind(tmp_path, console):
    """So that the corrected command is not refused for the settings of the mistaken one."""
    run = tmp_path / "run"
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"_class_name": "AutoencoderDC"}')
    refused(config(f"latent.autoencoder={strange}"), run, console, "expected AutoencoderKL")
    refused(
        config("latent.train.network={multipliers: [1, 1, 1, 1, 1]}"), run, console, "trains on sides that 16 divides"
    )
    refused(config("network.patch=3"), run, console, r"network's 3 does not divide; the nearest size is")
    first = resolve("autoencoder", settings=[s.removeprefix("latent.train.") for s in FIRST])
    first = first.model_copy(
        update={"data": config().data, "network": first.network.model_copy(update={"linear": False})}
    )
    coloured = config("data.set=digit-scenes")
    workflow.run(first, tmp_path / "grey", console)
    refused(
        coloured.model_copy(
            update={"latent": coloured.latent.model_copy(update={"autoencoder": str(tmp_path / "grey")})}
        ),
        run,
        console,
        r"takes 1 channels; the data have 3. Use data.colour=grey",
    )
    assert workflow.run(config(), run, console).finished


def test_a_bridge_in_latents(tmp_path, console):
    """From one folder's pictures to another's; it begins, goes on and samples."""
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(draws.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    asked = config(
        f"data={{set: folder, dir: {tmp_path / 'a'}, size: 8, source_dir: {tmp_path / 'b'}}}", "flow.source=pictures"
    )
    assert workflow.run(asked, tmp_path / "run", console).finished
    assert (
        main(["sample", str(tmp_path / "run"), "--count", "1", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    )


def test_a_report_on_an_older_model_is_made_again(tmp_path, console):
    run = tmp_path / "run"
    workflow.run(config(), run, console)
    path = run / "evaluation" / "report.json"
    report = json.loads(path.read_text())
    report["model"]["model_step"] = 2
    path.write_text(json.dumps(report))
    workflow.run(config(), run, console)
    assert json.loads(path.read_text())["model"]["model_step"] == 4


def test_settings_that_cannot_be(tmp_path, capsys):
    for settings, words in (
        (["compile=true"], "set compile=false or discriminator.weight=0"),
        (["loss.absolute=0", "loss.structure=0"], "a reconstruction needs one of them"),
        (["network.multipliers=[1, 2]", "data.set=digits", "data.size=8"], "network.linear=false"),
    ):
        assert main(["train", "autoencoder", "--set", *settings, "--run", str(tmp_path / "r")]) == 2
        assert words in capsys.readouterr().err
    assert main(["train", "digits", "--autoencoder", str(tmp_path), "--run", str(tmp_path / "r")]) == 2
    assert "takes no --autoencoder" in capsys.readouterr().err


@pytest.fixture
def autoencoder(tmp_path, console):
    """The run of an autoencoder of the digits."""
    first = resolve("autoencoder", settings=[s.removeprefix("latent.train.") for s in FIRST])
    first = first.model_copy(update={"data": config().data})
    workflow.run(first, tmp_path / "ae", console)
    return tmp_path / "ae"


def doctored(folder, change):
    path = folder / "model" / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_an_unfinished_autoencoder_is_said(tmp_path, console, autoencoder):
    doctored(autoencoder, lambda values: values["training"].update(step=2))
    assert workflow.run(config(f"latent.autoencoder={autoencoder}"), tmp_path / "run", console).finished
    assert f"the autoencoder {autoencoder} was stopped after step 2 of 4" in console.export_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["autoencoder"]["network"].update(width=10**9), "width: input should be less than or equal to"),
        (lambda v: v["autoencoder"]["network"].update(width=0), "width: input should be greater than or equal to 1"),
        (lambda v: v["autoencoder"]["network"].update(multipliers=[1, 10**9]), "less than or equal to 256"),
        (lambda v: v["autoencoder"]["network"].update(width=2**14, multipliers=[1, 256]), "asks for"),
        (lambda v: v["autoencoder"].update(mean=[0.0]), "for each of the 3 latent channels, received 1 and 3"),
        (lambda v: v["autoencoder"].update(deviation=[1.0, 0.0, 1.0]), "greater than 0"),
        (lambda v: v.update(shape=[3, 8, 8]), "does not suit a network of 1 channels"),
    ],
)
def test_a_doctored_autoencoder_is_one_line(tmp_path, capsys, autoencoder, change, words):
    doctored(autoencoder, change)
    capsys.readouterr()
    assert main(["sample", str(autoencoder), "--out", str(tmp_path / "x.png")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_what_is_not_for_autoencoders_is_refused(tmp_path, capsys, autoencoder):
    run = str(autoencoder)
    for arguments, words in (
        (["evaluate", run, "--likelihood"], "leave out --likelihood"),
        (["evaluate", run, "--steps", "9"], "leave out --steps"),
        (["average", run, "--length", "0.1", "--out", str(tmp_path / "out")], "is an autoencoder's run"),
        (["evaluate", run, "--device", "cud"], "Did you mean 'cuda'"),
        (["compare", run, "--device", "cud"], "Did you mean 'cuda'"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for command in ("info", "sample"):
        assert main([command, str(tmp_path / "foreign")]) == 2
        assert "rectiflow train latent --autoencoder" in capsys.readouterr().err


def test_the_report_is_made_on_the_runs_device(tmp_path, console, monkeypatch):
    asked = []
    monkeypatch.setattr(workflow, "resolve_device", lambda name: (asked.append(name), torch.device("cpu"))[1])
    load = Pipeline.load
    monkeypatch.setattr(
        Pipeline, "load", lambda folder, device="absent": (asked.append(device), load(folder, device))[1]
    )
    workflow.run(config("device=cpu"), tmp_path / "run", console)
    assert asked[-2:] == ["cpu", "cpu"]


def test_a_bridge_is_scored_from_its_held_out_sources(tmp_path, console):
    draws = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(60):
            Image.fromarray(draws.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    folders = f"dir: {tmp_path / 'a'}, source_dir: {tmp_path / 'b'}"
    asked = config(f"data={{set: folder, size: 8, held_out: 0.4, {folders}}}", "flow.source=pictures")
    assert workflow.run(asked, tmp_path / "run", console).finished
    assert (tmp_path / "run" / "evaluation" / "report.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((), r"latent\.train\.batch=4 is too small for 6 processes.*set latent\.train\.batch=6 in another"),
        (("latent.train.batch=6", "batch=5"), r"^batch=5 is too small for 6 processes"),
        (("latent.train.batch=6", "accumulate=2"), r"^batch=8 is too small for 6 processes with accumulate=2"),
    ],
)
def test_a_stage_that_so_many_processes_cannot_share_is_told_before_the_first(
    tmp_path, console, monkeypatch, settings, words
):
    monkeypatch.setattr(ranks, "world", lambda: 6)
    with pytest.raises(InputError, match=words):
        workflow.run(config(*settings), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_done_is_not_asked_for_its_batch(tmp_path, console, monkeypatch):
    run = tmp_path / "run"
    asked = config()
    first = asked.latent.train.model_copy(update={"data": asked.data})
    assert train(first, run / "autoencoder", console).finished
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "world", lambda: 6)
        with pytest.raises(InputError, match=r"^batch=8 is too small for 6 processes with accumulate=2"):
            workflow._check_processes(config("accumulate=2"), run)
        workflow._check_processes(config(), run)

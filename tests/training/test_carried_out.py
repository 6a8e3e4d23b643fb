"""What may change when a run goes on, what is a choice of its own, and whose folder it is meanwhile."""

import shutil
import signal
from contextlib import contextmanager

import pytest
import yaml
from rich.console import Console

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.recipes.registry import resolve, with_settings
from rectiflow.training import run as run_module
from rectiflow.training import run_folder
from rectiflow.training.run import train
from rectiflow.training.run_folder import former_run, read_run, write_settings
from rectiflow.training.status import status_of
from tests.training.test_run import stop_at

QUIET = Console(quiet=True)


def begun(config, folder):
    """A run's folder, as far as it says what run it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


@pytest.mark.parametrize(
    "setting",
    ["latent.cache.batch=1", "latent.cache.shard=7", "preview.count=1", "preview.rows=2", "preview.guidance=0"],
)
def test_what_is_encoded_at_once_and_what_is_shown_may_change(tmp_path, setting):
    now = with_settings(begun(resolve("latent"), tmp_path), [setting])
    assert former_run(now, tmp_path) == now != read_run(tmp_path)


def test_so_may_what_an_autoencoder_shows(tmp_path):
    now = with_settings(begun(resolve("autoencoder"), tmp_path), ["preview=3"])
    assert former_run(now, tmp_path) == now
    now = with_settings(begun(resolve("latent"), tmp_path), ["latent.train.preview=3"])
    assert former_run(now, tmp_path) == now


@pytest.mark.parametrize("setting", ["latent.cache.seed=1", "latent.cache.dtype=bfloat16", "latent.cache.variants=2"])
def test_what_latents_are_may_not(tmp_path, setting):
    now = with_settings(begun(resolve("latent"), tmp_path), [setting])
    with pytest.raises(InputError, match=rf"other settings \({setting.partition('=')[0]}; "):
        former_run(now, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "there", "name"),
    [
        ("autoencoder", ["discriminator.lr=0.01"], "discriminator.lr"),
        ("latent", ["latent.train.discriminator.lr=0.01"], "latent.train.discriminator.lr"),
        ("folder", ["data.dir=x", "data.size=8", "data.crop=random", "data.scale=[0.5, 1]"], "data.scale"),
        ("video", ["data.dir=x", "data.rate=10"], "data.rate"),
    ],
)
def test_none_is_a_choice_where_nobody_else_chooses(tmp_path, recipe, there, name):
    now = with_settings(begun(resolve(recipe, settings=there), tmp_path), [f"{name}=null"])
    with pytest.raises(InputError, match=rf"other settings \({name}; "):
        former_run(now, tmp_path)
    assert former_run(read_run(tmp_path), tmp_path) == read_run(tmp_path)


def test_what_is_left_to_the_data_or_the_machine_is_no_difference(tmp_path):
    left = ["data.size=null", "data.colour=auto", "precision=auto", "device=auto", "network.channels=null"]
    left += ["latent.train.precision=auto", "latent.train.network.channels=null"]
    chosen = ["data.size=32", "data.colour=grey", "precision=float32", "device=cpu", "network.channels=4"]
    chosen += ["latent.train.precision=float32", "latent.train.network.channels=1"]
    there = begun(resolve("latent", settings=["data.dir=x", *chosen]), tmp_path)
    assert former_run(with_settings(there, left), tmp_path) == there


def test_a_folder_is_cleared_while_it_is_still_held(tmp_path, monkeypatch):
    """Afterwards what lies there may be another job's."""
    left = []
    release = run_folder.FileLock.release

    def released(self, *given):
        left.append((tmp_path / "run").exists())
        return release(self, *given)

    with run_folder.alone_in(tmp_path / "run"):
        monkeypatch.setattr(run_folder.FileLock, "release", released)
    assert left[:1] == [False]


@pytest.mark.parametrize("of", ["pixels", "latents"])
def test_a_run_that_another_job_began_meanwhile_is_not_written_over(small, tmp_path, monkeypatch, of):
    module = run_module if of == "pixels" else workflow
    mine = small if of == "pixels" else resolve("latent")
    theirs = mine.model_copy(update={"seed": 5})
    alone = module.alone_in

    @contextmanager
    def late(folder):
        with alone(folder):
            write_settings(theirs, folder)
            yield

    monkeypatch.setattr(module, "alone_in", late)
    with pytest.raises(InputError, match=r"other settings \(seed; "):
        workflow.run(mine, tmp_path / "run", QUIET)
    assert read_run(tmp_path / "run").seed == 5


def test_all_processes_hold_a_run_finished_that_the_first_does(tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "finished", lambda *_: False)
    monkeypatch.setattr(workflow, "from_first", lambda _: True)
    assert not workflow._Workflow(resolve("latent"), tmp_path, QUIET).run().trained


def test_a_stage_that_starts_from_another_of_its_run_goes_on_where_the_run_is_moved(tmp_path):
    first = resolve("clips").latent.train.model_copy(
        update={"start_from": str(tmp_path / "a" / "autoencoder-of-pictures")}
    )
    begun(first, tmp_path / "a" / "autoencoder")
    (tmp_path / "a").rename(tmp_path / "b")
    place = tmp_path / "b" / "autoencoder"
    now = first.model_copy(update={"start_from": str(tmp_path / "b" / "autoencoder-of-pictures")})
    assert former_run(now, place) == now
    for other in ("", str(tmp_path / "c" / "autoencoder-of-pictures"), str(tmp_path / "b" / "other")):
        with pytest.raises(InputError, match=r"other settings \(start_from; "):
            former_run(first.model_copy(update={"start_from": other}), place)


def test_a_run_that_saves_no_more_says_which_model_is_there(small, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert not train(small, run, QUIET).finished
    assert main(["train", "--resume", str(run), "--set", "every.save=0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"nothing of its last step was saved: every.save is 0. The model in {run / 'model'} is that of step 4" in said
    )
    assert "Sample:" not in said
    status = status_of(run)
    assert (status.state, status.reason) == ("finished", "nothing of the last step is saved: every.save is 0")
    assert main(["train", "--resume", str(run), "--set", "every.save=3"]) == 0
    assert "Sample:" in " ".join(capsys.readouterr().out.split())
    assert (status_of(run).state, status_of(run).reason) == ("finished", "")
    shutil.rmtree(run / "checkpoints")  # who needs the model alone may remove them
    assert (status_of(run).state, status_of(run).reason) == ("finished", "")


def test_all_processes_hear_a_wish_to_stop_that_one_is_told(small, tmp_path, monkeypatch):
    """Even in the last step, after which they would part: one to leave, the others to the next stage."""
    monkeypatch.setattr(run_module, "gather", lambda said: [said, signal.SIGTERM])
    outcome = train(small, tmp_path, QUIET)
    assert (outcome.finished, outcome.signal) == (True, signal.SIGTERM)


@pytest.mark.parametrize("stage", ["train", "pictures"])
def test_a_stage_that_would_save_nothing_is_not_trained(tmp_path, stage):
    place = tmp_path / ("autoencoder" if stage == "train" else "autoencoder-of-pictures")
    asked = begun(resolve("clips", settings=[f"latent.{stage}.every.save=0"]), tmp_path)
    with pytest.raises(
        InputError, match=rf"latent\.{stage}\.every\.save is 0.*--set latent\.{stage}\.every\.save=\d+$"
    ):
        workflow._Workflow(asked, tmp_path, QUIET)._train(getattr(asked.latent, stage), place)
    assert not place.exists()

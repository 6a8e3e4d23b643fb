"""What happens between the stages of a run: a wish to stop is heard, a moved run goes on, no older model is scored."""

import io
import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.training.run_folder import read_run
from rectiflow.training.trainer import Trainer
from tests.test_workflow import config
from tests.training.test_clip_run import STAGES, _cut
from tests.training.test_clip_run import config as clips

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Few samples in the report; its figures are tested elsewhere."""
    monkeypatch.setattr(workflow, "_MOST", 40)


def asked_in_the_last_step(patch, recipe, number):
    original = Trainer._train

    def signalled(self, step):
        if (self.config.recipe, step) == (recipe, self.config.steps - 1):
            signal.raise_signal(number)
        return original(self, step)

    patch.setattr(Trainer, "_train", signalled)


def test_a_wish_to_stop_in_the_last_step_of_a_stage_is_heard(tmp_path, capsys):
    run = tmp_path / "run"
    go_on = f"Go on: rectiflow train --resume {run}"
    with pytest.MonkeyPatch.context() as patch:
        asked_in_the_last_step(patch, "autoencoder", signal.SIGINT)
        outcome = workflow.run(config(), run, QUIET)
    assert (outcome.step, outcome.finished, outcome.signal) == (0, False, signal.SIGINT)
    assert (run / "autoencoder" / "model").is_dir()
    assert not (run / "latents").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "encode_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", "--resume", str(run)]) == 130
    said = " ".join(capsys.readouterr().out.split())
    assert f"The encoding was stopped; whole shards are kept. Stopped. {go_on}" in said
    assert "step 0" not in said
    with pytest.MonkeyPatch.context() as patch:
        asked_in_the_last_step(patch, "latent", signal.SIGTERM)
        assert main(["train", "--resume", str(run)]) == 143
    said = " ".join(capsys.readouterr().out.split())
    assert f"it was stopped before its scores. Stopped and saved after step 4. {go_on}" in said
    assert not (run / "evaluation").exists()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "evaluation" / "report.json").is_file()


def test_a_flow_of_which_nothing_is_saved_is_not_scored(tmp_path):
    run, said = tmp_path / "run", io.StringIO()
    assert workflow.run(config("every.save=0"), run, Console(width=300, file=said)).finished
    assert "not evaluated: nothing of the last step is saved, for every.save is 0" in said.getvalue()
    assert not (run / "evaluation").exists()


def test_a_run_of_clips_goes_on_where_it_is_moved_and_without_what_it_started_from(tmp_path, monkeypatch):
    films, draws = tmp_path / "films", np.random.default_rng(0)
    films.mkdir()
    for number in range(6):
        frames = [Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)) for _ in range(5)]
        frames[0].save(films / f"{number}.gif", save_all=True, append_images=frames[1:], duration=100)
    _cut(monkeypatch, {"video-autoencoder", "video"})
    with pytest.raises(KeyboardInterrupt):
        workflow.run(clips(films, *STAGES, "data.stills=0"), tmp_path / "a", QUIET)
    (tmp_path / "a").rename(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "autoencoder-of-pictures")
    with pytest.raises(KeyboardInterrupt):
        workflow.run(read_run(tmp_path / "b"), tmp_path / "b", QUIET)
    assert not (tmp_path / "b" / "autoencoder-of-pictures").exists()
    (tmp_path / "b").rename(tmp_path / "c")
    assert workflow.run(read_run(tmp_path / "c"), tmp_path / "c", QUIET).finished
    assert not (tmp_path / "b").exists()

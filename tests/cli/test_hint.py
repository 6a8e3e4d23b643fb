"""The command that is printed when training or an export ends is one that the model takes."""

import shlex

import pytest
import torch

from rectiflow.__main__ import main
from rectiflow.cli.hint import sample_command
from rectiflow.data.images import ImageSet, InMemory

TINY = ["steps=1", "batch=4", "precision=float32", "every={preview: 0, held_out: 0}", "compile=false"]
SCENES = [
    "latent=null",
    "network={patch: 8, width: 32, depth: 1, heads: 1}",
    "text.encoders=[{kind: learned, vocabulary: 400, depth: 1}]",
]


def printed(text):
    """The words of the command in what was printed."""
    return shlex.split(text[text.rindex("rectiflow sample") :])[1:]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run") / "s"
    assert main(["train", "scenes", "--run", str(folder), "--set", *SCENES, *TINY]) == 0
    return folder


def test_a_model_of_captions(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(scenes), "--dtype", "float16", "--out", "half"]) == 0
    words = printed(capsys.readouterr().out)
    assert words[:3] == ["sample", "half", "--prompt"]
    assert words[3].startswith("a ")
    assert words[3] != "a prompt"
    assert words == ["sample", "half", *shlex.split(sample_command(scenes, scenes))[3:]]
    assert main([*words, "--steps", "1"]) == 0
    assert (tmp_path / "samples.png").is_file()
    assert printed(sample_command(tmp_path / "half", tmp_path))[3] == "a prompt"  # of no run


def test_training_ends_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    from tests.data.test_folder import picture

    for i in range(8):
        picture(tmp_path / "data" / f"{i}.png", ("red", "green")[i % 2], (8, 8 + i))
        (tmp_path / "data" / f"{i}.txt").write_text("a [red] hill's :smile:\n")
    network = "network={patch: 8, width: 32, depth: 1, heads: 1}"
    arguments = ["--data", "data", "--run", "a [b]", "--set", "latent=null", network, "data.size=8", *TINY]
    assert main(["train", "text", *arguments]) == 0
    words = printed(capsys.readouterr().out)
    assert words == ["sample", "a [b]", "--prompt", "a [red] hill's :smile:", "--out", "samples.png"]
    assert main([*words, "--steps", "1"]) == 0


def test_captions_that_no_line_shows_are_passed_over(scenes, monkeypatch):
    texts = ["", "-x", "a\x1b[31m", "  a\nlong " + 500 * "o", "last"]
    some = InMemory(torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64))
    monkeypatch.setattr(InMemory, "every_caption", lambda self: iter(texts))
    monkeypatch.setattr("rectiflow.data.sets.open_set", lambda *given: ImageSet(some, some, ()))
    assert printed(sample_command(scenes, scenes))[3] == "a long " + 93 * "o"


@pytest.mark.parametrize(("there", "ending"), [(True, "mp4"), (False, "gif")])
def test_a_model_of_clips_that_is_given_pictures(tmp_path, monkeypatch, there, ending):
    monkeypatch.setattr("rectiflow.cli.hint.find_spec", lambda name: name if there else None)
    config = {"shape": (3, 5, 8, 8), "texts": (), "picture": "low"}
    monkeypatch.setattr("rectiflow.models.folder.read_model_config", lambda folder: type("Config", (), config))
    monkeypatch.setattr("rectiflow.models.autoencoder.is_autoencoder", lambda folder: False)
    (tmp_path / "config.json").write_text("{}")
    assert printed(sample_command(tmp_path, tmp_path))[2:] == ["--picture", "FILE", "--out", f"samples.{ending}"]

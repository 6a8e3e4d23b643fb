"""The hub's client calls, stood in for by a folder: what is pushed comes back."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from rectiflow.base.errors import InputError
from rectiflow.data.builtin import digits
from rectiflow.hub import is_hub_name
from rectiflow.pipeline import Pipeline, Request
from rectiflow.training.stages import FlowStage


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub as a folder; its calls with the arguments that ours gives them."""
    shelf = tmp_path / "hub"

    class Client:
        def create_repo(self, repo_id, *, private=False, exist_ok=False):
            (shelf / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            for pattern in allow_patterns:
                for file in Path(folder_path).glob(pattern):
                    shutil.copy(file, shelf / repo_id)
            return f"https://hub/{repo_id}"

    def snapshot_download(repo_id, *, allow_patterns):
        if not (shelf / repo_id).exists():
            raise FileNotFoundError(f"404 {repo_id}")
        return str(shelf / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Client)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return shelf


@pytest.fixture
def pipeline(small, tmp_path):
    stage = FlowStage(small, digits(), torch.device("cpu"))
    stage.save(stage.module, tmp_path / "model", 1)
    return Pipeline.load(tmp_path / "model")


def test_push_and_load(hub, pipeline):
    assert pipeline.push("someone/digits") == "https://hub/someone/digits"
    assert sorted(path.name for path in (hub / "someone/digits").iterdir()) == [
        "README.md",
        "config.json",
        "flow.safetensors",
    ]
    back = Pipeline.load("someone/digits")
    request = Request(["3"], count=2, steps=2)
    assert torch.equal(back.sample(request).pixels, pipeline.sample(request).pixels)
    assert "library_name: rectiflow" in (hub / "someone/digits/README.md").read_text()


def test_no_such_model(hub):
    with pytest.raises(InputError, match=r"no run or model at no/where, neither here nor on the hub \(File.*404"):
        Pipeline.load("no/where")


def test_a_name_that_is_none(pipeline):
    with pytest.raises(InputError, match="like org/name, received 'digits'"):
        pipeline.push("digits")


def test_a_refusal_is_one_line(hub, pipeline, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("401 unauthorised\nmore")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(InputError, match=r"could not upload to a/b \(PermissionError: 401 unauthorised\); log in"):
        pipeline.push("a/b")


def test_paths_are_not_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_name("org/name")
    assert not any(is_hub_name(name) for name in ("runs/digts", "digits", "/a/b", "./a", "a/b/c", "../a"))

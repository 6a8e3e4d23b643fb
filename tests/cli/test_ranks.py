"""`sample`, `evaluate`, `encode` and a run's last stage by several processes: what one process makes, said once."""

import contextlib
import io
import json
import os
import re
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch.distributed import TCPStore

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.base.spread import to_first
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.data import encode
from rectiflow.evaluation import report
from rectiflow.evaluation.adherence import over_weights
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features, Pixels
from rectiflow.evaluation.likelihood import LikelihoodRequest
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import Flow
from rectiflow.networks.build import build
from rectiflow.networks.config import VideoDiTConfig
from rectiflow.pipeline import Pipeline
from tests.conftest import SMALL
from tests.test_workflow import SMALL as LATENT

SHARD = 300  # of 1,415 pictures to train on and 382 held out: seven shards
WIDE = np.dtype(np.int16)


def _few(patch):
    """Few pictures in each figure; what these come to is tested elsewhere."""
    patch.setattr(workflow, "_MOST", 33)
    patch.setattr(report, "features", lambda *_: Pixels())
    patch.setattr(report, "LikelihoodRequest", partial(LikelihoodRequest, count=7, mixture=False))


def _fail(words, after=0):
    """A stand-in that fails at its call number `after`, and does as the real one before."""
    calls = []

    def failing(real, *given):
        calls.append(given)
        if len(calls) > after:
            raise words if isinstance(words, BaseException) else InputError(words)
        return real(*given)

    return failing


FAULTS = {
    "it is stopped": (encode._Encoder, "write", _fail(KeyboardInterrupt(), after=2)),
    "its disk is full": (encode._Encoder, "write", _fail("no space left", after=1)),
    "its model is gone": (Pipeline, "_pictures", _fail("no such weights here")),
    "it is killed": (Pipeline, "_pictures", _fail(SystemExit(9))),
}


@contextlib.contextmanager
def _fault(name):
    with pytest.MonkeyPatch.context() as patch:
        if name:
            owner, what, failing = FAULTS[name]
            real = getattr(owner, what)
            patch.setattr(owner, what, lambda *given: failing(real, *given))
        yield


def _one(arguments):
    """Exit status, output and errors of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def _process(rank, world, port, commands, folder):
    torch.set_num_threads(1)
    # As torchrun sets them, whose own process holds the store at which the others meet, attempt after attempt.
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    said = []
    with pytest.MonkeyPatch.context() as patch:
        _few(patch)
        for number, (arguments, fault) in enumerate(commands):
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
            with _fault(fault if rank == 1 else ""):
                said.append(_one(arguments))
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


def together(commands, folder, world=2):
    """What each process says to each command: for each command a list of (exit status, output, errors)."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(_process, args=(world, store.port, commands, folder), nprocs=world)
    each = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(world)]
    return list(zip(*each, strict=True))


def asked(place, out):
    """What is asked of one process and of two, by name; `out` is where it goes."""
    run, model, latent = (str(place / name) for name in ("run", "clips", "latent"))
    few = ["--classes", "3", "1", "4", "--steps", "3", "--guidance", "1"]
    scores = ["--features", "pixels", "--steps", "2"]
    shards = ["--set", "data={set: digits, size: null}", f"latent.cache.shard={SHARD}", "latent.cache.batch=100"]
    files = ["--set", "data.size=8", "data.colour=grey", "latent.cache.shard=7"]
    autoencoder = f"{latent}/autoencoder"
    return {
        "pictures": ["sample", run, *few, "--solver", "ddpm", "--out", f"{out}/few.npz"],
        "one": ["sample", run, "--classes", "7", "--steps", "2", "--out", f"{out}/one.npz"],
        "folder": ["sample", run, *few, "--out", f"{out}/folder"],
        "film": ["sample", run, *few, "--filmstrip", "3", "--out", f"{out}/film.png"],
        "clips": [
            "sample",
            model,
            "--count",
            "3",
            "--frames",
            "9",
            "--overlap",
            "1",
            "--steps",
            "2",
            "--out",
            f"{out}/clips.npz",
        ],
        "prior": ["sample", autoencoder, "--count", "3", "--out", f"{out}/prior.npz"],
        "report": ["evaluate", run, *scores, "--count", "41", "--likelihood", "--out", f"{out}/report"],
        "of autoencoder": ["evaluate", autoencoder, *scores[:2], "--count", "21", "--out", f"{out}/of autoencoder"],
        "latents": ["encode", autoencoder, "--out", f"{out}/latents", *shards],
        "of files": ["encode", autoencoder, "--out", f"{out}/of files", "--data", f"{place}/files", *files],
        "cut off": ["encode", autoencoder, "--out", f"{out}/cut off", *shards],
        "gone on": ["encode", autoencoder, "--out", f"{out}/gone on", *shards],
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models: of digits, of clips that may be gone on with, of latents with a report on it."""
    place = tmp_path_factory.mktemp("place")
    assert main(["data", "digits", "--count", "12", "--out", str(place / "files")]) == 0
    assert main(["train", "digits", "--run", str(place / "run"), "--set", *SMALL]) == 0
    config = VideoDiTConfig(channels=1, classes=0, patch=4, width=24, depth=1, heads=2, texts=(), picture=1)
    flow = Flow.build(build(config), FlowConfig()).requires_grad_(False).eval()
    for weight in flow.parameters():
        weight.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    clips = Pipeline(flow, FlowConfig(), config, (1, 5, 8, 8), Conditioner(frames=FramesConfig()))
    clips.save(place / "clips")
    with pytest.MonkeyPatch.context() as patch:
        _few(patch)
        assert main(["train", "latent", "--run", str(place / "latent"), "--set", *LATENT]) == 0
    return place


@pytest.fixture(scope="module")
def said(place):
    """What each process said, by name of the command; files of one process are in `one`, those of two in `two`."""
    with pytest.MonkeyPatch.context() as patch:
        _few(patch)
        for name, command in asked(place, place / "one").items():
            if name == "gone on":
                with _fault("it is stopped"):
                    assert _one([*command[:3], str(place / "two" / name), *command[4:]])[0] == 130
            elif name != "cut off":
                code, _, err = _one(command)
                assert code == 0, err
    scored = place / "latent" / "evaluation" / "report.json"
    scored.rename(place / "one" / "latent.json")
    pair = {name: (command, "") for name, command in asked(place, place / "two").items()}
    pair["cut off"] = (pair["cut off"][0], "its disk is full")
    pair["scores of a run"] = (["train", "--resume", str(place / "latent")], "")
    run = str(place / "run")
    nowhere = ["--out", str(place / "nowhere.npz"), "--steps", "1"]
    pair["alike"] = (["sample", run, "--solver", "eulr", *nowhere], "")
    pair["unknown option"] = (["sample", run, "--stepz", "1"], "")
    pair["one fails"] = (["sample", run, *nowhere], "its model is gone")
    pair["one is killed"] = (["sample", run, *nowhere], "it is killed")
    pair["begun again"] = (["sample", run, "--steps", "1", "--out", str(place / "again.npz")], "")
    kept = {path: path.stat().st_mtime_ns for path in (place / "two" / "gone on").glob("*.arrow")}
    answers = together(list(pair.values()), place)
    assert len(kept) == 2
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    return dict(zip(pair, answers, strict=True))


def arrays(path):
    with np.load(path) as file:
        return file["arr_0"].astype(WIDE), file["arr_1"]


@pytest.mark.parametrize(("name", "count"), [("few", 3), ("one", 1), ("clips", 3), ("prior", 3)])
def test_pictures_are_those_of_one_process(place, said, name, count):
    """To a grey level: sums in batches of other sizes are rounded otherwise."""
    (one, labels), (two, theirs) = (arrays(place / which / f"{name}.npz") for which in ("one", "two"))
    assert len(one) == count
    assert one.std() > 10
    assert len({picture.tobytes() for picture in one}) == count
    assert np.abs(one - two).max() <= 1
    assert np.array_equal(labels, theirs)


def test_a_folder_and_a_film_are_those_of_one_process(place, said):
    one, two = (place / which / "folder" for which in ("one", "two"))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert (one / "metadata.jsonl").read_text() == (two / "metadata.jsonl").read_text()
    both = [np.asarray(Image.open(place / which / "film.png")).astype(WIDE) for which in ("one", "two")]
    assert np.abs(both[0] - both[1]).max() <= 1
    third = both[0].shape[1] // 3
    assert np.array_equal(both[0][:, :third], both[1][:, :third])  # the noise itself
    for path in one.glob("*.png"):
        pictures = [np.asarray(Image.open(folder / path.name)).astype(WIDE) for folder in (one, two)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1


def alike(one, two, where=""):
    """Whether two reports say the same: figures as far as a grey level's part of them goes."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for name in one:
            if name != "seconds_per_100":
                alike(one[name], two[name], f"{where}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for number, pair in enumerate(zip(one, two, strict=True)):
            alike(*pair, f"{where}.{number}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4), where
    else:
        assert one == two, where


@pytest.mark.parametrize("name", ["report", "of autoencoder"])
def test_a_report_is_that_of_one_process(place, said, name):
    one, two = (json.loads((place / which / name / "report.json").read_text()) for which in ("one", "two"))
    alike(one, two)
    assert sorted(path.name for path in (place / "one" / name).iterdir()) == sorted(
        path.name for path in (place / "two" / name).iterdir()
    )
    if name == "report":
        assert one["scores"]["count"] == 41
        assert one["likelihood"]["count"] == 7


def test_the_last_stage_of_a_run_is_shared(place, said):
    one = json.loads((place / "one" / "latent.json").read_text())
    alike(one, json.loads((place / "latent" / "evaluation" / "report.json").read_text()))
    assert one["scores"]["count"] == 33


@pytest.mark.parametrize("name", ["latents", "of files", "gone on", "cut off"])
def test_latents_are_those_of_one_process_byte_by_byte(place, said, name):
    """Those of two processes; begun by one and finished by two; begun by two and finished by one."""
    folder, whole = place / "two" / name, place / "one" / ("of files" if name == "of files" else "latents")
    if name == "cut off":
        there = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.arrow")}
        assert 3 <= len(there) < 7  # process 1 wrote one, the other its own
        assert not (folder / encode.MANIFEST).exists()
        assert _one(asked(place, place / "two")[name])[0] == 0
        assert all((folder / shard).stat().st_mtime_ns == then for shard, then in there.items())
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert len([shard for shard in expected if shard.endswith(".arrow")]) == (4 if name == "of files" else 7)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]  # nothing is left beside it


def test_one_process_speaks(place, said):
    for name in asked(place, place / "two"):
        (code, out, err), (other, *words) = said[name]
        assert words == ["", ""] or name == "cut off"
        if name == "cut off":
            assert (code, other) == (2, 2)
        else:
            assert (code, other, err) == (0, 0, "")
            assert re.search(r"wrote .*(npz|folder|film.png|report.md)$|Train in them: ", out.strip())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alike", "Did you mean 'euler'"),
        ("unknown option", "unknown option '--stepz'"),
        ("one fails", "no such weights here"),
        ("cut off", "no space left"),
        ("one is killed", "another process of this job is gone"),
    ],
)
def test_what_goes_wrong_is_one_line_by_one_process(place, said, name, words):
    errors = [err for _, _, err in said[name] if err]
    assert len(errors) == 1
    assert errors[0].count("\n") == 1
    assert words in errors[0]
    codes = [code for code, *_ in said[name]]
    assert codes == ([2, 9] if name == "one is killed" else [2, 2])
    assert not (place / "nowhere.npz").exists()


def test_after_one_is_killed_the_next_attempt_meets(place, said):
    """At the same store, which still holds where the processes of the attempt before were to be found."""
    assert [code for code, *_ in said["begun again"]] == [0, 0]
    assert len(arrays(place / "again.npz")[0]) == 10


def _same(one, two):
    return all(
        torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        for mine, theirs in ((getattr(one, field.name), getattr(two, field.name)) for field in fields(one))
    )


@pytest.mark.parametrize("kind", ["prompts", "given pictures"])
def test_the_others_are_asked_for_what_the_first_asks_for(kind, tmp_path, monkeypatch):
    """In the same order, or the shares of different pictures would be put together."""
    pipeline, data, config = _prompted(monkeypatch) if kind == "prompts" else _restored()
    requests, real = [], Pipeline.sample

    def recorded(self, request):
        requests.append(request)
        assert self.spread is to_first
        return real(self, request)

    monkeypatch.setattr(Pipeline, "sample", recorded)
    monkeypatch.setattr(report, "features", lambda *_: Corners())
    report.evaluate(pipeline, data, config, tmp_path, {})
    firsts, requests[:] = list(requests), []
    monkeypatch.setattr(report, "first", lambda: False)
    assert report.evaluate(pipeline, data, config, tmp_path / "others", {}) == {}
    assert not (tmp_path / "others").exists()
    assert len(requests) == len(firsts) >= 3
    assert all(map(_same, requests, firsts))


class Corners(Features):
    """Means of the quarters of a picture: few, for speed."""

    name = "corners"

    def __call__(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1).double()


def _prompted(monkeypatch):
    from rectiflow.data.builtin import digits
    from rectiflow.data.images import ImageSet
    from rectiflow.data.scenes import Scenes

    def scored(make, scenes, weights, judge, distance):
        nothing = {"seen": {"whole": {"value": 0.0}}}
        return over_weights(make, scenes, weights, lambda pixels: nothing, distance)

    monkeypatch.setattr("rectiflow.evaluation.prompted.judge", lambda: None)
    monkeypatch.setattr("rectiflow.evaluation.prompted.sweep", scored)
    for name in ("plot_adherence", "page"):
        monkeypatch.setattr(report, name, lambda *_: "")
    config = EvaluateConfig(count=20, steps=1, adherence=True, weights=(0.0, 2.0))
    parts = (Scenes(part, name, 40) for part, name in ((digits().train, "train"), (digits().held_out, "held out")))
    return Pipeline.load("scenes"), ImageSet(*parts, ()), config


def _restored():
    from rectiflow.conditioning.picture_config import PictureConfig
    from rectiflow.data.images import ImageSet, InMemory
    from rectiflow.networks.config import DiTConfig
    from tests.evaluation.test_restoration import Posterior

    pixels = 0.2 * torch.randn(44, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = [InMemory(part, torch.arange(22) % 2) for part in pixels.chunk(2)]
    low = Conditioner(class_names=("a", "b"), picture=PictureConfig(kind="low", factor=2))
    network = DiTConfig(channels=1, classes=2, picture=1)
    pipeline = Pipeline(Flow(Posterior()).requires_grad_(False), FlowConfig(), network, (1, 16, 16), low)
    return pipeline, ImageSet(*parts, ("a", "b")), EvaluateConfig(count=20, steps=2)


def test_shares_are_all_there_is(monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 4)
    for count in (0, 1, 3, 4, 11):
        parts = [ranks.share(count, of) for of in range(4)]
        assert [i for part in parts for i in range(count)[part]] == list(range(count))
        assert max(part.stop - part.start for part in parts) - min(part.stop - part.start for part in parts) <= 1

"""Runs that are stopped in the middle: killed at any moment, or asked to leave by a signal.

Each attempt is a process of its own, forked from one that has imported everything. It trains, and kills itself at a
point that is met for the n-th time, or is killed by this process at a random time; then the next one goes on.
"""

import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rectiflow import workflow
from rectiflow.__main__ import main
from rectiflow.base.errors import InputError
from rectiflow.data import encode
from rectiflow.data.loader import Loader
from rectiflow.pipeline import Pipeline
from rectiflow.recipes.registry import resolve
from rectiflow.training import autoencoder_stage, checkpoint, sinks, stages, stepper, watch
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.guard import Guard
from rectiflow.training.manifest import Entry, read_manifest
from rectiflow.training.run import train
from rectiflow.training.run_folder import finished
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.conftest import same
from tests.data.shard_files import write_parquet, write_tar

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.test_killed", "rectiflow.__main__", "torch._dynamo"])
OF_TIME = {"seconds", "images_per_second", "waiting_for_data", "utilisation", "memory_mb", "memory_peak_mb"}
STEPS = 30
RUNS = ("whole", "cut")
LAST = f'"step": {STEPS},'  # in the config.json of a model
RUN = (
    f"steps={STEPS}",
    "batch=8",
    "precision=float32",
    "watch=[]",
    "keep_best=1",
    "every={log: 1, held_out: 3, preview: 0, first_preview: 0, save: 2, average: 10}",
)
DIT = "network={patch: 4, width: 16, depth: 1, heads: 2}"
UNET = "network={kind: unet, width: 8, multipliers: [1, 2], blocks: 1, attention: [2], heads: 2, dropout: 0.2}"
CODE = "{width: 8, multipliers: [1, 2], latent_channels: 3, groups: 4, attention: false}"
ADVERSARY = "{width: 8, layers: 1, start: 0.2, lead: 0.1, lecam: 0.01}"


def flow(folder):
    """Digits, with dropout and power averages."""
    return resolve("digits", settings=(UNET, *RUN, "ema={kind: power, lengths: [0.05, 0.1]}"))


def autoencoder(folder):
    """Against its discriminator, with LeCam's running means."""
    own = (f"network={CODE}", f"discriminator={ADVERSARY}", "loss.equivariance=0.5")
    quick()
    return resolve("autoencoder", settings=("data={set: digits, size: null}", *own, *RUN))


def latents(folder):
    """An autoencoder, latents in two versions of each picture, and a flow on draws from them."""
    quick()
    first = [f"latent.train.{setting}" for setting in (*RUN, f"network={CODE}", f"discriminator={ADVERSARY}")]
    data = "data={set: digits, size: null, flip: true}"
    cache = "latent.cache={variants: 2, shard: 300}"
    return resolve("latent", settings=(*first, data, cache, DIT.replace("4", "2", 1), *RUN))


def shards(folder):
    """Streamed, with a worker; two epochs and a half."""
    where = folder.parents[1] / "set"
    if not where.exists():
        write_tar(where / "0.tar", range(50))
        write_parquet(where / "1.parquet", range(50, 100))
    asked = f'data.shards=["{where}/*.tar", "{where}/*.parquet"]'
    return resolve("folder", settings=(DIT, *RUN, "data.set=shards", asked, "data.size=8", "data.workers=1"))


def detour(folder):
    """Steps 8 and 9 are bad in the first order of the data: the run goes back and on in another."""
    original = FlowStage.loss

    def loss(self, step, part=slice(None), turn=""):
        bad = self._detour == 0 and step in (7, 8)
        return original(self, step, part, turn) * (math.nan if bad else 1)

    FlowStage.loss = loss
    return resolve("digits", settings=(DIT, *RUN, "guard={skips: 2, rollbacks: 2}", "save_aside=false"))


KINDS = {each.__name__: each for each in (flow, autoencoder, latents, shards, detour)}


def quick():
    """Figures of few pictures, and no count of FLOPs."""
    autoencoder_stage._HELD_OUT, autoencoder_stage._STATISTICS = 32, 64
    watch.Watch.begin = lambda self: None


def before(owner, name, when=lambda *_: True):
    """Meet a point before each call of a function."""

    def install(meet):
        original = getattr(owner, name)

        def wrapped(*given, **named):
            if when(*given):
                meet()
            return original(*given, **named)

        setattr(owner, name, wrapped)

    return install


def after(owner, name, when=lambda *_: True):
    """Meet a point after each call of a function."""

    def install(meet):
        original = getattr(owner, name)

        def wrapped(*given, **named):
            found = original(*given, **named)
            if when(*given):
                meet()
            return found

        setattr(owner, name, wrapped)

    return install


def half_a_line(meet):
    """Meet a point when a line of metrics is half written."""
    original = sinks.Lines.write

    def write(self, step, values):
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f'{{"step": {step}, "lo')
            file.flush()
            meet()
            file.truncate(file.tell() - len(f'{{"step": {step}, "lo'))
        original(self, step, values)

    sinks.Lines.write = write


def any_change(meet):
    """Meet a point before each file or folder of the run is opened for writing, renamed, made or removed."""

    def hook(event, arguments):
        opened = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        changed = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if (opened or changed) and "/run" in str(arguments[0]):
            meet()

    sys.addaudithook(hook)


def renamed(source, target):
    return lambda self, to: (self.name, Path(to).name) == (source, target)


POINTS = {
    "a step begins": before(Trainer, "_train"),
    "gradients are there": before(Guard, "complaint"),
    "between the turns": before(Guard, "complaint", lambda *given: given[-1] is False),
    "the optimiser has moved": before(Guard, "good"),
    "the state is copied": after(dcp, "async_save"),
    "nothing is written": before(dcp.FileSystemWriter, "write_data"),
    "tensors are written": after(dcp.FileSystemWriter, "write_data"),
    "the table is written": after(dcp.FileSystemWriter, "finish"),
    "hashing": before(Entry, "of"),
    "all is hashed": before(checkpoint, "write_text"),
    "the manifest is written": before(checkpoint, "put_folder"),
    "the checkpoint is renamed": after(checkpoint, "put_folder"),
    "an old one goes": before(shutil, "rmtree", lambda path, **_: Path(path).name.startswith("step-")),
    "half a model": before(Path, "write_text", lambda path, *_: path.parent.name == "model.tmp"),
    "half of the last model": before(
        Path, "write_text", lambda path, text, **_: path.parts[-3:-1] == ("run", "model.tmp") and LAST in text
    ),
    "between the model's renames": before(Path, "rename", renamed("model.tmp", "model")),
    "the model is renamed": after(Path, "rename", renamed("model.tmp", "model")),
    "half a line": half_a_line,
    "a shard of latents": before(encode, "_write_blocks"),
    "a shard without its note": after(encode, "_write_blocks"),
    "a shard and its note": after(encode, "write_text"),
    "any change": any_change,
}


@dataclass(frozen=True)
class Death:
    """Where a process kills itself.

    Args:
        point: of `POINTS`.
        times: the time that it is met.
    """

    point: str
    times: int = 1

    def arm(self):
        """Have this process die so."""
        left = self.times

        def meet():
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        POINTS[self.point](meet)


def slowly(folder):
    """Tell when training has begun, and never end."""
    original = Trainer._train

    def train(self, step):
        (folder.parent / "begun").touch()
        time.sleep(60 if step == STEPS - 1 else 0.03)
        return original(self, step)

    Trainer._train = train


def when_loaded(forget):
    """Spoil something of what a checkpoint gave."""
    original = stepper.Stepper.load

    def load(self, state):
        original(self, state)
        forget(self)

    stepper.Stepper.load = load


def data_a_step_late(folder):
    original = Loader.__call__
    Loader.__call__ = lambda self, step, part=slice(None): original(self, step + 1, part)


def other_noise(folder):
    original = FlowStage._noise
    FlowStage._noise = lambda self, purpose, step, index, x: original(self, purpose, step + 1, index, x)


def averages_forgotten(folder):
    def forget(self):
        for module in self.ema.modules:
            module.load_state_dict(self.stage.module.state_dict())

    when_loaded(forget)


def moments_forgotten(folder):
    def forget(self):
        for optimiser in self._optimisers:
            for state in optimiser.state.values():
                state["exp_avg"].zero_()

    when_loaded(forget)


def rates_a_step_late(folder):
    original = stepper.learning_rate
    stepper.learning_rate = lambda config, step, steps: original(config, step + 1, steps)


def torch_not_seeded(folder):
    FlowStage._seed = lambda self, step, index: None


def means_of_logits_forgotten(folder):
    when_loaded(lambda self: self.stage.module.logits.zero_())


def discriminator_forgotten(folder):
    when_loaded(lambda self: torch.nn.init.zeros_(next(self.stage.module.discriminator.parameters())))


FAULTS = {
    "flow": [
        data_a_step_late,
        other_noise,
        averages_forgotten,
        moments_forgotten,
        rates_a_step_late,
        torch_not_seeded,
    ],
    "autoencoder": [means_of_logits_forgotten, discriminator_forgotten],
}


def work(kind, folder, death, change, seed=0):
    """What a process does; what goes wrong is left beside the run."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as anywhere; processes of a fork server get its way
    watch._MEASURING, stages._HELD_OUT = 0.0, 64
    workflow._FEWEST = 10**6  # no report
    try:
        config = KINDS[kind](folder).model_copy(update={"seed": seed})
        if change:
            change(folder)
        if death:
            death.arm()
        workflow.run(config, folder, Console(file=(folder.parent / "said").open("a"), width=200))
    except BaseException:
        (folder.parent / "problem").write_text(traceback.format_exc())
        raise


def started(target, *given):
    process = FORKS.Process(target=target, args=given)
    process.start()
    return process


def attempt(kind, folder, death=None, change=None, seed=0, wait=lambda: None):
    """Train in a process; returns whether it was killed."""
    folder.parent.mkdir(exist_ok=True)
    process = started(work, kind, folder, death, change, seed)
    wait()
    process.join(120)
    problem = folder.parent / "problem"
    assert not problem.exists(), problem.read_text()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def killed_outside(kind, folder, seconds):
    begun = folder.parent / "begun"
    begun.unlink(missing_ok=True)
    process = started(work, kind, folder, None, slowly)
    until(begun.exists)
    time.sleep(seconds)
    process.kill()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def until(met, seconds=60):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.005)


def left_by(run, scratch):
    """All that two equal runs have in common: the last checkpoint, every metric but times, the files of the models."""
    found = {}
    for part in (run, run / "autoencoder"):
        if not (part / "run.yaml").is_file():
            continue
        saved = Checkpoints(part / "checkpoints", 2)
        assert saved.newest_good(pytest.fail) == STEPS
        dcp_to_torch_save(saved._path(STEPS), scratch)
        state = torch.load(scratch, weights_only=False)
        assert state.keys() == {"module", "ema", "optimiser", "guard", "step"}
        assert sum(tensor.numel() for tensor in state["module"].values()) > 1000
        lines = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
        assert sum("loss" in line for line in lines) >= STEPS - 1
        found[part.name if part != run else "run"] = {
            "state": state,
            "metrics": [{name: line[name] for name in sorted(line.keys() - OF_TIME)} for line in lines],
            "metric of the checkpoint": read_manifest(saved._path(STEPS)).metric,
            "kept": saved.steps(),
        }
    files = [path for name in ("model", "latents") for path in sorted((run / name).glob("*")) if path.name != ".lock"]
    assert len(files) > 1
    found["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    # In these a line of two entries stands in any order.
    found["averages"] = {path.name: load_file(path) for path in (run / "averages").glob("*")}
    return found


def differing(left, right, at=""):
    """Where two nested values differ, tensors to the bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        names = [name for name in {**left, **right} if name not in left or name not in right]
        inner = [d for name in left if name in right for d in differing(left[name], right[name], f"{at}/{name}")]
        return [f"{at}/{name}" for name in names] + inner
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [d for i, both in enumerate(zip(left, right, strict=True)) for d in differing(*both, f"{at}/{i}")]
    return [] if same(left, right) else [at]


SAVES = [
    "the state is copied",
    "nothing is written",
    "tensors are written",
    "the table is written",
    "hashing",
    "all is hashed",
    "the manifest is written",
    "the checkpoint is renamed",
    "an old one goes",
    "half a model",
    "between the model's renames",
    "the model is renamed",
]
STEP_POINTS = ["a step begins", "gradients are there", "the optimiser has moved"]
DEATHS = {
    "flow": [
        *STEP_POINTS,
        "any change",
        "half a line",
        "the state is copied",
        "the table is written",
        "between the model's renames",
    ],
    "autoencoder": ["between the turns", "the manifest is written", "hashing", "gradients are there", "half a model"],
    "latents": [
        "gradients are there",
        "any change",
        "a shard of latents",
        "a shard without its note",
        "a shard and its note",
        "the optimiser has moved",
        "tensors are written",
    ],
    "shards": ["a step begins", "nothing is written", "an old one goes", "all is hashed", "the model is renamed"],
    "detour": ["gradients are there", "the checkpoint is renamed", "nothing is written", "any change", "half a line"],
}
OUTSIDE = 1
MOST = {"any change": 45, **dict.fromkeys(SAVES, 2), **dict.fromkeys(STEP_POINTS, 4), "half a line": 4}


def plan(kind):
    """The deaths of a kind of run, at random times that are the same each time."""
    draw = random.Random(kind)
    return [Death(point, draw.randint(1, MOST.get(point, 2))) for point in DEATHS[kind]]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """What a run of a kind leaves that was never stopped."""
    found = {}

    def left(kind):
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            assert not attempt(kind, folder / "a" / "run")
            found[kind] = left_by(folder / "a" / "run", folder / "state.pt"), folder
        return found[kind]

    return left


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_it_ends_as_if_never_stopped(kind, whole):
    expected, folder = whole(kind)
    run, kills, draw = folder / "b" / "run", 0, random.Random(kind)
    for death in plan(kind):
        assert attempt(kind, run, death), f"it ended before it met: {death}"
        kills += 1
    for _ in range(OUTSIDE):
        kills += killed_outside(kind, run, draw.uniform(0, 0.3))
    kills += attempt(kind, run, Death("half of the last model"))
    assert not attempt(kind, run)
    assert kills == len(DEATHS[kind]) + OUTSIDE + 1
    assert differing(expected, left_by(run, folder / "state.pt")) == []


def test_kills_are_many():
    """Of the test above, that counts them."""
    assert sum(len(deaths) + OUTSIDE + 1 for deaths in DEATHS.values()) >= 40
    assert {death.point for kind in KINDS for death in plan(kind)} >= {*STEP_POINTS, *SAVES}


def test_the_comparison_can_fail(whole):
    """A run of another seed differs, and one that goes on from step 28 with anything but what it should have."""
    for kind, faults in FAULTS.items():
        expected, folder = whole(kind)
        for fault in (None, *faults):
            run = folder / (fault.__name__ if fault else "sound") / "run"
            shutil.copytree(folder / "a" / "run", run)
            for path in (run / "checkpoints").glob(f"step-*{STEPS}"):
                shutil.rmtree(path)
            assert not attempt(kind, run, change=fault)
            found = differing(expected, left_by(run, folder / "state.pt"))
            assert any("/state/" in name for name in found) == (fault is not None), (fault, found)
            if fault is averages_forgotten:
                assert not any("/module/" in name for name in found)
    expected, folder = whole("detour")
    other = folder / "other" / "run"
    assert not attempt("detour", other, seed=1)
    assert any("/module/" in name for name in differing(expected, left_by(other, folder / "state.pt")))


def train_command(folder, *settings):
    """`rectiflow train` in a process whose steps take a while, and which notes what it does."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    os.setpgid(0, 0)
    watch._MEASURING = 0.0

    def note(owner, name):
        original = getattr(owner, name)

        def noted(self, *given):
            with (folder.parent / name).open("a") as file:
                file.write("x")
            time.sleep(STEP)
            return original(self, *given)

        setattr(owner, name, noted)

    for owner, name in ((Trainer, "_train"), (FlowStage, "held_out"), (Trainer, "_preview")):
        note(owner, name)
    if not settings:
        original = dcp.FileSystemWriter.write_data

        def write(self, *given):
            (folder.parent / "saving").touch()
            time.sleep(60)
            return original(self, *given)

        dcp.FileSystemWriter.write_data = write
    every = "every={log: 1, held_out: 1, preview: 1, first_preview: 0, save: 1000}"
    run = ("steps=1000", "batch=8", "precision=float32", "watch=[]", DIT, every, *settings)
    recipe = "folder" if any("shards" in setting for setting in settings) else "digits"
    sys.exit(main(["train", recipe, "--run", str(folder), "--set", *run]))


STEP = 0.2


def size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_leave_it_ends_the_step_in_hand_and_saves(tmp_path, number, status):
    """Nothing else is begun: no step, no held-out check, no preview; all is over long before the run would be."""
    process = started(train_command, tmp_path / "run", "seed=0")
    until(lambda: size(tmp_path / "_train") > 3)
    begun, began = size(tmp_path / "_train"), time.perf_counter()
    os.kill(process.pid, number)
    process.join(60)
    seconds = time.perf_counter() - began
    steps, shown = size(tmp_path / "_train"), size(tmp_path / "_preview")
    assert process.exitcode == status
    assert steps - begun <= 1  # one may have begun before the signal was there
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).newest_good(pytest.fail) == steps
    assert steps - 1 <= shown <= size(tmp_path / "held_out") <= steps
    assert Pipeline.load(tmp_path / "run").training["step"] == steps
    assert seconds < 5 * 3 * STEP + 10


def test_a_launcher_may_ask_everyone_and_twice(tmp_path):
    """As Slurm and `torchrun` between them do: the processes that read data are asked too, and that is no fault."""
    where = write_tar(tmp_path / "set" / "0.tar", range(50))
    shards = ("data.set=shards", f'data.shards=["{where}"]', "data.size=8", "data.workers=1")
    process = started(train_command, tmp_path / "run", *shards)
    until(lambda: size(tmp_path / "_train") > 1)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    steps = size(tmp_path / "_train")
    assert Checkpoints(tmp_path / "run" / "checkpoints", 2).newest_good(pytest.fail) == steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_acts_at_once(tmp_path, number):
    """Even in the middle of a save that takes a minute; the run's own record says that it was stopped."""
    process = started(train_command, tmp_path / "run")
    until(lambda: size(tmp_path / "_train") > 1)
    os.kill(process.pid, number)
    until((tmp_path / "saving").exists)
    time.sleep(1.2)
    assert process.is_alive()
    began = time.perf_counter()
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == -number
    assert time.perf_counter() - began < 15
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    assert not Checkpoints(tmp_path / "run" / "checkpoints", 2).steps()


def test_the_model_of_an_earlier_step_is_no_finished_run(tmp_path, small):
    """Killed between its last checkpoint and its last model."""
    train(small, tmp_path / "run", Console(quiet=True))
    model = tmp_path / "run" / "model"
    weights, text = (model / "flow.safetensors").read_bytes(), (model / "config.json").read_text()
    assert '"step": 6' in text
    (model / "config.json").write_text(text.replace('"step": 6', '"step": 3'))
    assert not finished(small, tmp_path / "run")
    assert train(small, tmp_path / "run", Console(quiet=True)).trained
    assert (model / "config.json").read_text() == text
    assert (model / "flow.safetensors").read_bytes() == weights


def test_halves_that_a_killed_process_left_are_cleared_away(tmp_path, small):
    """Also before the run's first line: the folder is not taken for somebody else's."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".run.yaml.12.tmp").write_text("steps")
    (run / "inventory.tmp").mkdir()
    train(small, run, Console(quiet=True))
    for path in (run / ".metrics.jsonl.12.tmp", run / "samples" / ".00000500.png.7.tmp", run / "mine.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (run / "model").rename(run / "model.old")
    assert not train(small, run, Console(quiet=True)).trained
    assert {path.name for path in run.rglob("*.tmp")} == {"mine.tmp"}
    assert not (run / "model.old").exists()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / ".thesis.12.tmp").touch()
    with pytest.raises(InputError, match="not empty and not a run"):
        train(small, strange, Console(quiet=True))


def test_the_metric_of_the_newest_checkpoint_stands_until_the_next_check(tmp_path, small):
    """The best of a run that was stopped are those of one that never was."""
    every = small.every.model_copy(update={"held_out": 4, "save": 1})
    asked = small.model_copy(update={"every": every, "keep": 6})
    train(asked, tmp_path / "whole", Console(quiet=True))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000005")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000006")
    assert train(asked, tmp_path / "cut", Console(quiet=True)).trained
    metrics = [[Checkpoints(tmp_path / run / "checkpoints", 6).metric(step) for step in range(1, 7)] for run in RUNS]
    assert metrics[0] == metrics[1]
    assert metrics[0][:3] == [None] * 3
    assert metrics[0][3] == metrics[0][4] != metrics[0][5]

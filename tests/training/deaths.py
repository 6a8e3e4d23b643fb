"""Runs in processes of their own, each forked from one that has imported everything.

They train, and kill themselves at a point that is met for the n-th time, or are killed by the test at a random time, or
go on with a fault.
"""

import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console

from rectiflow import workflow
from rectiflow.data import encode
from rectiflow.data.loader import Loader
from rectiflow.recipes.registry import resolve
from rectiflow.training import autoencoder_stage, checkpoint, sinks, stages, stepper, watch
from rectiflow.training.guard import Guard
from rectiflow.training.manifest import Entry
from rectiflow.training.stages import FlowStage
from rectiflow.training.trainer import Trainer
from tests.data.shard_files import write_parquet, write_tar

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.training.deaths", "rectiflow.__main__", "torch._dynamo"])
STEPS = 30
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
    "half a model": before(Path, "write_text", lambda path, *_: path.parent.name == ".model.tmp"),
    "half of the last model": before(
        Path, "write_text", lambda path, text, **_: path.parts[-3:-1] == ("run", ".model.tmp") and LAST in text
    ),
    "between the model's renames": before(Path, "rename", renamed(".model.tmp", "model")),
    "the model is renamed": after(Path, "rename", renamed(".model.tmp", "model")),
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

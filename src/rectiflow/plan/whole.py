"""The stages of a run in short: its own workflow, with an encoding and final scores of a part of the work."""

import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from rich.console import Console
from torch import Tensor

from rectiflow import workflow
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base import machine
from rectiflow.data import remembered
from rectiflow.data.images import Images, ImageSet, InMemory
from rectiflow.data.latents import open_latents, read_manifest
from rectiflow.evaluation import memory, report
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import Features, SmallEncoder, features
from rectiflow.evaluation.scores import drawn
from rectiflow.pipeline import AT_ONCE, Pipeline
from rectiflow.plan import clock
from rectiflow.plan.clock import replaced
from rectiflow.plan.measured import Between, Cost
from rectiflow.plan.rehearse import Notebook, rehearsed_fit
from rectiflow.plan.views import Repeated, few_of, in_place_of
from rectiflow.request import Samples
from rectiflow.training.generator_config import RunConfig
from rectiflow.training.trainer import Trainer

_FORWARD = 1 / 3  # of a training step's cost
_SHORT, _LONGER = 4, 12  # steps of the encoder that scores are taken in, of all
_READ, _AT_A_TIME = 512, 64  # pictures that it learns from, and those of them that are read together
_PATIENCE = 8  # times as long as steps are measured, to draw as many as are drawn at once


@final
@dataclass
class Rest:
    """What is measured beside training.

    Args:
        notes: of the training.
        encoding: of the latents, once it is done.
        scores: of the model, once they are taken.
        few: the pictures that were encoded in the place of all; None is all.
    """

    notes: Notebook
    encoding: Between | None = None
    scores: Between | None = None
    few: ImageSet | None = None


@contextmanager
def rehearsed(rest: Rest) -> Iterator[None]:
    """While this lasts, `workflow.run` is a rehearsal: for a process that does nothing else."""
    with ExitStack() as stack:
        fit = Trainer.fit
        stack.enter_context(replaced(Trainer, "fit", rehearsed_fit(rest.notes, fit)))
        stack.enter_context(replaced(workflow, "encode", _encode(rest, workflow.encode)))
        stack.enter_context(replaced(workflow, "open_latents", _open(rest, open_latents)))
        stack.enter_context(replaced(workflow, "evaluate", _evaluate(rest)))
        yield


def _encode(rest: Rest, real: Callable[..., Any]) -> Callable[..., None]:
    """Encodes all pictures if that is short, else some, over and over in place of all."""

    def encode(space: LatentSpace, data: ImageSet, folder: Path, config: RunConfig, console: Console) -> None:
        notes = rest.notes
        start, seconds = notes.begun(), notes.asked.seconds
        assert config.latent is not None
        cache = config.latent.cache

        def write(some: ImageSet) -> tuple[int, Cost]:
            shutil.rmtree(folder, ignore_errors=True)
            count = len(some.train) * cache.variants + len(some.held_out)
            return count, clock.cost_of(lambda: real(space, some, folder, config, console), notes.device)

        all_of_them = len(data.train) * cache.variants + len(data.held_out)
        rest.few = few_of(data, 2 * cache.batch, cache.batch)
        encoded, cost = write(rest.few)
        share = min(1.0, 2 * seconds / max(1e-6, cost.alone / encoded) / all_of_them)
        if notes.asked.events and share == 1.0:
            rest.few, (encoded, cost) = None, write(data)
        elif notes.asked.events and share * all_of_them > 2 * encoded:
            rest.few = few_of(data, int(share * len(data.train)), max(1, int(share * len(data.held_out))))
            encoded, cost = write(rest.few)
        whole = all_of_them / encoded
        rest.encoding = Between(
            start=start,
            cost=cost * whole,
            bytes=round(clock.size_of(folder) * whole),
            peak=machine.peak(notes.device),
            share=min(1.0, 1 / whole),
        )
        notes.ended()

    return encode


def _open(rest: Rest, real: Callable[..., ImageSet]) -> Callable[..., ImageSet]:
    def opened(folder: Path, expected: dict[str, str], data: ImageSet) -> ImageSet:
        if rest.few is None:
            return real(folder, expected, data)
        return in_place_of(real(folder, read_manifest(folder).fingerprint, rest.few), data)

    return opened


def _evaluate(rest: Rest) -> Callable[..., dict[str, Any]]:
    """Scores as the run takes them, but that the model draws and is tried in part, and the encoder learns for a few
    steps; each of the three is scaled to the whole."""

    def evaluate(
        pipeline: Pipeline, data: ImageSet, asked: EvaluateConfig, out: Path, about: dict[str, Any]
    ) -> dict[str, Any]:
        notes = rest.notes
        if not notes.asked.events:
            return {"scores": {"frechet": {}}}
        start = notes.begun()
        parts = _Parts(notes, pipeline)
        with ExitStack() as stack:
            stack.enter_context(replaced(report, "features", parts.features))
            stack.enter_context(replaced(report, "drawn", parts.drawn))
            stack.enter_context(replaced(report, "loss_by_noise", parts.loss_by_noise))
            found: dict[str, Any] = {}
            cost = clock.cost_of(lambda: found.update(report.evaluate(pipeline, data, asked, out, about)), notes.device)
        rest.scores = Between(
            start=start,
            cost=(cost + parts.left_out).at_least(Cost()),
            bytes=clock.size_of(out),
            peak=machine.peak(notes.device),
            share=cost.wall / max(cost.wall, cost.wall + parts.left_out.wall),
        )
        notes.ended()
        return found

    return evaluate


@final
class _Parts:
    """Parts of an evaluation, and what the whole of them costs more.

    Args:
        notes: of the training before.
        pipeline: the model.
    """

    def __init__(self, notes: Notebook, pipeline: Pipeline) -> None:
        self.device, self.seconds, self.pipeline = notes.device, notes.asked.seconds, pipeline
        last = notes.stages[-1]
        self.forward = last.step.alone / last.batch * _FORWARD
        self.left_out = Cost()
        self._features, self._drawn = features, drawn

    def features(self, name: str, images: Images, seed: int = 0) -> Features:
        """An encoder that has learned little, from few pictures where reading them is work."""
        if name != "encoder":
            return self._features(name, images, seed)
        made: list[Features] = []
        steps = _default(SmallEncoder.__init__, "steps")
        shown, kept = images, torch.empty(0)
        if images.costly:
            shown, kept = self._read(images, SmallEncoder.rows(len(images), steps, seed))
        short, longer = (
            clock.cost_of(lambda steps=steps: made.append(SmallEncoder(shown, steps, seed)), self.device)  # type: ignore[misc]
            for steps in (_SHORT, _LONGER)
        )
        step = ((longer - short) * (1 / (_LONGER - _SHORT))).at_least(Cost())
        self.left_out += step * (steps - _LONGER) - short
        del kept
        return made[-1]

    def _read(self, images: Images, rows: Tensor) -> tuple[Images, Tensor]:
        """Some of the pictures at `rows` in the place of all, and as much memory as the others would take."""
        few: list[Tensor] = []
        cost, distinct = Cost(), rows.unique()
        for part in distinct[:_READ].split(_AT_A_TIME):
            if cost.wall < self.seconds:
                cost += clock.cost_of(lambda part=part: few.append(images.fetch(part)), self.device)  # type: ignore[misc]
        pixels = torch.cat(few)
        room = remembered.MOST // pixels[0].nbytes
        self.left_out += cost * (_reads(rows, len(images), room) / len(pixels) - 1)
        others = pixels[0].nbytes * (min(room, len(distinct)) - len(pixels))
        held = InMemory(pixels, images.labels[: len(pixels)])
        return Repeated(held, images), torch.ones(max(0, others), dtype=torch.uint8)

    def drawn(self, pipeline: Pipeline, images: Images, config: EvaluateConfig) -> tuple[Samples, dict[str, Any]]:
        """Fewer samples by fewer steps, over and over; once as many as are made at a time, for the memory they take."""
        affordable = int(self.seconds / max(1e-9, 8 * self.forward))
        few = min(config.count, max(20, affordable))
        at_once = min(config.count, AT_ONCE * (torch.get_num_threads() if self.device.type == "cpu" else 1))
        found: list[tuple[Samples, dict[str, Any]]] = []

        def draw(steps: int, count: int = few) -> Cost:
            asked = config.model_copy(update={"count": count, "steps": steps})
            return clock.cost_of(lambda: found.append(self._drawn(pipeline, images, asked)), self.device)

        first = draw(1)
        if few < at_once and first.wall * at_once / few < _PATIENCE * self.seconds:
            there = torch.ones(config.count - at_once, *images.shape)  # a run's last ones are made beside all others
            first += draw(1, at_once)
            found.pop()
            del there
        one, three = draw(1), draw(3)
        step = ((three - one) * 0.5).at_least(Cost())
        whole = (one + step * (config.steps - 1)) * (config.count / few)
        self.left_out += whole - first - one - three
        samples, cost = found[-1]
        rows = torch.arange(config.count) % len(samples.labels)
        told = tuple(samples.prompts[row] for row in rows.tolist()) if samples.prompts else ()
        # In parts, joined and put into order, as those of a run are, whose parts an allocator may keep for later.
        parts = [samples.pixels[part] for part in rows.split(AT_ONCE)]
        pixels = torch.cat(parts)[torch.arange(config.count)]
        return replace(samples, pixels=pixels, labels=samples.labels[rows], prompts=told), cost

    def loss_by_noise(self, pipeline: Pipeline, train: Images, held_out: Images, seed: int = 0) -> dict[str, Any]:
        """Of fewer pictures."""
        count = min(_default(memory.loss_by_noise, "count"), len(train), len(held_out))
        few = min(count, max(8, int(self.seconds / (2 * len(memory._LEVELS) * self.forward))))
        found: dict[str, Any] = {}
        cost = clock.cost_of(
            lambda: found.update(memory.loss_by_noise(pipeline, train, held_out, count=few, seed=seed)), self.device
        )
        self.left_out += cost * (count / few - 1)
        return found


def _reads(rows: Tensor, count: int, room: int) -> float:
    """How often one of `count` pictures is read when those at `rows` are asked for and the first `room` are kept."""
    distinct = len(rows.unique())
    return distinct if distinct <= room else room + (len(rows) - room) * (1 - room / count)


def _default(call: Callable[..., object], name: str) -> int:
    """What an argument is if it is left out."""
    return int(inspect.signature(call).parameters[name].default)

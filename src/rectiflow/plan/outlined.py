"""A run's outline: every stage of it, built of shapes and counted by its own losses. Nothing is measured."""

import math
import shutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn

from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base import machine
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.networks.config import TransformerConfig
from rectiflow.plan.counted import Counted, counted
from rectiflow.plan.estimate import state
from rectiflow.plan.forecast import counts
from rectiflow.plan.line import Line
from rectiflow.plan.outline import Outline, StageOutline
from rectiflow.plan.probe import training_stages
from rectiflow.plan.seen import Seen, seen
from rectiflow.plan.shapes import CPU, Shaped, hollow, moments_shape
from rectiflow.training import autoencoder_stage, stages
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.blocks import apply_switches, repeated_blocks
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import LatentConfig, RunConfig
from rectiflow.training.stage import Stage
from rectiflow.training.stages import PictureStage
from rectiflow.training.watch import flop_counter
from rectiflow.workflow import _FEWEST, _MOST, AUTOENCODER, LATENTS, PICTURES, SCORES

Build = Callable[[TrainingConfig, LatentSpace | None], Stage]
_FEW, _MORE = 2, 3  # samples, from which a part of any size is told: all is a line over their number
_DEPTHS = (4, 6)  # of transformers, from which that of a deeper one is told
_LOOKED_AT, _KINDS = 400, 8
_GOLDEN = (5**0.5 - 1) / 2
_NUMBER = 4  # bytes of a float32
_NOISE_LEVELS, _OF_EACH = 9, 2 * 512  # of the loss by noise level in an evaluation


def outline(config: TrainingConfig, gpu: bool = True, look: bool = True, auto: str = "bfloat16") -> Outline:
    """What a run would compute and hold.

    Args:
        config: the run.
        gpu: whether its stages do what they do on a GPU, else what they do on a CPU.
        look: whether files of data may be looked at; else they are assumed.
        auto: the precision that "auto" is taken for.

    Raises:
        InputError: what the run would refuse.
    """
    known = seen(config, look)
    shaped = Shaped(known.shape, known.class_names, known.reads)
    latent = config.latent if isinstance(config, RunConfig) else None
    made: list[StageOutline] = []
    with torch.random.fork_rng(devices=[]), hollow(shaped, gpu):
        *before, last = training_stages(config)
        for name, first in zip((PICTURES, AUTOENCODER)[-len(before) :] if before else (), before, strict=True):
            made.append(_Outlined(_as_run(first, config), shaped.stage, known, None, auto).outline(name))
        space = None if latent is None else shaped.space(latent)
        if space is not None and latent is not None and known.train is not None:
            made.append(_encoding(space, shaped, latent, known))
        of_last = _Outlined(last, shaped.stage, known, space, auto)
        made.append(of_last.outline(_kind(last)))
        if latent is not None and known.train is not None and min(known.train, known.held_out or 0) >= _FEWEST:
            made.append(_scores(config, known, of_last.forward))
    return Outline(
        recipe=config.recipe,
        stages=tuple(made),
        assumed=known.assumed,
        available=machine.available(CPU),
        free=shutil.disk_usage(Path.cwd()).free,
    )


def most_parameters(config: TrainingConfig) -> int:
    """Numbers that the greatest stage of a run trains; files of data are not looked at.

    Raises:
        InputError: what the run would refuse; or nobody said of what size its pictures are.
    """
    known = seen(config, look=False)
    shaped = Shaped(known.shape, known.class_names, known.reads)
    latent = config.latent if isinstance(config, RunConfig) else None
    with torch.random.fork_rng(devices=[]), hollow(shaped, gpu=False):
        *before, last = training_stages(config)
        built = [shaped.stage(_small(_as_run(first, config)), None) for first in before]
        built.append(shaped.stage(_small(last), None if latent is None else shaped.space(latent)))
        return max(_numbers(stage.module) for stage in built)


def _as_run(first: TrainingConfig, config: TrainingConfig) -> TrainingConfig:
    """An autoencoder's settings with the data of its run."""
    own = {name: getattr(first.data, name) for name in ("crop", "scale", "flip", "workers")}
    data = config.data.model_copy(update={**own, "source_dir": ""})
    return first.model_copy(update={"data": data})


def _kind(config: TrainingConfig) -> str:
    if isinstance(config, AutoencoderRunConfig):
        return "autoencoder"
    return "flow" if config.recipe not in ("vae", "gan") else config.recipe


@dataclass(frozen=True)
class _Kind:
    """Steps of one kind.

    Args:
        share: of all steps.
        small: of a step with few samples, forward and backward.
        more: of its losses with one sample more.
        plain: what these two would be without recomputation.
    """

    share: float
    small: Counted
    more: Counted
    plain: tuple[Counted, Counted]

    def forward(self) -> Line:
        """FLOPs of the losses over the samples."""
        return Line.through([(_FEW, self.small.forward), (_MORE, self.more.forward)])

    def flops(self, samples: float) -> float:
        """FLOPs of so many samples, forward and backward."""
        return self.small.flops * self.forward().at(samples) / self.forward().at(_FEW)

    def memory(self) -> Line:
        """Bytes that are kept, and those of a block that is computed again and of its gradients, over the samples."""
        block = Line.through([(_FEW, self.plain[0].block), (_MORE, self.plain[1].block)])
        kept = Line.through([(_FEW, self.small.saved), (_MORE, self.more.saved)])
        times = 1 + (self.small.saved < self.plain[0].saved)
        return Line(kept.base + times * block.base, kept.slope + times * block.slope)


@final
class _Outlined:
    """One training stage.

    Args:
        config: its settings.
        build: makes the stage of settings.
        known: of the data.
        space: the autoencoder, if it is in latents.
        auto: the precision that "auto" is taken for.
    """

    def __init__(self, config: TrainingConfig, build: Build, known: Seen, space: LatentSpace | None, auto: str) -> None:
        self.config, self.known, self.space = config, known, space
        self.precision = auto if config.precision == "auto" else config.precision
        self.stage = build(_small(config), space)
        self.counted = [self.stage]
        depth = _depth(config)
        if depth > _DEPTHS[1]:  # blocks are alike, or every second one is: of many, few have to be counted
            self.counted = [build(_with_depth(_small(config), few), space) for few in _DEPTHS]
        self.further = (depth - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
        self.kinds = self._kinds()
        line = self.kinds[-1].forward()
        self.forward = line.slope

    def outline(self, name: str) -> StageOutline:
        """All of it."""
        config, module = self.config, self.stage.module
        part = config.batch / config.accumulate
        flops = config.accumulate * sum(kind.share * kind.flops(part) for kind in self.kinds)
        memory = max((kind.memory() for kind in self.kinds), key=lambda line: line.at(part))
        parameters = _numbers(module)
        return StageOutline(
            name=name,
            parameters=parameters,
            batch=config.batch,
            steps=config.steps,
            accumulate=config.accumulate,
            precision=self.precision,
            flops=flops,
            between=self._between(),
            calls=round(sum(kind.share * kind.small.calls for kind in self.kinds)),
            states=parameters * state(config),
            fixed=max(0.0, memory.base),
            per_sample=memory.slope,
            gathered=_gathered(module, 2 if self.precision == "bfloat16" else _NUMBER),
            frozen=0 if self.space is None else _NUMBER * _numbers(self.space.network),
            disk=self._disk(parameters),
        )

    def _kinds(self) -> list[_Kind]:
        """The kinds of steps, in the order in which they come; what is rare is left out."""
        stage, steps = self.stage, self.config.steps
        # Spread evenly, and in step with nothing that comes every so many steps.
        asked = sorted({0, *(int(steps * (number * _GOLDEN % 1)) for number in range(_LOOKED_AT))})
        first: dict[Hashable, int] = {}
        often: dict[Hashable, int] = {}
        for step in asked:
            kind = stage.kind(step)
            first.setdefault(kind, step)
            often[kind] = often.get(kind, 0) + 1
        chosen = sorted(sorted(often, key=lambda kind: -often[kind])[:_KINDS], key=lambda kind: first[kind])
        plain = {}
        if self.config.activation_checkpointing:
            plain = {kind: self._pair(first[kind], backward=False) for kind in chosen}
            for each in self.counted:
                apply_switches(each.module, self.config.model_copy(update={"compile": False, "channels_last": False}))
        found = {kind: self._pair(first[kind], backward=True) for kind in chosen}
        whole = sum(often[kind] for kind in chosen)
        return [_Kind(often[kind] / whole, *found[kind], plain.get(kind, found[kind])) for kind in chosen]

    def _pair(self, step: int, backward: bool) -> tuple[Counted, Counted]:
        return self._counted(step, _FEW, backward), self._counted(step, _MORE, backward=False)

    def _counted(self, step: int, samples: int, backward: bool) -> Counted:
        found = [counted(stage, step, samples, self.precision, backward) for stage in self.counted]
        return found[0].along(found[-1], self.further) if len(found) > 1 else found[0]

    def _between(self) -> float:
        """FLOPs of held-out losses and previews."""
        config, often = self.config, counts(self.config.every, self.config.steps)
        most = autoencoder_stage._HELD_OUT if isinstance(self.stage, AutoencoderStage) else stages._HELD_OUT
        held_out = most if self.known.held_out is None else min(most, self.known.held_out)
        shown = float(config.preview) if isinstance(config, AutoencoderRunConfig) else 0.0
        if isinstance(config, RunConfig) and isinstance(self.stage, PictureStage):
            asked, told = config.preview, bool(self.stage.class_names or self.stage.encoders)
            rows = len(self.stage.class_names) if self.stage.class_names else asked.rows
            guided = 2 if told and asked.guidance and self.stage._null_trained else 1
            steps = 1 if config.flow.one_step else asked.steps
            shown = asked.count * min(rows, asked.rows) * steps * guided
        return self.forward * (often["held_out"] * held_out + often["preview"] * shown)

    def _disk(self, parameters: int) -> int:
        """Checkpoints, the model, and snapshots of averages: all in float32."""
        config, often = self.config, counts(self.config.every, self.config.steps)
        averages = 1 if config.ema.kind == "exponential" else len(config.ema.lengths)
        best = config.keep_best if often["held_out"] else 0
        kept = min(config.keep + best, often["save"]) * (3 + averages) * parameters
        snapshots = often["average"] * averages * parameters if config.ema.kind == "power" else 0
        assert isinstance(self.stage, AutoencoderStage | PictureStage)
        model = self.stage.vae if isinstance(self.stage, AutoencoderStage) else self.stage.flow
        saved = _numbers(model) + (0 if self.space is None else _numbers(self.space.network))
        return _NUMBER * (kept + snapshots + (saved if often["save"] else 0))


def _small(config: TrainingConfig) -> TrainingConfig:
    """The same run with a few samples, each by itself."""
    update: dict[str, object] = {"batch": _MORE, "accumulate": 1}
    if isinstance(config, RunConfig):
        update["flow"] = config.flow.model_copy(update={"coupling": "independent"})
    return config.model_copy(update=update)


def _depth(config: TrainingConfig) -> int:
    """Blocks of a transformer; 0 of other networks."""
    network = config.network if isinstance(config, RunConfig) else None
    return network.depth if isinstance(network, TransformerConfig) else 0


def _with_depth(config: TrainingConfig, depth: int) -> TrainingConfig:
    assert isinstance(config, RunConfig)
    return config.model_copy(update={"network": config.network.model_copy(update={"depth": depth})})


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _gathered(module: nn.Module, size: int) -> float:
    """Bytes of two blocks' weights, of one's gradients, and of all that is around the blocks."""
    blocks = [_numbers(block) for block in repeated_blocks(module)]
    most, around = max(blocks, default=0), _numbers(module) - sum(blocks)
    return 2 * most * size + _NUMBER * (most + 2 * around)


def _encoding(space: LatentSpace, shaped: Shaped, latent: LatentConfig, known: Seen) -> StageOutline:
    """All pictures once, through the encoder, and on the disk in 16 bits."""
    assert known.train is not None
    count = known.train * latent.cache.variants + (known.held_out or 0)
    with shaped.fake:
        picture = torch.empty(1, *known.shape)
    with flop_counter() as flops, torch.no_grad():
        space.network.encode(picture)
    numbers = _numbers(space.network)
    return StageOutline(
        name=LATENTS,
        flops=flops.get_total_flops() * count,
        frozen=_NUMBER * numbers,
        disk=2 * count * math.prod(moments_shape(space, known.shape)),
    )


def _scores(config: TrainingConfig, known: Seen, forward: float) -> StageOutline:
    """Samples drawn, and the loss by noise level; features and distances are not counted."""
    assert isinstance(config, RunConfig)
    count = min(_MOST, known.held_out or 0)
    steps = EvaluateConfig(steps=config.preview.steps).steps
    return StageOutline(name=SCORES, flops=forward * (count * steps + _NOISE_LEVELS * _OF_EACH))

"""Several stages as one restartable whole: autoencoder → latents → flow → scores, each skipped when it is done."""

import json
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from rectiflow.autoencoders.config import check_frames, check_sides, fitted
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base.errors import InputError
from rectiflow.base.memory_full import told_if_full
from rectiflow.base.ranks import first_then_others, from_first
from rectiflow.data.encode import encode_set
from rectiflow.data.images import ImageSet, to_float
from rectiflow.data.latents import Manifest, fingerprint, open_latents
from rectiflow.data.sets import keep_index, open_set, open_source
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.report import evaluate
from rectiflow.models.autoencoder import digest, load_autoencoder, unfinished
from rectiflow.models.folder import describe
from rectiflow.pipeline import Pipeline
from rectiflow.training.alike import check_alike
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.config import TrainingConfig
from rectiflow.training.generator_config import LatentConfig, RunConfig
from rectiflow.training.parallel import check_parallel
from rectiflow.training.precision import resolve_device
from rectiflow.training.run import Outcome, check_texts, pictures_of, train, train_here
from rectiflow.training.run_folder import (
    INDEX_NAME,
    SOURCE_INDEX_NAME,
    STAGES,
    agreed_former,
    alone_in,
    begun,
    finished,
    model_step,
    owner,
    read_run,
    write_down,
    write_settings,
)
from rectiflow.training.stages import Latents

AUTOENCODER, PICTURES = STAGES
LATENTS, SCORES = "latents", "evaluation"
_FEWEST, _MOST = 20, 1000
_UNEVEN = 0.25


def run(config: TrainingConfig, folder: Path, console: Console) -> Outcome:
    """Train `config` in `folder`, with all the stages that it needs; what is done already is not done again.

    A run of latents holds, beside what every run has, `autoencoder/` (a run of its own), `latents/` (the cache) and
    `evaluation/` (the report on the finished model).

    Raises:
        InputError: a stage cannot begin or go on; one line.
    """
    if isinstance(config, RunConfig) and config.text is not None:
        config = config.model_copy(update={"text": config.text.absolute()})
    if isinstance(config, RunConfig) and config.picture is not None:
        config = config.model_copy(update={"picture": config.picture.absolute()})
    if not isinstance(config, RunConfig) or config.latent is None:
        return train(config, folder, console)
    config = _with_absolute_paths(config, config.latent)
    check_alike(config.model_dump(mode="json"))
    former = agreed_former(config, folder)  # what is refused leaves a folder as it was
    _check_processes(former or config, folder)
    with alone_in(folder):
        former = agreed_former(config, folder)  # until now another job may have had it
        if not finished(former or config, folder):
            check_texts(former or config)
        with first_then_others() as mine:
            if mine and former is None:
                _begin(config, folder, console)
            elif mine and former is not None and former != read_run(folder):
                write_settings(former, folder)  # it remembers how it was last carried out
        former = former or config
        assert isinstance(former, RunConfig)
        return _Workflow(former, folder, console).run()


def _check_processes(config: TrainingConfig, folder: Path) -> None:
    """Nothing, if each stage that is still to be trained can be, by as many processes: told before the first of them.

    Raises:
        InputError: one cannot; one line that names its setting.
    """
    assert isinstance(config, RunConfig)
    assert config.latent is not None
    if from_first(finished(config, folder)):
        return
    ahead: list[tuple[TrainingConfig, str]] = [(config, "")]
    if not config.latent.autoencoder and not from_first(finished(config.latent.train, folder / AUTOENCODER)):
        ahead.insert(0, (config.latent.train, f"{STAGES[AUTOENCODER]}."))
        pictures, taken = config.latent.pictures, from_first(begun(config.latent.train, folder / AUTOENCODER))
        if pictures is not None and not taken and not from_first(finished(pictures, folder / PICTURES)):
            ahead.insert(0, (pictures, f"{STAGES[PICTURES]}."))
    for stage, above in ahead:
        check_parallel(stage, above)


def _begin(config: RunConfig, folder: Path, console: Console) -> None:
    """Write down a run of latents that can begin.

    Raises:
        InputError: it cannot; one line.
    """
    config.data.refuse_buckets("latents")
    data = pictures_of(config, None, console)
    _check(config, data)
    if config.data.source_dir:
        keep_index(open_source(config.data, data.shape), folder / SOURCE_INDEX_NAME)
    write_down(config, data, folder)


def _with_absolute_paths(config: RunConfig, latent: LatentConfig) -> RunConfig:
    """The same run, which goes on from any folder; a name on the hub stays one."""
    there = Path(latent.autoencoder)
    name = str(there.absolute()) if latent.autoencoder and there.exists() else latent.autoencoder
    place = str(Path(latent.cache.dir).absolute()) if latent.cache.dir else ""
    cache = latent.cache.model_copy(update={"dir": place})
    return config.model_copy(update={"latent": latent.model_copy(update={"autoencoder": name, "cache": cache})})


def _check(config: RunConfig, data: ImageSet) -> None:
    """Nothing, if a run can begin.

    Raises:
        InputError: no such autoencoder, or pictures that do not suit it or the network; one line.
    """
    assert config.latent is not None
    latent, channels, (height, width) = config.latent, data.shape[0], data.size
    if latent.autoencoder:
        space = load_autoencoder(latent.autoencoder)
        space.check(data.shape)
        factor = space.factor
    else:
        factor = latent.train.network.factor
        check_sides(factor, data.size)
        check_frames(latent.train.network.temporal, data.shape)
        fitted(latent.train.network, channels)
    part = config.network.multiple
    if any(-(-side // factor) % part for side in (height, width)):
        near = "×".join(str(max(1, round(side / (factor * part))) * factor * part) for side in (height, width))
        raise InputError(
            f"pictures of {height}×{width} have latents {factor} times smaller, which the network's {part} does not "
            f"divide; the nearest size is {near}: set data.size."
        )


@dataclass(frozen=True)
class _Workflow:
    """The stages of one run of latents, whose folder this process holds; see `run`."""

    config: RunConfig
    folder: Path
    console: Console

    def run(self) -> Outcome:
        """All stages in order; returns how the last one that was trained ended."""
        outcome = Outcome(self.config.steps, finished=True, trained=False)
        if not from_first(finished(self.config, self.folder)):
            space = self._autoencoder()
            if isinstance(space, Outcome):  # stopped by its user; nothing of the flow is trained yet
                return space
            data = open_set(self.config.data, self.folder / INDEX_NAME)
            try:
                latents = Latents(space, self._encode(space, data))
            except KeyboardInterrupt:
                self._say("The encoding was stopped; whole shards are kept.")
                return Outcome(0, finished=False, trained=True, signal=signal.SIGINT)
            outcome = train_here(self.config, self.config, self.folder, self.console, latents)
        if outcome.finished and outcome.signal:
            self._say("The model is trained; it was stopped before its scores.")
            return replace(outcome, finished=False)
        if outcome.finished:
            self._evaluate()
        return outcome

    @property
    def _latent(self) -> LatentConfig:
        assert self.config.latent is not None
        return self.config.latent

    def _autoencoder(self) -> LatentSpace | Outcome:
        """The autoencoder that is named, or the run's own, trained if need be; how its training ended if stopped."""
        if self._latent.autoencoder:
            if note := unfinished(self._latent.autoencoder):
                self._say(note)
            return load_autoencoder(self._latent.autoencoder)
        asked, place = self._latent.train, self.folder / AUTOENCODER
        stages = [(asked, place)]
        if self._latent.pictures is not None:
            pictures = self.folder / PICTURES
            stages = [(asked.model_copy(update={"start_from": str(pictures.absolute())}), place)]
            if not from_first(begun(asked, place)):  # else it has taken from them what it takes
                stages.insert(0, (self._latent.pictures, pictures))
        for stage, folder in stages:
            outcome = self._train(stage, folder)
            if outcome.signal or not outcome.finished:
                return replace(outcome, step=0, finished=False)
        return load_autoencoder(str(place))

    def _train(self, asked: AutoencoderRunConfig, place: Path) -> Outcome:
        """Train an autoencoder on the run's pictures; how they are cropped and mirrored is its own."""
        if not asked.every.save:
            name = f"{owner(place)[1]}every.save"
            raise InputError(
                f"{name} is 0, but a flow is trained in the latents of an autoencoder that is saved: rectiflow train "
                f"--resume {self.folder} --set {name}={asked.steps}"
            )
        own = {name: getattr(asked.data, name) for name in ("crop", "scale", "flip", "workers")}
        pictures = self.config.data.model_copy(update={**own, "source_dir": ""})
        own_run = self.config
        shared = {"data": pictures, "device": own_run.device, "threads": own_run.threads, "watch": own_run.watch}
        outcome = train(asked.model_copy(update=shared), place, self.console, self.folder / INDEX_NAME)
        if outcome.signal:
            self._say(f"The {place.name.replace('-', ' ')} was stopped after step {outcome.step} of {asked.steps}.")
        return outcome

    def _encode(self, space: LatentSpace, data: ImageSet) -> ImageSet:
        folder = Path(self._latent.cache.dir) if self._latent.cache.dir else self.folder / LATENTS
        encode(space, data, folder, self.config, self.console)
        return open_latents(folder, fingerprint(digest(space), data, self.config.data, self._latent.cache), data)

    def _evaluate(self) -> None:
        if from_first(model_step(self.folder / "model")) != self.config.steps:
            self._say("not evaluated: nothing of the last step is saved, for every.save is 0.")
            return
        device = resolve_device(self.config.device)
        fewer = "--count 200" if device.type == "cpu" else "--device cpu"
        with told_if_full(
            lambda: (
                f"{device} had no memory left to score the model, which is whole, in {self.folder / 'model'}. Score it "
                f"by itself: rectiflow evaluate {self.folder} {fewer}"
            )
        ):
            self._score(device)

    def _score(self, device: torch.device) -> None:
        out = self.folder / SCORES
        with first_then_others():
            about = describe(self.folder / "model")
        if from_first(_reported_step(out / "report.json") == about["model_step"]):
            return
        data = open_set(self.config.data, self.folder / INDEX_NAME)
        if min(len(data.held_out), len(data.train)) < _FEWEST:
            self._say(
                f"not evaluated: {len(data.train)} training and {len(data.held_out)} held-out pictures; scores need "
                f"{_FEWEST} of each at least."
            )
            return
        count = min(_MOST, len(data.held_out))
        pipeline = Pipeline.load(self.folder, str(device))
        if self.config.data.source_dir:
            shown = open_source(self.config.data, pipeline.shape, self.folder / SOURCE_INDEX_NAME).unseen
            pipeline.start_from(lambda rows: to_float(shown.fetch(rows)), len(shown))
        asked = EvaluateConfig(count=count, steps=self.config.preview.steps, solver=self.config.preview.solver)
        if report := evaluate(pipeline, data, asked, out, about):
            distance = json.dumps(report["scores"]["frechet"])
            self._say(f"Fréchet distance {distance}; the report is {out / 'report.md'}.")

    def _say(self, words: str) -> None:
        self.console.print(words, highlight=False, soft_wrap=True)


def _reported_step(report: Path) -> int | None:
    """The step of the model that a report is on; None if there is no report, or no sound one."""
    try:
        step = json.loads(report.read_text(encoding="utf-8"))["model"]["model_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def encode(space: LatentSpace, data: ImageSet, folder: Path, config: RunConfig, console: Console) -> Manifest:
    """Write the latents of a run's pictures into `folder`, or what is missing there.

    Raises:
        InputError: it holds latents of something else, or cannot be written; one line.
    """
    assert config.latent is not None
    cache, device = config.latent.cache, resolve_device(config.device)
    made_by = fingerprint(digest(space), data, config.data, cache)
    with (
        told_if_full(lambda: _too_many(device, cache.batch)),
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        space.network.to(device)
        task = bar.add_task("encoding", total=None)
        manifest = encode_set(
            data,
            lambda x: space.stored_moments(x.to(device)),
            folder,
            cache,
            config.data,
            made_by,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    shape = "×".join(map(str, (manifest.shape[0] // 2, *manifest.shape[1:])))
    console.print(
        f"latents: {manifest.train.pictures} pictures, {manifest.held_out.pictures} held out, {shape} in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    _compare_statistics(manifest, console)
    return manifest


def _too_many(device: torch.device, batch: int) -> str:
    words = f"{device} had no memory left while latents were encoded; whole shards are kept."
    if batch == 1:
        return f"{words} Not even one picture fits: use a smaller data.size, or another autoencoder, in another --run."
    return f"{words} Encode fewer pictures at once: the same command with --set latent.cache.batch={batch // 2}"


def _compare_statistics(manifest: Manifest, console: Console) -> None:
    """Say so if an autoencoder's own mean and deviation do not suit these pictures."""
    off = [
        channel
        for channel, (mean, deviation) in enumerate(zip(manifest.mean, manifest.deviation, strict=True))
        if abs(mean) > _UNEVEN or not 1 / (1 + _UNEVEN) < deviation < 1 + _UNEVEN
    ]
    if off:
        channel = max(off, key=lambda c: abs(manifest.mean[c]) + abs(manifest.deviation[c] - 1))
        console.print(
            f"note: {len(off)} of {len(manifest.mean)} latent channels are not of about zero mean and unit deviation "
            f"on these pictures (channel {channel}: {manifest.mean[channel]:.2f} ± {manifest.deviation[channel]:.2f}).",
            highlight=False,
            soft_wrap=True,
        )

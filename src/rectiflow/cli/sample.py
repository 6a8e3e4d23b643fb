"""`rectiflow sample`: pictures from a trained model."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rectiflow.base.errors import InputError
from rectiflow.cli.output import Each, Output
from rectiflow.cli.together import together

if TYPE_CHECKING:
    from torch import Tensor

    from rectiflow.pipeline import Pipeline
    from rectiflow.request import Request


# What a file says of how it was made where it is not as usual.
_TOLD_IF_ASKED = (
    *("source", "guide", "picture", "null", "negative", "size", "precision"),
    *("frames", "first", "last", "go_on", "overlap"),
)
_OF_PRIORS = ("run", "out", "count", "seed", "size", "rate", "each", "device")  # what an autoencoder's are told by


@dataclass(frozen=True)
class Sample:
    """Make pictures with a trained model; with an autoencoder by itself, pictures of its own prior, without a flow.

    Under torchrun each process makes a part of them, and the first one writes.

    Args:
        run: A run folder, a model folder, ORG/NAME on the Hugging Face hub, or scenes, which ships with the package.
        out: Where to: X.png is a grid with a row for each class, of clips a strip of frames for each; X.mp4 and X.gif
            are clips side by side; X.npz holds arr_0 (uint8 N×H×W×C, of clips N×T×H×W×C) and arr_1 (labels); anything
            else is a folder with one file each and metadata.jsonl.
        classes: Names of classes; all of them if left out.
        prompt: Sentences, for a model of captions; several give several rows.
        negative: Sentence that guidance leads away from, in place of no prompt at all.
        count: Pictures of each class or prompt, one after another.
        steps: Intervals from noise (t=1) to picture (t=0).
        solver: fast, euler, heun, midpoint, rk4, ab2, ab2-pec, ab3, dpm++2m, unipc2, unipc3, exp-ab2, exp-ab3,
            trig-ab1, trig-ab2; rk45 (chooses its steps); sde, ddpm, sde-dpm++2m, edm, pc (noise at each step). Settings
            follow a colon: ddpm:eta=0.5, rk45:tolerance=1e-6, sde:epsilon=t,scale=0.5, edm:churn=0.2, pc:snr=0.1.
        grid: uniform, karras, log-snr, or times that fall from 1 to 0, such as 1,0.8,0.5,0; these set the steps.
        schedule: Path to sample on, by equal log-SNR: rectified, trig, polynomial, vp-linear or ve; the model's
            own if left out.
        guidance: w ≥ 0 of v = (1+w)·v_class − w·v_null; 0 is none. Others' guidance scale is 1+w.
        guidance_kind: cfg, apg, cfg-zero, cfg++ (its λ is --guidance, usually up to 1), rescale or auto; settings
            follow a colon, as in apg:momentum=0,radius=2.
        guide: Run of a smaller or less trained model of the same pictures, for auto.
        interval: Times between which guidance acts, LOW HIGH; 0 1 is all.
        seed: Picture i of a request has the same noise under the same seed, however many are asked for.
        source: Folder of pictures to start from, for a model that starts from pictures: the j-th of each class starts
            from the j-th of them. A run starts from its own held-out ones if this is left out.
        picture: Picture, or folder of pictures, for a model that is given one: a low-resolution or grey one, or one
            whose transparent pixels are to be filled. --count is of each; in a folder they are named after it.
        null: What guidance leads away from: picture (the same one, without its label or text), nothing, or auto (the
            same picture, for a model with labels or texts).
        size: Height and width in pixels; the size trained on if left out.
        frames: Frames of each clip, 1+4k, 1 for pictures; those trained on if left out. More than these are made in
            windows, each going on from the end of the one before.
        first: Picture that the clips begin with, for a model of clips.
        last: Picture that they end with.
        go_on: Film whose last --overlap frames they begin with, and go on from.
        overlap: Frames that a window takes over from the one before, 1+4m.
        rate: Frames a second of films; if left out, those of --go-on, or those that the model was trained at, or 8.
        each: What a folder gets of each clip: an mp4, a gif, or a folder of its frames.
        filmstrip: Show this many moments from noise to picture in each row, a row for each picture (X.png only).
        precision: Of the network's arithmetic: float32, or bfloat16, about twice as fast where the processor has it.
        device: auto, cpu, cuda or mps.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Path = Path("samples.png")
    classes: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    negative: str = ""
    count: int = 1
    steps: int = 50
    solver: str = "euler"
    grid: str = "uniform"
    schedule: str = ""
    guidance: float = 0.0
    guidance_kind: str = "cfg"
    guide: Path | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    seed: int = 0
    source: Path | None = None
    picture: Path | None = None
    null: Literal["auto", "picture", "nothing"] = "auto"
    size: tuple[int, int] | None = None
    frames: int | None = None
    first: Path | None = None
    last: Path | None = None
    go_on: Path | None = None
    overlap: int = 5
    rate: float | None = None
    each: Each = "mp4"
    filmstrip: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"

    def __call__(self) -> int:
        """Sample; returns the exit status."""
        with together(self) as first:
            self._sample()
            if first:
                print(f"wrote {self.out}")
        return 0

    def _sample(self) -> None:
        output = Output(self.out, self.count if self.count > 1 else 0, self.rate, self.each)
        output.check()
        if self.filmstrip and (output.suffix != ".png" or self.filmstrip < 2):
            raise InputError("--filmstrip takes at least 2 moments and an --out that ends in .png.")
        if self.overlap < 1 or (self.overlap - 1) % 4:
            raise InputError(f"--overlap is of 1+4m frames, such as 1, 5 or 9, received {self.overlap}.")
        from rectiflow.base.ranks import first_then_others
        from rectiflow.cli.runs import model_of
        from rectiflow.models.autoencoder import is_autoencoder
        from rectiflow.models.folder import find_model
        from rectiflow.pipeline import Pipeline
        from rectiflow.request import Request
        from rectiflow.training.precision import resolve_device

        with first_then_others():  # it may have to be downloaded
            model = find_model(self.run)
        if is_autoencoder(model):
            return self._save_prior(model, output)
        device = str(resolve_device(self.device))
        # What is given in place of a run's own pictures needs these no more.
        pipeline = model_of(self.run, device) if self.source is None else Pipeline.load(self.run, device)
        given, names = self._given(pipeline)
        frames, rate = self._frames(pipeline)
        request = Request(
            classes=self.classes,
            prompts=self.prompt,
            negative=self.negative,
            count=self.count * max(1, len(names)),
            steps=self.steps,
            solver=self.solver,
            grid=self.grid,
            schedule=self.schedule,
            guidance=self.guidance,
            guidance_kind=self.guidance_kind,
            guide=None if self.guide is None else Pipeline.load(self.guide, device),
            interval=self.interval,
            seed=self.seed,
            size=self.size,
            precision=self.precision,
            source=None if self.source is None else self._source(self.size or pipeline.size, pipeline.shape[0]),
            picture=given,
            null=self.null,
            frames=self.frames,
            **frames,
        )
        if self.filmstrip:
            self._save_filmstrip(pipeline, request)
        else:
            self._save_samples(pipeline, request, replace(output, rate=output.rate or rate), names)

    def _save_prior(self, model: Path, output: Output) -> None:
        import torch

        from rectiflow.base.machine import check_fits
        from rectiflow.base.ranks import first
        from rectiflow.base.spread import to_first
        from rectiflow.models.autoencoder import load_autoencoder, prior_pictures, read_autoencoder_config
        from rectiflow.training.precision import resolve_device

        config = read_autoencoder_config(model)
        plain, recipe = Sample(self.run), "video" if len(config.shape) == 4 else "latent"
        others = [f.name for f in fields(self) if f.name not in _OF_PRIORS]
        if asked := next((name for name in others if getattr(self, name) != getattr(plain, name)), ""):
            option = asked.replace("_", "-")
            raise InputError(
                f"{self.run} is an autoencoder, of whose prior alone pictures are made; leave out --{option}, or train "
                f"a flow in it: rectiflow train {recipe} --autoencoder {self.run} --data DIR"
            )
        shape = (*config.shape[:-2], *(self.size or config.shape[-2:]))
        check_fits(self.count, shape)
        space = load_autoencoder(str(model))
        space.network.to(resolve_device(self.device))

        def made(start: int, stop: int) -> torch.Tensor:
            return prior_pictures(space, shape, self.count, self.seed, torch.arange(start, stop))

        pixels = to_first(made, self.count)
        if not first():
            return
        about = {"model": str(self.run), **config.training, "prior": True, "seed": self.seed}
        about |= {} if self.rate is None else {"rate": self.rate}
        labels = torch.full((self.count,), -1)
        output.write(pixels, labels, about, [{"index": i, **about} for i in range(self.count)])

    def _given(self, pipeline: "Pipeline") -> tuple["Tensor | None", tuple[str, ...]]:
        """What --picture gives, each `count` times, and the names of what was given."""
        if self.picture is None:
            return None, ()
        if pipeline.conditioner.picture is None:
            raise InputError(f"{self.run} is given no picture beside the noise; leave out --picture.")
        from rectiflow.base.machine import check_fits
        from rectiflow.data.given import read_given

        shape = (pipeline.shape[0], *(self.size or pipeline.size))
        pictures, names = read_given(self.picture, pipeline.conditioner.picture, shape)
        check_fits(len(pictures) * self.count, shape)
        return pictures.repeat_interleave(max(1, self.count), 0), names

    def _named(self, names: Sequence[str], total: int) -> list[str]:
        """Names of `total` pictures, by class or prompt, each of them by the picture given, `count` of each."""
        if not names:
            return []
        rows = [name for name in names for _ in range(self.count)]
        groups = total // len(rows)
        each = [f"{i % self.count + self.count * group}" for group in range(groups) for i in range(len(rows))]
        single = groups * self.count == 1
        return [name if single else f"{name}-{number}" for name, number in zip(rows * groups, each, strict=True)]

    def _source(self, size: tuple[int, int], channels: int) -> "Tensor":
        import torch

        from rectiflow.data.images import to_float
        from rectiflow.data.sets import pictures_in

        images = pictures_in(str(self.source), (channels, *size)).train
        return to_float(images.fetch(torch.arange(min(self.count, len(images)))))

    def _frames(self, pipeline: "Pipeline") -> tuple[dict[str, "Tensor | None"], float | None]:
        """What --first, --last and --go-on give, under the names of a request; and the rate of --go-on."""
        if self.first is self.last is self.go_on is None:
            return {}, None
        if pipeline.conditioner.frames is None:
            raise InputError(f"{self.run} is given no frames beside the noise; leave out --first, --last and --go-on.")
        if self.first is not None and self.go_on is not None:
            raise InputError("--first and --go-on both say how clips begin; leave out one of them.")
        from rectiflow.data.clips import FASTEST, SLOWEST
        from rectiflow.data.given import read_end, read_frame

        rate = None
        shape = (*pipeline.shape[:2], *(self.size or pipeline.size))
        first = None if self.first is None else read_frame(self.first, shape)
        if self.go_on is not None:
            first, own = read_end(self.go_on, self.overlap, shape)
            rate = min(max(own, SLOWEST), FASTEST)
        return {"first": first, "last": None if self.last is None else read_frame(self.last, shape)}, rate

    def _save_samples(self, pipeline: "Pipeline", request: "Request", output: Output, names: Sequence[str]) -> None:
        from rectiflow.base.ranks import first
        from rectiflow.base.spread import to_all, to_first
        from rectiflow.continuation import continued

        # Each window of a long clip is begun by the one before, which everyone must have.
        windows = len(pipeline.shape) == 4 and (self.frames or 1) > pipeline.shape[1]
        pipeline.spread = to_all if windows else to_first
        samples = continued(pipeline, request, self.overlap)
        if not first():
            return
        each = list(self._about_each(pipeline, request, samples.labels, output.rate))
        named = self._named(names, len(samples.pixels)) if output.suffix == "" else names
        output.write(samples.pixels, samples.labels, self._about(pipeline, output.rate), each, named)

    def _save_filmstrip(self, pipeline: "Pipeline", request: "Request") -> None:
        import torch

        from rectiflow.base.ranks import first
        from rectiflow.base.spread import to_first
        from rectiflow.continuation import check_room
        from rectiflow.data.pictures import grid, save_png, screen_scale, to_uint8

        clips = len(pipeline.shape) == 4
        if clips and self.frames != 1:
            raise InputError("--filmstrip shows how single pictures come about; of a model of clips add --frames 1.")

        check_room(pipeline, replace(request, count=request.count * self.filmstrip))

        def films(start: int, stop: int) -> torch.Tensor:
            shown = []
            for state in pipeline.states(request, start, stop):
                times = int((torch.linspace(0, state.steps, self.filmstrip).round() == state.step).sum())
                shown += times * [pipeline.decode(state, request).cpu()] if times else []
            frames = torch.stack(shown, dim=1)  # pictures × moments × C×H×W
            return frames.squeeze(3) if clips else frames

        frames = to_first(films, len(pipeline.labels(request)))
        if not first():
            return
        pixels = to_uint8(frames.flatten(0, 1))
        sheet = grid(pixels, self.filmstrip, screen_scale(*pixels.shape[1:3]))
        save_png(sheet, self.out, self._about(pipeline))

    def _about(self, pipeline: "Pipeline", rate: float | None = None) -> dict[str, Any]:
        classes = self.classes or pipeline.class_names
        names = ("count", "steps", "solver", "grid", "schedule", "guidance", "guidance_kind", "interval", "seed")
        about = {k: v for k, v in asdict(self).items() if k in names}
        if "," in self.grid:
            about["steps"] = self.grid.count(",")
        if pipeline.flow.one_step:
            about |= {"steps": 1, "solver": "euler", "grid": "uniform"}
        plain = Sample(self.run)
        for name in _TOLD_IF_ASKED:
            if (value := getattr(self, name)) != getattr(plain, name):
                about[name] = str(value) if isinstance(value, Path) else value
        if self.picture is not None:
            about["null"] = self.null
        if rate is not None:
            about["rate"] = rate
        asked = {"prompts": list(self.prompt)} if pipeline.takes_prompts else {"classes": list(classes)}
        return {"model": str(self.run), **pipeline.training, **asked, **about}

    def _about_each(
        self, pipeline: "Pipeline", request: "Request", labels: "Tensor", rate: float | None
    ) -> Iterator[dict[str, Any]]:
        about = {k: v for k, v in self._about(pipeline, rate).items() if k not in ("classes", "prompts")}
        for index, (label, prompt) in enumerate(zip(labels.tolist(), pipeline.prompts(request), strict=True)):
            name = pipeline.class_names[label] if label >= 0 else None
            asked = {"prompt": prompt} if pipeline.takes_prompts else {"class": name}
            yield {**asked, "index": index, **about}

"""Floor 5: a model as its user holds it: conditioner, flow and autoencoder, in one folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from rectiflow.autoencoders.autoencoder import Autoencoder, Identity
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base.autocast import autocast
from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.base.spread import Spread, alone
from rectiflow.conditioner import Conditioner
from rectiflow.conditioning.encoders import saved_encoders
from rectiflow.conditioning.frames import given_frames, put_back
from rectiflow.conditioning.picture import check_given
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.flow import AbstractFlow, Flow
from rectiflow.flow.rescheduled import OnSchedule
from rectiflow.flow.schedule import schedule
from rectiflow.flow.source import Pictures
from rectiflow.hub import publish
from rectiflow.models.autoencoder import record_of, restored
from rectiflow.models.folder import (
    CONVENTIONS,
    FORMAT_VERSION,
    WEIGHTS,
    AutoencoderRecord,
    ModelConfig,
    find_model,
    read_model_config,
    write_model,
)
from rectiflow.models.weights import read_weights
from rectiflow.networks.build import build
from rectiflow.networks.config import NetworkConfig
from rectiflow.request import Request, Samples, check_given_frames
from rectiflow.sampling.cores import even_parts, over_cores
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.guidances import guidance as guidance_named
from rectiflow.sampling.sample import State, trajectory
from rectiflow.sampling.solvers import solver as solver_named
from rectiflow.sampling.stochastic import Noise

AT_ONCE = 125  # pictures or clips that a core, or a GPU, makes at a time at most
_PATH = ("schedule", "exponent", "sigma_min", "sigma_max")


@dataclass
class Pipeline:
    """A model: class names or prompts in, pictures out.

    Args:
        flow: the trained flow.
        flow_config: its saved conventions.
        network_config: its network's architecture.
        shape: C, H, W of a picture as trained, or C, T, H, W of a clip of T frames.
        conditioner: what it is told.
        autoencoder: between pictures and what the flow works on.
        training: where the model comes from; for readers only.
        spread: who of a job's processes makes what of a request: `alone`, or all together (`rectiflow.base.spread`).
    """

    flow: Flow
    flow_config: FlowConfig
    network_config: NetworkConfig
    shape: tuple[int, ...]
    conditioner: Conditioner = field(default_factory=Conditioner)
    autoencoder: Autoencoder = field(default_factory=Identity)
    training: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread = alone

    def sample(self, request: Request) -> Samples:
        """Pictures for a request.

        Raises:
            InputError: a class, solver, size or number that cannot be; one line.
        """
        labels = self.labels(request)
        pixels = self.spread(partial(self._pictures, request), len(labels))
        return Samples(pixels, labels, self.prompts(request) if self.takes_prompts else ())

    def _pictures(self, request: Request, start: int, stop: int) -> Tensor:
        on_cpu = self._device.type == "cpu"

        def pictures(part: tuple[int, int]) -> Tensor:
            for state in self.states(request, *part):
                last = state
            made, given = self.decode(last, request).cpu(), request.given(torch.arange(*part))
            return made if given is None else self.conditioner.degradation.put_back(made, given)

        parts = even_parts(start, stop, AT_ONCE, torch.get_num_threads() if on_cpu else 1)
        return torch.cat(over_cores(pictures, parts) if on_cpu else [pictures(part) for part in parts])

    def decode(self, state: State, request: Request) -> Tensor:
        """The pictures of a state of sampling, float32 B×C×H×W in about [−1, 1]."""
        with torch.no_grad(), autocast(self._device, request.precision):
            return self.autoencoder.decode(state.x_t, request.size or self.size).float()

    def states(self, request: Request, start: int = 0, stop: int | None = None) -> Iterator[State]:
        """Sampling as it goes, for the pictures start … stop−1 of a request: the state at each of the N+1 times."""
        labels = self.labels(request)
        index = torch.arange(len(labels))[start:stop]
        shape = self._latent_shape(request)
        z = self._start(request, index, shape).to(self._device)
        image = self._given(request, index, shape)
        condition = self.conditioner.asked(request, index, image)
        condition = None if condition is None else condition.to(self._device)
        flow = self._flow_on(self._path(request.schedule))
        path = flow.schedule
        # What knows one step alone is given one.
        solver = solver_named("euler" if self.flow.one_step else request.solver, Noise(request.seed, index))
        steps, kind = (1, "uniform") if self.flow.one_step else (solver.intervals(request.steps), request.grid)
        grid = time_grid(steps, shift_by=flow.shift_for(shape), kind=kind, schedule=path)
        guide = None if request.guide is None else request.guide._flow_on(self._path(request.schedule))
        guidance = guidance_named(request.guidance_kind, request.guidance, request.interval, guide)
        states = trajectory(flow, path.prior_std * z, grid, solver, condition, guidance)
        while True:
            # Only the network runs without gradients: a generator must not switch them off for its caller.
            with torch.no_grad(), autocast(self._device, request.precision):
                state = next(states, None)
            if state is None:
                return
            if request.first is not None and image is not None and float(state.t) == 0:
                state = replace(state, x_t=put_back(state.x_t, image.to(self._device)))
            yield state

    @property
    def size(self) -> tuple[int, int]:
        """H, W of a picture as trained."""
        return self.shape[-2], self.shape[-1]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label; empty for a model without classes."""
        return self.conditioner.class_names

    @property
    def takes_prompts(self) -> bool:
        """Whether its pictures are asked for by sentences."""
        return self.conditioner.takes_prompts

    def prompts(self, request: Request) -> tuple[str, ...]:
        """Prompt of each picture of a request; empty ones for a model that takes none."""
        return self.conditioner.prompts(request)

    def condition(self, labels: Tensor, captions: Sequence[str], given: Tensor | None = None) -> Condition | None:
        """What the flow is told of pictures with these labels (int64 B) and captions, and with this given of them (as
        `Request.picture`); None if it is told nothing.
        """
        image = None if given is None else self.conditioner.degradation.told(given)
        condition = self.conditioner.condition(labels, captions, image)
        return None if condition is None else condition.to(self._device)

    def _given(self, request: Request, index: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """What the flow is told of pictures or frames that are given; `shape` is that of its latents."""
        if request.picture is not None:
            return self.conditioner.degradation.told(request.picture[index % request.count % len(request.picture)])
        if request.first is None and request.last is None:
            return None
        first, last = request.beginning(index), request.end(index)
        known = [None if frames is None else self._encoded(frames) for frames in (first, last)]
        return given_frames(known[0], known[1], (len(index), *shape))

    def _encoded(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.autoencoder.encode(x).float().cpu()

    def _latent_shape(self, request: Request) -> tuple[int, ...]:
        """Shape of what the flow works on, for pictures of the size and clips of the frames that are asked for.

        Raises:
            InputError: latents of this size do not suit the network.
        """
        size = request.size or self.size
        asked = (self.shape[0], *self._frames(request), *size)
        if isinstance(self.autoencoder, LatentSpace) and min(size) > 0:
            self.autoencoder.check(asked)
        shape = self.autoencoder.latent_shape(asked)
        if isinstance(self.autoencoder, LatentSpace):
            part, factor = self.network_config.multiple, self.autoencoder.factor
            if min(size) < 1 or any(side % part for side in shape[-2:]):
                unit = part * factor
                near = "×".join(str(max(1, round(side / unit)) * unit) for side in size)
                raise InputError(
                    f"pictures of {size[0]}×{size[1]} have latents of {shape[-2]}×{shape[-1]}, which the network's "
                    f"{part} does not divide; the nearest size is {near}."
                )
        return shape

    def _frames(self, request: Request) -> tuple[int, ...]:
        """T of the clips that are asked for; () for a model of pictures."""
        if len(self.shape) == 3:
            if request.frames is not None:
                raise InputError("this model makes pictures, not clips; leave the frames out.")
            return ()
        frames = self.shape[1] if request.frames is None else request.frames
        if frames < 1:
            raise InputError(f"a clip has at least 1 frame, received frames={frames}.")
        return (frames,)

    def _start(self, request: Request, index: Tensor, shape: tuple[int, ...]) -> Tensor:
        if request.source is None:
            return self.flow.source.sample(Key(request.seed, "noise"), index, shape)
        given = request.source
        return Pictures(lambda rows: self.autoencoder.encode(given[rows]), len(given)).at(index % request.count, shape)

    def start_from(self, fetch: Callable[[Tensor], Tensor], count: int) -> None:
        """Draw what a model that starts from pictures starts from among these.

        Args:
            fetch: the pictures at an index (int64 B), B×C×H×W in [−1, 1].
            count: how many there are.

        Raises:
            InputError: the model starts from something else.
        """
        self._refuse_source()
        self.flow.source = Pictures(lambda rows: self.autoencoder.encode(fetch(rows)), count)

    def _refuse_source(self) -> None:
        if self.flow_config.source != "pictures":
            raise InputError(f"this model starts from {self.flow_config.source} noise; leave out the source pictures.")

    def _path(self, name: str) -> FlowConfig:
        """The model's own path, or the named one with the model's own settings of it."""
        return FlowConfig.parse(
            {**self.flow_config.model_dump(), "schedule": name or self.flow_config.schedule}, "path"
        )

    def _flow_on(self, path: FlowConfig) -> AbstractFlow:
        same = all(getattr(path, name) == getattr(self.flow_config, name) for name in _PATH)
        return self.flow if same else OnSchedule(self.flow, schedule(path))

    def labels(self, request: Request) -> Tensor:
        """Label of each picture of a request, int64.

        Raises:
            InputError: it asks for what the model does not know; one line.
        """
        if request.guide is not None:
            self._check_guide(request.guide, request.guidance_kind)
        if request.source is not None:
            self._refuse_source()
        labels = self.conditioner.labels(request)
        frames, size = self._frames(request), request.size or self.size
        if request.picture is not None and self.conditioner.picture is not None:
            check_given(self.conditioner.picture, request.picture, (self.shape[0], *size))
        check_given_frames(request, (self.shape[0], *frames, *size))
        return labels

    def _check_guide(self, guide: "Pipeline", kind: str) -> None:
        if kind.partition(":")[0] != "auto":
            raise InputError(f"--guide is the weaker model of --guidance-kind auto; {kind} asks none, leave it out.")
        if guide.flow.one_step:
            raise InputError("--guide is a one-step model, which knows t=1 alone; it cannot guide the steps between.")
        if not self.conditioner.same_kind(guide.conditioner):
            raise InputError("--guide and this model must both take prompts, or neither, and the same pictures.")
        if (guide.shape, guide.class_names) != (self.shape, self.class_names):
            raise InputError(
                f"--guide is of pictures {guide.shape} with {len(guide.class_names)} classes; expected this model's "
                f"{self.shape} with the same {len(self.class_names)}."
            )

    def save(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and the weights, whole or not at all; a model already there is replaced.

        Args:
            folder: where to.
            dtype: as for `save_weights`: torch.float16 halves the files.

        Raises:
            InputError: the disk is full or read-only.
        """
        config = ModelConfig(
            format_version=FORMAT_VERSION,
            library_version=version("rectiflow"),
            conventions=CONVENTIONS,
            flow=self.flow_config,
            network=self.network_config,
            class_names=self.class_names,
            picture=self.conditioner.picture,
            frames=self.conditioner.frames,
            null_trained=self.conditioner.null_trained,
            shape=self.shape,
            training=dict(self.training),
            autoencoder=record_of(self.autoencoder) if isinstance(self.autoencoder, LatentSpace) else "identity",
            weights={},
        )
        network = self.autoencoder.network if isinstance(self.autoencoder, LatentSpace) else None
        write_model(Path(folder), self.flow.network, network, self.conditioner.encoders, config, dtype)

    def push(self, name: str, private: bool = False) -> str:
        """Upload the model to the Hugging Face hub as ORG/NAME; returns where it can be seen.

        Raises:
            InputError: the name is not ORG/NAME, or the hub refuses.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder, "model"))
            return publish(Path(folder, "model"), name, private)

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu") -> Self:
        """The model in `folder`, checked against its hashes, ready to sample.

        Args:
            folder: a model folder, a run folder that holds one, or ORG/NAME on the Hugging Face hub.
            device: where to put it.

        Raises:
            InputError: a file is missing, altered, newer than this library or of another shape; the line says which.
        """
        folder = find_model(Path(folder))
        config = read_model_config(folder)
        network = build(config.network)
        flow = Flow.build(network, config.flow)
        read_weights(network, folder / WEIGHTS, config.weights)
        flow.requires_grad_(False).eval().to(device)
        autoencoder: Autoencoder = Identity()
        if isinstance(config.autoencoder, AutoencoderRecord):
            autoencoder = restored(config.autoencoder, folder, config.weights)
            autoencoder.network.to(device)
        return cls(
            flow=flow,
            flow_config=config.flow,
            network_config=config.network,
            shape=config.shape,
            conditioner=Conditioner(
                class_names=config.class_names,
                encoders=saved_encoders(config.texts, folder, config.weights, device),
                picture=config.picture,
                frames=config.frames,
                null_trained=config.null_trained,
            ),
            autoencoder=autoencoder,
            training=config.training,
        )

    @property
    def _device(self) -> torch.device:
        return next(self.flow.parameters()).device

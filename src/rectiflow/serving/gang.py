"""Requests that are marched as one batch, because marching each by itself costs more than their share of the network.

Only requests that want the same steps of the same way go together, and each picture keeps its own noise: so the
pictures are those made alone. Who leaves is not computed any more, but has its place until the others are done.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from rectiflow.base.randomness import Key
from rectiflow.flow.source import Source
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.sampling.adaptive import DormandPrince
from rectiflow.sampling.solvers import solver as solver_named
from rectiflow.sampling.stochastic import Stochastic
from rectiflow.serving.job import Job


@final
@dataclass(frozen=True, eq=False)
class Gang:
    """Jobs that march together, one at least."""

    jobs: tuple[Job, ...]

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for any of them."""
        return all(job.cancelled for job in self.jobs)

    def rows(self, jobs: Collection[Job]) -> Tensor:
        """Where the pictures of some of the jobs lie among those of all, int64."""
        return torch.tensor([job in jobs for job in self.jobs for _ in range(job.pictures)]).nonzero().flatten()

    def standing_rows(self, count: int) -> Tensor | None:
        """Rows of a call that somebody waits for, int64; None if that is all of them.

        Args:
            count: rows of the call: one of each picture, once or, with guidance, several times in a row.
        """
        standing = [job for job in self.jobs if not job.cancelled]
        if len(standing) in (0, len(self.jobs)):
            return None
        pictures = sum(job.pictures for job in self.jobs)
        starts = torch.arange(0, count, pictures)
        return (starts[:, None] + self.rows(standing)).flatten()


@final
class Gathered(Source):
    """The draws of several requests, one request after the other.

    Args:
        source: what each draws from.
        parts: seed and number of pictures of each.
    """

    def __init__(self, source: Source, parts: Sequence[tuple[int, int]]) -> None:
        self.source, self.parts, self.no_score = source, parts, source.no_score

    def sample(self, key: Key, index: Tensor, shape: Sequence[int]) -> Tensor:
        """Draw z, B×shape float32; `index` counts through all of them."""
        drawn = [self.source.sample(replace(key, seed=seed), torch.arange(n), shape) for seed, n in self.parts]
        return torch.cat(drawn)[index]

    def log_density(self, z: Tensor) -> Tensor:
        """Natural log of the density of each z, B."""
        return self.source.log_density(z)


def gangs(jobs: Sequence[Job], batch: int, window: int) -> list[Gang]:
    """Jobs put together where they can be, and where a call of the network has room for all of their rows.

    Args:
        jobs: in any order.
        batch: weight of the rows of one call; guidance asks for two rows a picture.
        window: frames that are made at once; longer clips go on from ends of their own.
    """
    found: list[Gang] = []
    open_to: dict[object, list[Job]] = {}
    for job in jobs:
        way = None if (job.request.frames or 1) > window else _way(job.request)
        mates = open_to.get(way, []) if way is not None else []
        weight = sum(mate.weight for mate in [*mates, job]) * (2 if job.request.guidance else 1)
        if mates and weight > batch:
            found.append(Gang(tuple(mates)))
            mates = []
        if way is None:
            found.append(Gang((job,)))
        else:
            open_to[way] = [*mates, job]
    return [*found, *(Gang(tuple(mates)) for mates in open_to.values())]


def joined(pipeline: Pipeline, gang: Gang) -> tuple[Pipeline, Request]:
    """A pipeline and a request for the pictures of all jobs of a gang, job by job."""
    first = gang.jobs[0].request
    if len(gang.jobs) == 1:
        return pipeline, first
    flow = pipeline.flow
    source = Gathered(flow.source, [(job.request.seed, job.pictures) for job in gang.jobs])
    inside = flow.alike(source=source)
    requests = [job.request for job in gang.jobs]
    names = [pipeline.class_names[label] for r in requests for label in pipeline.labels(r).tolist() if label >= 0]
    prompts = [prompt for r in requests for prompt in pipeline.prompts(r)] if pipeline.takes_prompts else []
    count = 1 if names or prompts else sum(job.pictures for job in gang.jobs)
    return replace(pipeline, flow=inside.eval()), replace(first, classes=names, prompts=prompts, count=count)


def _way(request: Request) -> object:
    """What requests must have in common to march together; None if this one marches alone.

    Noise at each step goes by the seed of a whole request, and a step that is chosen is chosen for a whole batch.
    """
    given = request.gives or request.source is not None
    plain = not given and request.guide is None and request.guidance_kind == "cfg"
    if not plain or isinstance(solver_named(request.solver), Stochastic | DormandPrince):
        return None
    grid = request.grid if isinstance(request.grid, str) else tuple(request.grid)
    march = (request.steps, request.solver, grid, request.schedule, request.size, request.frames)
    return (*march, request.guidance, request.interval, request.negative)

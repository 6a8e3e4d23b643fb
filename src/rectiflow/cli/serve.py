"""`rectiflow serve`: a model as an API and a page."""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rectiflow.base.errors import InputError

_LONGEST_GRACE = 86_400
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEEDED = ("fastapi", "uvicorn", "gradio", "prometheus_client", "greenlet")


@dataclass(frozen=True)
class Serve:
    """Serve a model: a page at /, OpenAI's images API at /v1, of clips its videos API, and /health and /metrics.

    A token is asked for if the environment has RECTIFLOW_TOKEN or --token-file names one: of the API as
    Authorization: Bearer TOKEN, of the page as a password.

    Args:
        run: A run folder, a model folder, ORG/NAME on the Hugging Face hub, or scenes, which ships with the package.
        host: Address to listen at; 127.0.0.1 is reached from this machine alone, 0.0.0.0 from everywhere.
        port: Port; 0 takes a free one.
        name: What clients call the model; the name of the run if left out.
        token_file: File that holds the token.
        steps: Steps where a client says nothing.
        solver: Solver where a client says nothing; see rectiflow sample --help.
        guidance: w ≥ 0 where a client says nothing; 1 if left out, or 0 for a model without.
        max_queue: Requests that wait; further ones are refused with 429.
        max_slots: Pictures of the trained size in flight; a clip counts as much as its frames that are made at once.
        max_batch: Rows of the trained size in one call of the network, counted likewise.
        max_n: Pictures of a request.
        max_steps: Steps of a request.
        max_side: Longest side of a picture in pixels; 0 is twice that of the size trained on.
        max_frames: Most frames of a clip that is made at once, which is a window; 0 is the number trained on.
        max_windows: Most windows of a longer clip, the first included, for a model that is given frames; 1 for none.
        rate: Frames a second of clips where a client says nothing; if left out those of the model's training, or 8.
        lanes: Threads that call the network; 0 is one for each core on a CPU, and one elsewhere.
        precision: Of the network's arithmetic: float32, or bfloat16, in which a picture may differ a little with what
            it is batched with.
        device: auto, cpu, cuda or mps.
        grace: Seconds for what was begun when told to stop.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    token_file: Path | None = None
    steps: int = 50
    solver: str = "euler"
    guidance: float | None = None
    max_queue: int = 64
    max_slots: int = 128
    max_batch: int = 128
    max_n: int = 10
    max_steps: int = 250
    max_side: int = 0
    max_frames: int = 0
    max_windows: int = 16
    rate: float | None = None
    lanes: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    grace: float = 30.0

    def __call__(self) -> int:
        """Serve until told to stop; returns the exit status."""
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise InputError(f"serving needs {', '.join(missing)}; install it with: pip install 'rectiflow[serve]'")
        token = self._token()
        if self.host not in _LOOPBACK and not token:
            print(
                f"rectiflow: anyone who reaches {self.host} may use this model; set RECTIFLOW_TOKEN.", file=sys.stderr
            )

        if not 0 <= self.grace < _LONGEST_GRACE:
            raise InputError(f"--grace {self.grace}: expected seconds from 0 to {_LONGEST_GRACE:,}.")

        from rectiflow.cli.runs import model_of
        from rectiflow.data.clips import rate_of
        from rectiflow.serving.engine import Engine
        from rectiflow.serving.limits import Limits
        from rectiflow.serving.served import Served
        from rectiflow.serving.server import listen, serve
        from rectiflow.training.precision import resolve_device

        limits = Limits(
            queue=self.max_queue,
            slots=self.max_slots,
            batch=self.max_batch,
            pictures=self.max_n,
            steps=self.max_steps,
            side=self.max_side,
            frames=self.max_frames,
            windows=self.max_windows,
        )
        pipeline = model_of(self.run, str(resolve_device(self.device)))
        name = self.name or (self.run.resolve().name if self.run.exists() else str(self.run))
        rate = rate_of(pipeline.training) if self.rate is None else self.rate
        served = Served(pipeline, name, limits, self.steps, self.solver, self.guidance, rate)
        served.check()
        at = listen(self.host, self.port)
        serve(Engine(pipeline, limits, self.lanes, self.precision), served, at, token, self.grace)
        return 0

    def _token(self) -> str:
        if self.token_file is None:
            place, token = "RECTIFLOW_TOKEN", os.environ.get("RECTIFLOW_TOKEN", "").strip()
        else:
            place, token = str(self.token_file), self.token_file.read_bytes().decode("latin-1").strip()
            if not token:
                raise InputError(f"{place} is empty; write the token into it.")
        # A header carries nothing else to rely on: clients differ in how they write other characters.
        if not all("!" <= character <= "~" for character in token):
            raise InputError(
                f"{place}: expected a token of letters, digits and signs of ASCII without spaces; write one."
            )
        return token

"""`rectiflow average`: the model of another average of a run's weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rectiflow.base.errors import InputError


@dataclass(frozen=True)
class Average:
    """Put together the model of another average length, from a run trained with ema.kind=power.

    Args:
        run: A run folder.
        length: Relative length of the average: standard deviation over the steps so far, between 0 and 0.289.
        out: Model folder to write.
        step: The step to take the average of; the last one that has a snapshot if left out.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    length: float
    out: Path
    step: int | None = None

    def __call__(self) -> int:
        """Write the model; returns the exit status."""
        if self.out.exists() and not (self.out / "config.json").is_file():
            raise InputError(f"--out {self.out} is there and is no model; choose another --out.")

        from dataclasses import replace

        from rectiflow.pipeline import Pipeline
        from rectiflow.training.autoencoder_config import AutoencoderRunConfig
        from rectiflow.training.post_hoc import post_hoc
        from rectiflow.training.run_folder import CONFIG_NAME, read_run

        if (self.run / CONFIG_NAME).is_file() and isinstance(read_run(self.run), AutoencoderRunConfig):
            raise InputError(
                f"{self.run} is an autoencoder's run, and averages are put together of flows alone; choose its average "
                "before it is trained: --set ema=0.999."
            )
        average = post_hoc(self.run, self.length, self.step)
        pipeline = Pipeline.load(self.run)
        pipeline.flow.load_state_dict(average.weights)
        about = {**pipeline.training, "step": average.step, "average_length": self.length}
        replace(pipeline, training=about).save(self.out)
        print(f"wrote {self.out}: step {average.step}, its profile met within {average.residual:.2%}")
        return 0

"""`rectiflow doctor`: whether a model is what it says, told from its errors on data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from rectiflow.base.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from rectiflow.data.images import ImageSet
    from rectiflow.evaluation.doctor import Diagnosis, Patient

_REMEDIES = {
    "schedule": "config.json, flow.schedule",
    "prediction": "config.json, flow.prediction",
    "sign": "Foreign(network, Convention(sign=-1))",
    "time direction": "Foreign(network, Convention(reverse=True))",
    "time scale": "Foreign(network, Convention(time_scale=…))",
    "shift": "Foreign(network, Convention(shift=…))",
    "data scale": "multiply the data by it before the network sees them, and divide its samples by it",
    "data offset": "add it to the data after scaling, and take it from the samples",
}


@dataclass(frozen=True)
class Doctor:
    """Find the convention a model was really trained in, and name what it states wrongly: time direction and scale,
    prediction, sign, shift, path, scale of the data, null condition.

    Exit status 0 if the model is what it states, 1 if not.

    Args:
        model: A run, a model folder, or the folder of a pixel-space pipeline of diffusers.
        data: Folder of pictures like those it was trained on; a run's own if left out. Classes are used if they are the
            model's.
        count: Pictures to use, at least 16.
        seed: Of the noise.
    """

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    data: Path | None = None
    count: int = 128
    seed: int = 0

    def __call__(self) -> int:
        """Examine; returns the exit status."""
        from rectiflow.evaluation.doctor import diagnose

        if self.count < 16:
            raise InputError(f"count must be at least 16, received {self.count}.")
        if (self.model / "model_index.json").is_file():
            patient, null_trained = self._foreign(), None
        else:
            patient, null_trained = self._ours()
        found = diagnose(patient, null_trained)
        self._show(found)
        return 0 if found.healthy else 1

    def _ours(self) -> "tuple[Patient, bool | None]":
        from rectiflow.base.condition import Condition
        from rectiflow.evaluation.doctor import Patient
        from rectiflow.pipeline import Pipeline

        pipeline = Pipeline.load(self.model)
        images = self._images(pipeline.shape)
        pixels, labels = self._draw(images)
        known = pipeline.class_names and images.class_names == pipeline.class_names
        if pipeline.class_names and not known:
            print("note: the folder's classes are not the model's; it is asked under its null condition.")
        condition = Condition(labels) if known else None
        if pipeline.class_names and condition is None:
            condition = Condition(labels).null()
        x = pipeline.autoencoder.encode(pixels)
        return Patient(pipeline.flow, x, condition, pipeline.flow_config, self.seed), (
            pipeline.conditioner.null_trained if known else None
        )

    def _foreign(self) -> "Patient":
        from rectiflow.evaluation.doctor import Patient
        from rectiflow.flow.foreign import from_diffusers

        try:
            from diffusers import DiffusionPipeline
        except ImportError:
            raise InputError(f"{self.model} is a pipeline of diffusers: pip install diffusers to read it.") from None
        load: Callable[..., Any] = DiffusionPipeline.from_pretrained
        parts = load(str(self.model), local_files_only=True).components
        network = parts.get("unet") or parts.get("transformer")
        if network is None or parts.get("vae") is not None or parts.get("text_encoder") is not None:
            raise InputError(
                f"{self.model} is no plain pipeline of pixels; encode its data and use "
                "rectiflow.evaluation.doctor.diagnose in Python."
            )
        size = network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels, _ = self._draw(self._images((network.config.in_channels, height, width)))
        return Patient(from_diffusers(network.eval(), parts["scheduler"]), pixels, seed=self.seed)

    def _images(self, shape: tuple[int, ...]) -> "ImageSet":
        from rectiflow.cli.runs import data_of
        from rectiflow.data.sets import pictures_in
        from rectiflow.training.run_folder import CONFIG_NAME

        if self.data is None and not (self.model / CONFIG_NAME).is_file():
            raise InputError(f"{self.model} is no run: the doctor needs the data it was trained on, --data DIR.")
        if self.data is None:
            return data_of(self.model)
        return pictures_in(str(self.data), shape, labels="folders")

    def _draw(self, images: "ImageSet") -> "tuple[Tensor, Tensor]":
        from rectiflow.evaluation.memory import some

        part = images.held_out if len(images.held_out) >= self.count else images.train
        return some(part, self.seed, self.count)

    def _show(self, found: "Diagnosis") -> None:
        from rich.table import Table

        from rectiflow.base.terminal import plain_console

        console = plain_console()
        console.print("Error over that of the best linear estimate, by noise level; a trained model is below 1.")
        table = Table(box=None)
        table.add_column("log-SNR", justify="right")
        table.add_column("as stated", justify="right")
        if found.findings:
            table.add_column("as found", justify="right")
        for log_snr in sorted({*found.stated, *found.found}):
            row = [f"{log_snr:g}", *(f"{r[log_snr]:.3g}" if log_snr in r else "–" for r in (found.stated, found.found))]
            table.add_row(*row[: 3 if found.findings else 2])
        console.print(table)
        for name, stated, real in found.findings:
            console.print(f"{name}: stated {stated}, found {real}. Remedy: {_REMEDIES[name]}.")
        if found.null:
            console.print(f"null condition: {found.null}")
        if found.null_errs:
            console.print(
                "config.json states null_trained: set it to false, or train with condition_dropout.",
            )
        if not found.explained:
            console.print(
                "No convention explains this model on these data: it is untrained, or the data are not of its kind.",
            )
        else:
            console.print("The model is what it states." if found.healthy else "The model is not what it states.")

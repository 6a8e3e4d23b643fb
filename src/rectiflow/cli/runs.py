"""What commands open of a run: its model and its data."""

from pathlib import Path
from typing import TYPE_CHECKING

from rectiflow.base.errors import InputError

if TYPE_CHECKING:
    from rectiflow.data.images import ImageSet
    from rectiflow.pipeline import Pipeline


def data_of(run: Path) -> "ImageSet":
    """The data that a run trains on.

    Raises:
        InputError: it is no run, or its data are gone.
    """
    from rectiflow.data.paired import with_pairs
    from rectiflow.data.sets import open_set
    from rectiflow.training.run_folder import CONFIG_NAME, INDEX_NAME, read_run

    if not (run / CONFIG_NAME).is_file():
        raise InputError(f"{run} is not a run folder: an evaluation needs the data that its {CONFIG_NAME} names.")
    index = run / INDEX_NAME
    config = read_run(run)
    data = open_set(config.data, index if index.exists() else None)
    picture = getattr(config, "picture", None)
    return with_pairs(data, picture, config.data) if picture is not None else data


def model_of(run: Path, device: str = "cpu") -> "Pipeline":
    """The model of a run or in a model folder; a run's bridge starts from the run's own pictures, those held out.

    Raises:
        InputError: there is none, or the pictures that it starts from are gone.
    """
    from rectiflow.data.images import to_float
    from rectiflow.data.sets import open_source
    from rectiflow.pipeline import Pipeline
    from rectiflow.training.run_folder import CONFIG_NAME, SOURCE_INDEX_NAME, read_run

    pipeline = Pipeline.load(run, device)
    if pipeline.flow_config.source == "pictures" and (run / CONFIG_NAME).is_file():
        index = run / SOURCE_INDEX_NAME
        shown = open_source(read_run(run).data, pipeline.shape, index if index.exists() else None).unseen
        pipeline.start_from(lambda rows: to_float(shown.fetch(rows)), len(shown))
    return pipeline

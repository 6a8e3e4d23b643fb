"""The same models under every solver, number of steps and guidance: quality against cost."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rectiflow.base.files import write_text
from rectiflow.data.images import ImageSet
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.features import features
from rectiflow.evaluation.memory import some
from rectiflow.evaluation.one_frame import as_pictures, one_frame
from rectiflow.evaluation.page import CLIPS, cell
from rectiflow.evaluation.plots import plot_cost
from rectiflow.evaluation.scores import drawn, real_scores, scores
from rectiflow.pipeline import Pipeline

_COLUMNS = {"frechet": "Fréchet distance", "precision": "precision", "recall": "recall", "told_apart": "told apart"}


def compare(
    models: Mapping[str, Pipeline],
    data: ImageSet,
    ways: Sequence[EvaluateConfig],
    out: Path,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Score each model sampled in each way, beside the held-out pictures; write compare.json, compare.md, compare.png.

    Of clips a frame of each is scored, as `evaluate` does.

    Args:
        models: pipelines by name, all of the shape of the data.
        data: pictures or clips; the features and the reference come from it.
        ways: how to sample; count, features and seed are those of the first.
        out: folder; made if need be.
        say: is told of each row as it comes.
    """
    first, stills = ways[0], as_pictures(data)
    by = features(first.features, stills.train, first.seed)
    held_out, _ = some(stills.held_out, first.seed, first.count)
    rows = []
    for name, pipeline in models.items():
        for way in ways:
            samples, cost = drawn(pipeline, data.held_out, way)
            line = f"{name}: " * (len(models) > 1) + f"{way.solver}, w = {way.guidance:g}"
            found = {"model": name, "line": line, "solver": way.solver, "steps": way.steps, "guidance": way.guidance}
            rows.append(found | cost | scores(by, one_frame(samples.pixels), held_out, first.seed))
            say(f"{line}, {way.steps} steps: Fréchet distance {cell(rows[-1]['frechet'])}")
    out.mkdir(parents=True, exist_ok=True)
    real = real_scores(by, stills, first.seed, first.count)
    frames = data.shape[1] if len(data.shape) == 4 else 1
    result = {"settings": first.model_dump(), "frames": frames, "rows": rows, "real": real}
    write_text(out / "compare.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    plot_cost(rows, "frechet", "Fréchet distance to held-out pictures", out / "compare.png")
    write_text(out / "compare.md", _page(rows, real, first, frames))
    return rows


def _page(rows: Sequence[dict[str, Any]], real: dict[str, Any], config: EvaluateConfig, frames: int) -> str:
    of_clips = CLIPS if frames > 1 else ""
    head = ["model and way", "steps", "evaluations", "s for 100", *_COLUMNS.values()]
    lines = [
        f"{rows[0]['count']} samples each, seed {config.seed}, by {rows[0]['features']}. Intervals are of 95 %."
        f"{of_clips}",
        "",
        f"| {' | '.join(head)} |",
        "|" + " --- |" * len(head),
        f"| real pictures | | | | {' | '.join(cell(real[name]) for name in _COLUMNS)} |",
    ]
    for row in sorted(rows, key=lambda row: row["frechet"]["value"]):
        figures = " | ".join(cell(row[name]) for name in _COLUMNS)
        lines.append(
            f"| {row['line']} | {row['steps']} | {row['evaluations']} | {row['seconds_per_100']:.2f} | {figures} |"
        )
    return "\n".join([*lines, "", "![quality against cost](compare.png)"]) + "\n"

"""The stages of a run of latents, and what else a run has left, told from their folders."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectiflow.base.errors import InputError

if TYPE_CHECKING:
    from rectiflow.training.status import Status


def stages_of(folder: Path) -> list[dict[str, Any]]:
    """What each stage of a run has come to: `stage`, `state`, and what there is to say of it.

    Args:
        folder: the run.

    Returns:
        In the order in which a run goes through them; of a run without others its evaluation at most.
    """
    from rectiflow.training.generator_config import RunConfig
    from rectiflow.training.run_folder import read_run
    from rectiflow.training.status import status_of
    from rectiflow.workflow import AUTOENCODER, LATENTS, PICTURES, SCORES

    config, found = read_run(folder), []
    if isinstance(config, RunConfig) and config.latent is not None:
        latent = config.latent
        if latent.autoencoder:
            found.append({"stage": AUTOENCODER, "state": "given", "about": latent.autoencoder})
        else:
            names = ([PICTURES] if latent.pictures is not None else []) + [AUTOENCODER]
            found += [_trained(name, folder / name) for name in names]
        found.append(_latents(Path(latent.cache.dir) if latent.cache.dir else folder / LATENTS, LATENTS))
        found.append({"stage": "flow", **_about(status_of(folder))})
    report = _report(folder / SCORES / "report.json")
    if report or found:
        found.append({"stage": SCORES, **(report or {"state": "not begun", "about": ""})})
    return found


def _trained(name: str, folder: Path) -> dict[str, Any]:
    from rectiflow.training.run_folder import CONFIG_NAME
    from rectiflow.training.status import status_of

    if not (folder / CONFIG_NAME).is_file():
        return {"stage": name, "state": "not begun", "about": ""}
    try:
        return {"stage": name, **_about(status_of(folder))}
    except InputError as error:
        return {"stage": name, "state": "unreadable", "about": str(error)}


def _about(status: "Status") -> dict[str, Any]:
    words = f"step {status.step} of {status.steps}"
    if status.state == "training" and status.seconds_left is not None:
        words += f", about {spoken(status.seconds_left)} left"
    return {"state": status.state, "about": f"{words}; {status.reason}" if status.reason else words}


def _latents(folder: Path, name: str) -> dict[str, Any]:
    from rectiflow.data.latents import read_manifest

    if not folder.is_dir() or not any(folder.iterdir()):
        return {"stage": name, "state": "not begun", "about": ""}
    try:
        manifest = read_manifest(folder)
    except InputError:
        shards = sum(1 for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return {"stage": name, "state": "not finished", "about": f"{shards} files so far"}
    count = manifest.train.pictures + manifest.held_out.pictures
    shape = "×".join(map(str, (manifest.shape[0] // 2, *manifest.shape[1:])))
    return {"stage": name, "state": "finished", "about": f"{count} pictures, {shape} each"}


def _report(path: Path) -> dict[str, Any]:
    """Scores of a report, of whatever kind of model; empty if there is none that can be read."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        step = report.get("model", {}).get("model_step")
        distance = report.get("scores", report).get("frechet")
    except (OSError, ValueError, AttributeError):
        return {}
    numbers = distance if isinstance(distance, dict) else {"": distance}
    told = ", ".join(f"{n} {v:.4g}".strip() for n, v in numbers.items() if isinstance(v, int | float))
    words = f"Fréchet distance {told}" if told else str(path)
    return {"state": "finished", "about": words + (f", of the model after step {step}" if step is not None else "")}


def spoken(seconds: float) -> str:
    """A time as people say it, in its two largest units."""
    left, said = round(seconds), list[str]()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if left >= size or (said and unit != "s"):
            said.append(f"{left // size} {unit}")
            left %= size
    return " ".join(part for part in said[:2] if not part.startswith("0 ")) or "0 s"

"""An autoencoder of one photograph, judged on another: python benchmarks/photos.py DIR

scikit-learn's two photographs, each trained on in turn and the other held out, with and without a discriminator, by the
command line, one thread each, two at once. Beside them the best linear code of the same size: principal components of
8×8 blocks, fitted to the same photograph. PSNR is over the whole picture, unclipped, as the linear code's is.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

import common
from rectiflow.data.pictures import to_image, to_uint8
from rectiflow.evaluation.linear_code import linear_code
from rectiflow.evaluation.reconstruction import reconstruction_scores
from rectiflow.models.autoencoder import load_autoencoder

PHOTOS, BLOCK, NUMBERS, THREADS = ("china", "flower"), 8, 16, 1
STEPS = 1600
SETTINGS = (
    "data.scale=[0.25,1]",
    "batch=8",
    "loss={absolute: 1, square: 5, structure: 0}",
    f"steps={STEPS}",
    f"threads={THREADS}",
    "precision=bfloat16",
    "every={log: 50, held_out: 0, preview: 800, first_preview: 0, save: 1600}",
)
KINDS = {
    "without": ("discriminator.weight=0",),
    "with": ("discriminator={weight: 0.8, start: 0.3, lr: 0.0005}",),
}
WINDOW = (slice(100, 292), slice(220, 412))


def photo(name: str) -> Tensor:
    """1×3×424×640 in [−1, 1]; the last three rows, which 8 does not divide, are left out."""
    pixels = torch.from_numpy(np.array(load_sample_image(f"{name}.jpg")))
    return pixels.permute(2, 0, 1)[None, :, : 427 // BLOCK * BLOCK].float() / 127.5 - 1


def figures(made: Tensor, x: Tensor) -> dict[str, float]:
    scores = asdict(reconstruction_scores(made, x))
    whole = 10 * math.log10(4 / float((made - x).square().mean()))
    return {"psnr_unclipped": round(whole, 3), **{name: round(value, 4) for name, value in scores.items()}}


def train(home: Path, name: str, kind: str) -> subprocess.Popen[bytes]:
    folder = home / name
    if not folder.exists():
        folder.mkdir(parents=True)
        Image.fromarray(load_sample_image(f"{name}.jpg")).save(folder / f"{name}.png")
    run = home / f"{name}-{kind}"
    command = [sys.executable, "-m", "rectiflow", "train", "autoencoder", "--data", str(folder), "--run", str(run)]
    with (home / f"{name}-{kind}.txt").open("wb") as out:
        return subprocess.Popen(
            [*command, "--set", *SETTINGS, *KINDS[kind]],
            stdout=out,
            env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
        )


def seconds(run: Path) -> int:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return round(max(line["seconds"] for line in lines))


def sheet(rows: list[Tensor], path: Path) -> None:
    """Windows of original and reconstructions side by side."""
    cells = [to_uint8(row[:, :, WINDOW[0], WINDOW[1]])[0] for row in rows]
    to_image(torch.cat(cells, dim=1)).save(path, optimize=True)


def main(home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        runs = [train(home, name, kind) for name in PHOTOS]
        if any(run.wait() for run in runs):
            sys.exit(f"training failed; see {home}")
    result: dict[str, object] = {"settings": [*SETTINGS], "kinds": KINDS, "threads": THREADS}
    for name, other in zip(PHOTOS, reversed(PHOTOS), strict=True):
        x = photo(other)
        shown, entry = [x], {"linear_code": figures(linear_code(photo(name), BLOCK, NUMBERS).reconstruct(x), x)}
        for kind in KINDS:
            run = home / f"{name}-{kind}"
            space = load_autoencoder(str(run))
            with torch.no_grad():
                made = space.decode(space.encode(x), (x.shape[-2], x.shape[-1]))
            entry[kind] = {**figures(made, x), "seconds": seconds(run)}
            shown.append(made)
        sheet(shown, common.RESULTS.parent.parent / "docs" / f"photos_{name}.png")
        result[f"trained on {name}, judged on {other}"] = entry
        print(name, json.dumps(entry), flush=True)
    common.write("photos", result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Pictures given as conditions, against the truth: python benchmarks/pictures.py DIR

Recipe `super-resolution` on the digits, 4×4 to 8×8, and on a photograph, 16×16 to 32×32; recipe `colour` on
digit-scenes and on the photograph. Digits and scenes are held out by their writers; of scikit-learn's two photographs
china.jpg is trained on, at half to full size, and flower.jpg is held out, in tiles at half size. By the command line,
one thread.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

import common
from rectiflow.__main__ import main as rectiflow
from rectiflow.cli.runs import data_of
from rectiflow.evaluation.config import EvaluateConfig
from rectiflow.evaluation.restoration import restoration
from rectiflow.pipeline import Pipeline

SIDE, SCALE, TILES = 32, 0.5, 60
COMMON = ("threads=1", "precision=float32", "every={log: 50, held_out: 0, preview: 0, save: 10000}")
PHOTO = ("data.size=32", "data.scale=[0.5,1]", "data.workers=0", "data.labels=none", "batch=16", "steps=300")
RUNS = {
    "digits, 4×4 to 8×8": ("super-resolution", ("data.set=digits", "batch=64", "steps=900")),
    "photographs, 16×16 to 32×32": ("super-resolution", PHOTO),
    "digit-scenes, coloured": ("colour", ("data.set=digit-scenes", "batch=16", "steps=350")),
    "photographs, coloured": ("colour", PHOTO),
}
EVALUATE = EvaluateConfig(count=54, steps=20, solver="ab2")


def photos(folder: Path) -> Path:
    """train/china.png as it is, and test/ with tiles of flower.jpg at half its size."""
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "train" / "china.png")
    flower = Image.fromarray(load_sample_image("flower.jpg")).reduce(round(1 / SCALE))
    pixels = np.asarray(flower)
    corners = [(y, x) for y in range(0, pixels.shape[0] - SIDE, SIDE) for x in range(0, pixels.shape[1] - SIDE, SIDE)]
    for number, (y, x) in enumerate(corners[:TILES]):
        Image.fromarray(pixels[y : y + SIDE, x : x + SIDE]).save(folder / "test" / f"flower-{number:02}.png")
    # Scores need some twenty pictures to train on: strips of the photograph, in which crops wander.
    china = Image.open(folder / "train" / "china.png")
    for number in range(20):
        left = number * (china.width - 160) // 19
        china.crop((left, 0, left + 160, china.height)).save(folder / "train" / f"strip-{number:02}.png")
    return folder


def main() -> None:
    home = Path(sys.argv[1])
    data, result = photos(home / "photos"), {}
    for number, (title, (recipe, settings)) in enumerate(RUNS.items()):
        run = home / str(number)
        where = ["--data", str(data)] if "photo" in title else []
        if rectiflow(["train", recipe, *where, "--run", str(run), "--set", *COMMON, *settings]):
            raise SystemExit(1)
        found, sheet = restoration(Pipeline.load(run), data_of(run).held_out, EVALUATE)
        sheet.save(run / "restoration.png")
        steps = next(setting for setting in settings if setting.startswith("steps="))
        result[title] = {"recipe": recipe, "steps": int(steps.partition("=")[2]), **found}
        print(title, found, flush=True)
    common.write("pictures", {"tables": result})


if __name__ == "__main__":
    main()

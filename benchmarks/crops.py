"""A folder of pictures for a first try: python benchmarks/crops.py DIR [COUNT] [SIZE]

Crops of digit-scenes, one coloured digit each, enlarged to 64×64, in ten folders named after the digit.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from rectiflow.data.builtin import digit_scenes

CELL = 10


def write(folder: Path, count: int = 2000, size: int = 64) -> None:
    scenes, written = digit_scenes().train, 0
    for number in range(len(scenes)):
        index = torch.tensor([number])
        pixels = scenes.fetch(index)[0].permute(1, 2, 0).numpy()
        for thing in scenes.scenes(index)[0].things:
            top, left = 1 + CELL * (thing.place // 3), 1 + CELL * (thing.place % 3)
            crop = Image.fromarray(pixels[top : top + CELL, left : left + CELL].copy())
            path = folder / str(thing.digit) / f"{thing.colour}-{written:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop.resize((size, size), Image.Resampling.BICUBIC).save(path)
            written += 1
            if written == count:
                return


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    write(Path(folder), *(int(number) for number in numbers))

"""A user's evening in ten minutes: python benchmarks/evening.py DIR

Makes crops in DIR/crops unless they are there, trains `folder` on them by the command line in DIR/run, and writes down
how soon the first preview came, what the run cost, and the previews as one picture, docs/evening.png.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

import common
import crops

STEPS, SHOWN, ROWS, CELL = 1200, (16, 128, 256, 500, 1200), 5, 65


def sheet(samples: Path) -> Image.Image:
    """The first rows of some previews side by side, at half their size."""
    previews = [Image.open(samples / f"{step:08d}.png") for step in SHOWN]
    height, gap = ROWS * CELL + 1, 8
    whole = Image.new("RGB", (sum(p.width + gap for p in previews) - gap, height), "white")
    left = 0
    for preview in previews:
        whole.paste(preview.crop((0, 0, preview.width, height)), (left, 0))
        left += preview.width + gap
    return whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)


def main(home: Path) -> None:
    if not (home / "crops").exists():
        crops.write(home / "crops")
    arguments = ["train", "folder", "--data", "crops", "--run", "run", "--set", f"steps={STEPS}"]
    began = time.time()
    out = subprocess.run([sys.executable, "-m", "rectiflow", *arguments], cwd=home, check=True, capture_output=True)
    (home / "told.txt").write_bytes(out.stdout)
    lines = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    waiting = [line["waiting_for_data"] for line in lines if "waiting_for_data" in line]
    result = {
        "train": f"rectiflow {' '.join(arguments)}",
        "first_preview_seconds": round((home / "run" / "samples" / f"{SHOWN[0]:08d}.png").stat().st_mtime - began, 1),
        "training_seconds": round(max(line["seconds"] for line in lines)),
        "held_out_loss": {str(line["step"]): line["held_out_loss"] for line in lines if "held_out_loss" in line},
        "waiting_for_data_median": round(statistics.median(waiting), 4),
    }
    sheet(home / "run" / "samples").save(common.RESULTS.parent.parent / "docs" / "evening.png", optimize=True)
    common.write("evening", result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

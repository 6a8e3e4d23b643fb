"""Memory against the number of pictures, and the time that training waits for them: python benchmarks/data.py

Each size is a process of its own that opens a folder of crops (`crops.py`; larger folders are links to its files) and
takes 30 training steps of the `folder` recipe.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import crops

SIZES = (1_000, 10_000, 100_000)
MEASURE = """
import json, resource, sys
from pathlib import Path
from rich.console import Console
from rectiflow.recipes.registry import resolve
from rectiflow.training.log import last_metrics
from rectiflow.training.run import train
settings = ["steps=30", "every={log: 30, held_out: 0, preview: 0, first_preview: 0, save: 0}", "data.check=header"]
config = resolve("folder", settings=[*settings, "data.dir=" + sys.argv[1]])
train(config, Path(sys.argv[2]), Console(quiet=True))
waiting = last_metrics(Path(sys.argv[2]) / "metrics.jsonl")["waiting_for_data"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_megabytes": round(peak), "share_of_a_step_spent_waiting": round(waiting, 4)}))
"""


def main() -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as home:
        crops.write(Path(home, "source"), SIZES[0])
        files = sorted(Path(home, "source").rglob("*.png"))
        for size in SIZES:
            folder = Path(home, str(size))
            for number in range(size):
                file = files[number % len(files)]
                (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
                os.link(file, folder / file.parent.name / f"{number}.png")
            command = [sys.executable, "-c", MEASURE, str(folder), str(Path(home, f"run-{size}"))]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result[str(size)] = json.loads(out.splitlines()[-1])
            print(size, result[str(size)], flush=True)
    common.write("data", {"pictures": result})


if __name__ == "__main__":
    main()

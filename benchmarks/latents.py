"""Memory and time of latents on disk against the number of pictures: python benchmarks/latents.py [COUNT …]

Each count is a process of its own that opens a folder of links to a few hundred generated 32×32 pictures by its index,
as a run that goes on does, encodes them by averaging (8×4×4 moments: the work of the cache, not of a network) and reads
200 random batches of 64. Memory is what the process holds for itself (RssAnon); pages mapped from files, which the
system may drop, are in the peak RSS alone. Last, a batch of 64 moments of 32×32×32.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import common
from rectiflow.data.builtin import digits
from rectiflow.data.config import DataConfig, LatentsConfig
from rectiflow.data.encode import encode_set
from rectiflow.data.images import ImageSet, InMemory
from rectiflow.data.latents import fingerprint, open_latents
from rectiflow.data.sets import keep_index, open_set

COUNTS = (1_000, 10_000, 100_000)
SOURCES, BATCH, BATCHES = 300, 64, 200


def moments(x: Tensor) -> Tensor:
    """8×4×4 moments of 3×32×32 pictures."""
    mean = F.avg_pool2d(x, 8)
    return torch.cat([mean, mean[:, :1], x[:, :, ::8, ::8] - 3, mean[:, :1] - 3], dim=1)


def memory() -> dict[str, float]:
    """RssAnon and the peak of RSS, in megabytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {line[0]: int(line[1]) / 1024 for line in lines if line and line[0] in ("RssAnon:", "VmHWM:")}
    return {"anonymous": found["RssAnon:"], "peak": found["VmHWM:"]}


class Watch:
    """Looks at RssAnon twenty times a second and keeps the largest."""

    def __init__(self) -> None:
        self.peak, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.peak = max(self.peak, memory()["anonymous"])

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return max(self.peak, memory()["anonymous"])


def read(data: ImageSet) -> float:
    """Milliseconds of a random batch."""
    generator = torch.Generator().manual_seed(0)
    indices = [torch.randint(len(data.train), (BATCH,), generator=generator) for _ in range(BATCHES)]
    began = time.perf_counter()
    for index in indices:
        data.train.fetch(index, torch.rand(BATCH, 3, generator=generator))
    return (time.perf_counter() - began) / BATCHES * 1000


def encoded(data: ImageSet, encoder: object, config: DataConfig, folder: Path) -> ImageSet:
    cache = LatentsConfig(variants=2)
    prints = fingerprint("0" * 64, data, config, cache)
    encode_set(data, encoder, folder, cache, config, prints, lambda done, total: None)
    return open_latents(folder, prints, data)


def settings(pictures: str) -> DataConfig:
    return DataConfig(set="folder", dir=pictures, size=32, check="header", flip=True, held_out=0.05)


def measure(pictures: str, index: str, folder: str) -> None:
    """In the process of one count: prints a line of JSON."""
    config = settings(pictures)
    data = open_set(config, Path(index))
    opened = memory()
    watch, began = Watch(), time.perf_counter()
    latents = encoded(data, moments, config, Path(folder))
    seconds, encoding_peak = time.perf_counter() - began, watch.stop()
    after, watch = memory()["anonymous"], Watch()
    batch = read(latents)
    result = {
        "anonymous_megabytes_with_the_table_open": opened["anonymous"],
        "anonymous_megabytes_encoding_peak": encoding_peak,
        "anonymous_megabytes_encoded": after,
        "anonymous_megabytes_reading_peak": watch.stop(),
        "anonymous_megabytes_final": memory()["anonymous"],
        "peak_rss_megabytes": memory()["peak"],
        "seconds_encoding": seconds,
        "milliseconds_a_batch": batch,
        "megabytes_on_disk": sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20,
    }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


def large(home: Path) -> dict[str, float]:
    """A batch of 64 moments of 32×32×32, which are 8 MiB in float32."""
    source = digits()
    parts = [InMemory(part.fetch(torch.arange(500))[:, :, :1, :1], part.labels[:500]) for part in (source.train,) * 2]
    data = ImageSet(parts[0], parts[1], source.class_names, source.levels)
    pattern = torch.linspace(-1, 1, 32**3).reshape(1, 32, 32, 32)
    latents = encoded(data, lambda x: x + pattern, DataConfig(flip=True), home / "large")
    read(latents)  # the first time, pages come from disk
    return {"milliseconds_a_batch": round(read(latents), 3), "batch": BATCH}


def main(counts: tuple[int, ...]) -> None:
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as home:
        files = [Path(home, "source", f"{number}.png") for number in range(SOURCES)]
        files[0].parent.mkdir()
        for number, file in enumerate(files):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
        for count in counts:
            folder = Path(home, str(count))
            for number in range(count):
                path = folder / str(number % SOURCES % 10) / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(files[number % SOURCES], path)
            index = Path(home, f"index-{count}")
            keep_index(open_set(settings(str(folder))), index)
            places = [str(folder), str(index), str(Path(home, f"latents-{count}"))]
            command = [sys.executable, __file__, "--measure", *places]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result[str(count)] = json.loads(out.splitlines()[-1])
            print(count, result[str(count)], flush=True)
        common.write("latents", {"pictures": result, "moments_of_32x32x32": large(Path(home))})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main(tuple(int(count) for count in sys.argv[1:]) or COUNTS)

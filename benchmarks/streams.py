"""Rows a second out of shards and out of a folder of the same JPEGs: python benchmarks/streams.py

4,000 crops of scikit-learn's two photographs at 256×256, quality 90, as files, in 8 tars and in 8 parquet files (row
groups of 100), on the local disk. The loader gives batches of 64 at 64×64; each figure is the median of three passes of
1,280 rows, the kinds taking turns. Rows per second of processor time do not depend on what else the machine does; those
per second do, so the load is written down.
"""

import io
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_sample_images

import common
from rectiflow.data.config import DataConfig
from rectiflow.data.loader import Loader
from rectiflow.data.sets import open_set

COUNT, SHARDS, SIZE, BATCH, STEPS, TURNS = 4000, 8, 256, 64, 20, 3


def pictures() -> list[bytes]:
    photographs, draws = load_sample_images().images, np.random.default_rng(0)
    made = []
    for number in range(COUNT):
        whole = photographs[number % 2]
        top, left = draws.integers(0, whole.shape[0] - SIZE), draws.integers(0, whole.shape[1] - SIZE)
        out = io.BytesIO()
        Image.fromarray(whole[top : top + SIZE, left : left + SIZE]).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def write(home: Path, made: list[bytes]) -> dict[str, dict[str, object]]:
    """The settings of each kind."""
    (home / "folder").mkdir()
    for start in range(0, COUNT, COUNT // SHARDS):
        rows = range(start, start + COUNT // SHARDS)
        with tarfile.open(home / f"{start:05d}.tar", "w") as tar:
            for i in rows:
                (home / "folder" / f"{i:05d}.jpg").write_bytes(made[i])
                member = tarfile.TarInfo(f"{i:05d}.jpg")
                member.size = len(made[i])
                tar.addfile(member, io.BytesIO(made[i]))
        column = pa.array([{"bytes": made[i], "path": None} for i in rows])
        pq.write_table(pa.table({"image": column}), home / f"{start:05d}.parquet", row_group_size=100)
    shared = {"size": 64, "check": "header"}
    return {
        "folder": {"set": "folder", "dir": str(home / "folder"), **shared},
        "tar": {"set": "shards", "shards": [str(home / "*.tar")], **shared},
        "parquet": {"set": "shards", "shards": [str(home / "*.parquet")], **shared},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        made = pictures()
        kinds = write(Path(home), made)
        opening, sets = {}, {}
        for kind, values in kinds.items():
            began = time.process_time()
            sets[kind] = open_set(DataConfig.parse(values, kind))
            opening[kind] = round(COUNT / (time.process_time() - began))
        rates: dict[str, dict[str, list[float]]] = {kind: {"0": [], "2": [], "processor": []} for kind in kinds}
        for turn in range(TURNS):
            for kind, data in sets.items():
                for workers in (0, 2):
                    loader = Loader(data.train, DataConfig(workers=workers), BATCH, 10_000, turn)
                    loader(0)
                    began, busy = time.perf_counter(), time.process_time()
                    for step in range(1, STEPS + 1):
                        loader(step)
                    rates[kind][str(workers)].append(BATCH * STEPS / (time.perf_counter() - began))
                    if not workers:
                        rates[kind]["processor"].append(BATCH * STEPS / (time.process_time() - busy))
        result = {
            kind: {
                "rows_looked_through_a_processor_second": opening[kind],
                "rows_a_processor_second": round(statistics.median(found["processor"])),
                "rows_a_second": {workers: round(statistics.median(found[workers])) for workers in ("0", "2")},
            }
            for kind, found in rates.items()
        }
    mean = round(sum(map(len, made)) / COUNT)
    load = round(os.getloadavg()[1], 1)
    common.write("streams", {"pictures": COUNT, "bytes_of_a_picture": mean, "load": load, "kinds": result})


if __name__ == "__main__":
    main()

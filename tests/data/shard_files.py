"""Small shards of pictures whose pixels tell which they are."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rectiflow.data.config import DataConfig
from rectiflow.data.streams import open_shards

SIZE = 8


def encoded(number, size=SIZE):
    """A picture whose first pixel holds its number, base 256."""
    levels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
    levels[0, 0] = number // 256, number % 256, 7
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()


def numbers_of(pixels):
    """Which pictures these are: uint8 B×3×H×W."""
    return (pixels[:, 0, 0, 0].long() * 256 + pixels[:, 1, 0, 0].long()).tolist()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tar(path, numbers, classes=("cat", "dog"), in_json=False, picture=encoded):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            name, text = classes[i % len(classes)], f"number {i}"
            if in_json:
                add(tar, f"part/{i:05d}.json", json.dumps({"text": text, "label": name}).encode())
            add(tar, f"part/{i:05d}.png", picture(i))
            if not in_json:
                add(tar, f"part/{i:05d}.txt", text.encode())
                add(tar, f"part/{i:05d}.cls", name.encode())
    return path


def write_parquet(path, numbers, group=4, picture=encoded):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": {"bytes": picture(i), "path": None}, "text": f"number {i}", "label": ("cat", "dog")[i % 2]}
        for i in numbers
    ]
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "text": pa.string(),
            "label": pa.string(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)
    return path


def settings(shards, **changes):
    shards = [shards] if not isinstance(shards, list | tuple) else shards
    return DataConfig.parse({"set": "shards", "shards": [str(s) for s in shards], "size": SIZE, **changes}, "test")


def opened(shards, **changes):
    return open_shards(settings(shards, **changes))

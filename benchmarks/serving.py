"""A server under load: python benchmarks/serving.py runs/digits [SECONDS]

32 clients ask `rectiflow serve RUN` for pictures, each again as soon as it has its answer, for 60 seconds: once for one
picture a request and once for four, by 50 Euler steps with guidance 1. Beside them what `Pipeline.sample` makes of the
same pictures in whole batches, before and after. Every answer is counted, and one in a hundred is compared with the
picture made alone.
"""

import asyncio
import base64
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

import common
from rectiflow.data.pictures import to_uint8
from rectiflow.pipeline import Pipeline
from rectiflow.request import Request
from rectiflow.serving.served import Served

CLIENTS, STEPS, GUIDANCE = 32, 50, 1.0
OFFLINE = 512  # pictures in one request to the library
COMPARED = 100  # one answer in so many


@dataclass
class Seen:
    """What the clients of a load saw."""

    seconds: list[float] = field(default_factory=list)
    pictures: int = 0
    failures: list[str] = field(default_factory=list)
    kept: list[tuple[int, list[str]]] = field(default_factory=list)


@contextmanager
def server(run: str) -> Iterator[str]:
    command = [sys.executable, "-m", "rectiflow", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


async def client(address: str, number: int, each: int, prompt: str, end: float, seen: Seen) -> None:
    """Ask, wait, ask again; a connection of one's own, and as little work as can be on the same processor."""
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=2**24)
    count = 0
    while time.perf_counter() < end:
        seed = number * 1_000_000 + count
        fields = {"prompt": prompt, "n": each, "seed": seed, "steps": STEPS, "guidance": GUIDANCE}
        body = json.dumps(fields).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answered.split("content-length:")[1].split("\r\n")[0])
        answer = await reader.readexactly(length)
        seen.seconds.append(time.perf_counter() - start)
        status = answered.split()[1]
        found = answer.count(b'"b64_json"')
        if status != "200" or found != each:
            seen.failures.append(f"{status}: {found} pictures")
        seen.pictures += found
        if len(seen.seconds) % COMPARED == 1:
            seen.kept.append((seed, [picture["b64_json"] for picture in json.loads(answer)["data"]]))
        count += 1
    writer.close()


async def load(address: str, each: int, prompts: list[str], seconds: float) -> tuple[Seen, float]:
    seen = Seen()
    start = time.perf_counter()
    end = start + seconds
    asking = [client(address, i, each, prompts[i % len(prompts)], end, seen) for i in range(CLIENTS)]
    await asyncio.gather(*asking)
    return seen, time.perf_counter() - start


def asked(pipeline: Pipeline, prompt: str, count: int, seed: int) -> Request:
    names = {"prompts": (prompt,)} if pipeline.takes_prompts else {"classes": (prompt,) if prompt else ()}
    return Request(**names, count=count, steps=STEPS, guidance=GUIDANCE, seed=seed)


def offline(pipeline: Pipeline, prompt: str) -> float:
    """Pictures a second of the library, all in one request."""
    start = time.perf_counter()
    pipeline.sample(asked(pipeline, prompt, OFFLINE, 0))
    return OFFLINE / (time.perf_counter() - start)


def furthest(pipeline: Pipeline, seen: Seen, each: int, prompts: list[str]) -> int:
    """The largest difference in grey levels between pictures that were served and the same ones made alone."""
    largest = 0
    for seed, files in seen.kept:
        prompt = prompts[seed // 1_000_000 % len(prompts)]
        alone = to_uint8(pipeline.sample(asked(pipeline, prompt, each, seed)).pixels).int().numpy()
        for file, pixels in zip(files, alone, strict=True):
            image = np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))).astype(int)
            largest = max(largest, int(abs(image.reshape(pixels.shape) - pixels).max()))
    return largest


def main(run: str, seconds: float = 60.0) -> None:
    pipeline = Pipeline.load(run)
    served = Served(pipeline, "x")
    prompts = (
        ["a red 7 in the top left", "a blue 3 above a green 5"]
        if served.takes_prompts
        else list(pipeline.class_names) or [""]
    )
    result: dict[str, object] = {"clients": CLIENTS, "seconds": seconds, "steps": STEPS, "guidance": GUIDANCE}
    offline(pipeline, prompts[0])  # warms up
    for each in (1, 4):
        before = offline(pipeline, prompts[0])
        with server(run) as address:
            asyncio.run(load(address, each, prompts, 2))  # warms up
            seen, took = asyncio.run(load(address, each, prompts, seconds))
        alone = statistics.mean([before, offline(pipeline, prompts[0])])
        cuts = statistics.quantiles(seen.seconds, n=100)
        rate = seen.pictures / took
        result[f"{each}_a_request"] = {
            "requests": len(seen.seconds),
            "failures": len(seen.failures),
            "pictures_a_second": round(rate, 1),
            "offline_pictures_a_second": round(alone, 1),
            "of_offline": round(rate / alone, 3),
            "p50_seconds": round(cuts[49], 3),
            "p99_seconds": round(cuts[98], 3),
            "furthest_grey_levels": furthest(pipeline, seen, each, prompts),
        }
        print(each, result[f"{each}_a_request"], seen.failures[:3])
    common.write("serving", result)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))

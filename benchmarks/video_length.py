"""Memory and time against the length of clips: python benchmarks/video_length.py

Clips of 17, 33 and 65 frames. The transformer of recipe `clips`, with full and with factorised attention, on latents of
32×32 and of 96×96: a step of training forward and backward, and sampling. The autoencoder of recipe
`video-autoencoder` with random weights, by `LatentSpace`: encoding and decoding one clip, large enough to be done in
chunks. Each case is a process of its own with one thread; all are started first and then take turns. The first turn
measures memory and is not timed. Peak is that of RSS above what the process holds just before; files that are mapped
meanwhile, which is code, are not counted. The allocator gives blocks of 128 KiB and more back when they are freed, so
that the peak is what is in use at once: left to itself it keeps some, more or less by what was freed before. Seconds
are of the processor, which other processes lengthen less than those of the clock.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import IO

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import common
from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.latent_space import PIXELS_A_CALL, LatentSpace
from rectiflow.base.autocast import autocast
from rectiflow.base.condition import NULL_LABEL, Condition, Text
from rectiflow.conditioning.config import LearnedConfig
from rectiflow.conditioning.text import padded_length
from rectiflow.flow.flow import Flow
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.networks.build import build
from rectiflow.networks.config import Inputs, TokensInput, VideoDiTConfig, fitted
from rectiflow.recipes.autoencoder import video_autoencoder
from rectiflow.recipes.clips import clips
from rectiflow.sampling.sample import sample
from rectiflow.sampling.solvers import solver

FRAMES, SIDES, KINDS = (17, 33, 65), (32, 96), ("full", "factorised")
BATCH, CALLS, ROUNDS = 2, 2, 3
CAPTION = padded_length(8)  # tokens of a batch of the recipe's captions
# So large that a chunk has eight frames, which the shortest clip exceeds too: 2²⁰ pixels at a time.
LARGE = 304
PLOT = common.RESULTS.parent.parent / "docs" / "video_length.png"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
Tasks = dict[str, Callable[[int], object]]  # each of clips of so many frames


def latents(side: int, frames: int) -> tuple[int, int, int, int]:
    config = video_autoencoder().network.model_copy(update={"channels": 3})
    channels, length, height, width = config.latent_shape((3, frames, side, side))
    return channels, length, height, width


def network(attention: str) -> VideoDiTConfig:
    """That of the recipe, told captions and frames as there."""
    recipe = clips()
    assert recipe.text is not None
    (reader,) = recipe.text.encoders
    assert isinstance(reader, LearnedConfig)
    channels = latents(32, 1)[0]
    texts = (TokensInput(vocabulary=reader.vocabulary, width=reader.width, depth=reader.depth),)
    found = fitted(recipe.network, Inputs(channels, 0, texts, channels if recipe.frames else 0))
    return VideoDiTConfig.model_validate({**found.model_dump(), "attention": attention})


def flow_tasks(side: int, most: int, attention: str) -> Tasks:
    flow = Flow.build(build(network(attention)), clips().flow)
    held = {frames: batch(side, frames) for frames in (1, most)}

    def train(frames: int) -> None:
        x, z, t, condition = held[frames]
        with autocast(torch.device("cpu"), "bfloat16"):
            loss = flow_matching_loss(flow, x, t, z, condition).mean()
        loss.backward()
        flow.zero_grad()

    @torch.no_grad()
    def sampled(frames: int) -> Tensor:
        _, z, _, condition = held[frames]
        return sample(flow, z, solver("euler"), CALLS, condition)

    return {"train": train, "sample": sampled}


def batch(side: int, frames: int) -> tuple[Tensor, Tensor, Tensor, Condition]:
    """x, z, t and a condition."""
    channels, *grid = latents(side, frames)
    text = Text(torch.randint(256, (BATCH, CAPTION)), torch.ones(BATCH, CAPTION, dtype=torch.bool))
    condition = Condition(torch.full((BATCH,), NULL_LABEL), (text,), torch.zeros(BATCH, channels + 1, *grid))
    x, z = torch.randn(2, BATCH, channels, *grid)
    return x, z, torch.rand(BATCH), condition


def autoencoder_tasks(side: int, most: int) -> Tasks:
    config = video_autoencoder().network.model_copy(update={"channels": 3})
    space = LatentSpace(build_autoencoder(config).requires_grad_(False).eval())
    shapes = {frames: (latents(side, frames), (3, frames, side, side)) for frames in (1, most)}
    held = {frames: (torch.randn(1, *z), torch.rand(1, *x) * 2 - 1) for frames, (z, x) in shapes.items()}
    return {
        "encode": lambda frames: space.encode(held[frames][1]),
        "decode": lambda frames: space.decode(held[frames][0]),
    }


def memory() -> dict[str, float]:
    """RSS, the files in it and its peak, in megabytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    names = {"VmRSS:": "now", "RssFile:": "files", "VmHWM:": "peak"}
    return {names[line[0]]: int(line[1]) / 1024 for line in lines if line and line[0] in names}


def beyond(task: Callable[[int], object], frames: int) -> dict[str, float]:
    """What the task takes beyond its inputs, and how much of that its result is, in megabytes."""
    task(1)
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**17)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory()
    result = task(frames)
    after = memory()
    for setting in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        libc.mallopt(setting, 2**25)  # what glibc comes to by itself, for the timed turns
    files = max(0.0, after["files"] - before["files"])
    size = result.numel() * result.element_size() / 2**20 if isinstance(result, Tensor) else 0.0
    return {"megabytes": after["peak"] - before["now"] - files, "result_megabytes": size}


def turns(side: int, frames: int, attention: str) -> None:
    """In the process of one case: a line of JSON for each line of input; the first has the memory."""
    torch.manual_seed(0)
    tasks = autoencoder_tasks(side, frames) if attention == "autoencoder" else flow_tasks(side, frames, attention)
    for line in sys.stdin:
        found: dict[str, dict[str, float]] = {}
        for name, task in tasks.items():
            if line.strip() == "memory":
                if attention != "autoencoder":  # kernels are made for shapes, those of its chunks are few
                    task(frames)
                found[name] = beyond(task, frames)
            else:
                began = time.process_time()
                task(frames)
                found[name] = {"seconds": time.process_time() - began}
        print(json.dumps(found), flush=True)


def asked(process: subprocess.Popen[str], word: str) -> dict[str, dict[str, float]]:
    pipes: tuple[IO[str] | None, IO[str] | None] = process.stdin, process.stdout
    assert pipes[0] is not None
    assert pipes[1] is not None
    pipes[0].write(f"{word}\n")
    pipes[0].flush()
    return json.loads(pipes[1].readline())


Case = tuple[int, int, str]  # side, frames, and kind of attention or "autoencoder"


def measured(cases: list[Case]) -> dict[Case, dict[str, dict[str, float]]]:
    """Megabytes and median seconds of each task of each case."""
    found, seconds = {}, {case: [] for case in cases}
    with ExitStack() as stack:
        processes = {}
        for case in cases:
            command = [sys.executable, __file__, "--case", *map(str, case)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[case] = stack.enter_context(process)
            found[case] = asked(process, "memory")
            print(case, found[case], flush=True)
        for number in range(ROUNDS):
            for case in cases if number % 2 == 0 else cases[::-1]:
                seconds[case].append(asked(processes[case], "time"))
            print(f"round {number + 1} of {ROUNDS}", flush=True)
    for case, each in found.items():
        for name, row in each.items():
            row["each_seconds"] = [round(taken[name]["seconds"], 4) for taken in seconds[case]]
            row["seconds"] = median(row["each_seconds"])
    return found


def flow_row(row: dict) -> dict[str, object]:
    return {"megabytes": round(row["megabytes"], 1), "seconds": row["seconds"], "each_seconds": row["each_seconds"]}


def sampling_row(row: dict) -> dict[str, object]:
    """By the call of the network."""
    each = [round(seconds / CALLS, 4) for seconds in row["each_seconds"]]
    return {"megabytes": round(row["megabytes"], 1), "seconds": median(each), "each_seconds": each}


def autoencoder_row(row: dict, frames: int) -> dict[str, object]:
    return {
        "megabytes": round(row["megabytes"] - row["result_megabytes"], 1),
        "result_megabytes": round(row["result_megabytes"], 1),
        "seconds_a_frame": round(row["seconds"] / frames, 4),
        "each_seconds": row["each_seconds"],
    }


def plot(result: dict, path: Path) -> None:
    """Memory above seconds, of the transformer at each side and of the autoencoder."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(result["networks"]) + 1)
    for column, (size, found) in enumerate(result["networks"].items()):
        for colour, kind in enumerate(KINDS):
            for task, style, title in (("train", "-", "training step"), ("sample", "--", "call in sampling")):
                for axis, name in zip(axes[:, column], ("megabytes", "seconds"), strict=True):
                    values = [found[kind][str(frames)][task][name] for frames in FRAMES]
                    axis.plot(FRAMES, values, f"C{colour}{style}", marker="o", label=f"{kind}, {title}")
        axes[0, column].set_title(f"transformer, {result['batch']} clips of {size}")
    space = result["autoencoder"]
    for colour, (task, title) in enumerate((("encode", "encoding"), ("decode", "decoding"))):
        rows = [space["frames"][str(frames)][task] for frames in FRAMES]
        for axis, name in zip(axes[:, -1], ("megabytes", "seconds_a_frame"), strict=True):
            axis.plot(FRAMES, [row[name] for row in rows], f"C{colour + 2}", marker="o", label=title)
    axes[0, -1].set_title(f"autoencoder, a clip of {space['side']}×{space['side']}")
    for axis in axes.flat:
        axis.set(xlabel="frames", xticks=FRAMES, ylim=(0, None))
    for axis, label in zip(axes[:, 0], ("peak memory beyond the batch, MB", "seconds, one thread"), strict=True):
        axis.set_ylabel(label)
    axes[0, -1].set_ylabel("beyond the clip and the result, MB")
    axes[1, -1].set_ylabel("seconds a frame, one thread")
    axes[0, 0].legend(fontsize=8)
    axes[0, -1].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def busy() -> float:
    """Processor seconds that this machine has worked since it started."""
    words = Path("/proc/stat").read_text().split()
    return sum(int(words[i]) for i in (1, 2, 3)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    load, worked, began = os.getloadavg()[0], busy(), time.perf_counter()
    cases = [(side, frames, kind) for side in SIDES for frames in FRAMES for kind in KINDS]
    found = measured([*cases, *((LARGE, frames, "autoencoder") for frames in FRAMES)])
    own = sum(os.times()[:4])
    others = (busy() - worked - own) / (time.perf_counter() - began)
    config = network("full")
    networks: dict[str, dict] = {}
    for side in SIDES:
        places = {str(frames): latents(side, frames) for frames in FRAMES}
        size = networks.setdefault(f"{side}×{side}", {})
        size["tokens"] = {frames: k * h * w // config.patch**2 for frames, (_, k, h, w) in places.items()}
        for kind in KINDS:
            rows = {str(frames): found[side, frames, kind] for frames in FRAMES}
            size[kind] = {
                frames: {"train": flow_row(row["train"]), "sample": sampling_row(row["sample"])}
                for frames, row in rows.items()
            }
    factor = video_autoencoder().network.temporal
    result = {
        "batch": BATCH,
        "calls": CALLS,
        "rounds": ROUNDS,
        "caption_tokens": CAPTION,
        "network": {name: getattr(config, name) for name in ("width", "depth", "heads", "patch")},
        "parameters": sum(p.numel() for p in build(config).parameters()),
        "load_average": {"before": round(load, 2), "after": round(os.getloadavg()[0], 2)},
        "others": round(max(0.0, others), 2),
        "networks": networks,
        "autoencoder": {
            "side": LARGE,
            "chunk_frames": factor * max(1, PIXELS_A_CALL // (LARGE**2 * factor)),
            "frames": {
                str(frames): {
                    task: autoencoder_row(row, frames) for task, row in found[LARGE, frames, "autoencoder"].items()
                }
                for frames in FRAMES
            },
        },
    }
    common.write("video_length", result)
    plot(result, PLOT)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--case"]:
        turns(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()

"""Training, sampling and start-up beside diffusers, and where the time goes: python benchmarks/throughput.py [PART …]

Parts: dit, unet, mmdit and video (training of networks), autoencoder (alone, and against a discriminator), sampling,
startup, utilisation (of the machine's own matrix rate, width 384), profile (of the real trainer), ddp (two processes
for one). All of them if none is named; each replaces its own results in `results/throughput.json`.

Both owners train the same objective on the same batches at the same rate, in one process and one run: in each of
--rounds rounds each side takes its turn, the order turning round, and medians count. With --gpu it is DiT-XL/2 on the
GPU that is there, kept in a file with its name.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import common
from kept import Result, keep, measured
from throughput_of import drawing, gpu, networks, ranks, stages, startup, use, vae

HIDDEN = ("each", "machine", "settings")  # of what is printed


def parts(rounds: int, seconds: float, steps: int | None) -> dict[str, Callable[[], Result]]:
    """What can be asked for, in the order in which it is done."""
    return {
        **{name: partial(networks.training, name, rounds, seconds) for name in ("dit", "unet", "mmdit")},
        "autoencoder": partial(vae.training, rounds),
        "video": partial(networks.training, "video", rounds, seconds),
        "sampling": partial(drawing.sampling, max(1, rounds // 2)),
        "startup": partial(startup.startup, rounds),
        "utilisation": partial(use.utilisation, rounds),
        "profile": partial(stages.profile, max(1, rounds // 2), steps),
        "ddp": partial(ranks.ddp, max(1, rounds // 2)),
    }


def brief(value: object) -> object:
    """A result without what is long."""
    if isinstance(value, dict):
        return {name: brief(each) for name, each in value.items() if name not in HIDDEN}
    return value


def command() -> str:
    """What was asked for; a folder of this machine is named DIR."""
    words = ["DIR" if os.path.isabs(word) else word for word in sys.argv[1:]]
    return " ".join(["python", "benchmarks/throughput.py", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts(1, 0.0, None))
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=20.0, help="of training for equal seconds; 0 is none")
    parser.add_argument("--steps", type=int, help="of a run of profile; up to its first checkpoint if left out")
    parser.add_argument("--threads", type=int, help="of the processor; torch's choice if left out")
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="folder of the results")
    parser.add_argument("--gpu", action="store_true", help="DiT-XL/2 on the GPU that is there, and nothing else")
    asked = parser.parse_args()
    if unknown := [name for name in asked.parts if name not in names]:
        parser.error(f"no part {unknown[0]}; there are {', '.join(names)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    known, file = parts(asked.rounds, asked.seconds, asked.steps), "throughput.json"
    if asked.gpu:
        if not torch.cuda.is_available():
            parser.error("no GPU is there that torch can use")
        known, file = {"dit-xl": partial(gpu.training, asked.rounds)}, gpu.file_name(torch.cuda.get_device_name())
    for name in known if asked.gpu or not asked.parts else asked.parts:
        result = measured(known[name], command())
        keep(asked.out / file, name, result)
        print(name, json.dumps(brief(result)), flush=True)


if __name__ == "__main__":
    main()

"""States to save and to load, and faults put into what is saved."""

import os

import torch

FILES = ["__0_0.distcp", ".metadata", "manifest.json"]


def state(step, size=40):
    """A state as a run has one: tensors of several types, numbers, lists; another one for each step."""
    draw = torch.Generator().manual_seed(step)
    return {
        "module": {"a.weight": torch.randn(size, size, generator=draw), "b": torch.randn(3, generator=draw).bfloat16()},
        "optimiser": {
            "state": {"a.weight": {"exp_avg": torch.randn(size, size, generator=draw), "step": torch.tensor(1.0)}}
        },
        "groups": [{"lr": 0.1 * step, "betas": (0.9, 0.99)}],
        "step": step,
    }


def blank(size=40):
    """The same with nothing in it."""
    empty = state(0, size)
    empty["module"] = {name: torch.zeros_like(value) for name, value in empty["module"].items()}
    empty["optimiser"]["state"]["a.weight"]["exp_avg"].zero_()
    return empty


def loaded(checkpoints, step, size=40):
    into = blank(size)
    checkpoints.load(step, into)
    return into


def finish(checkpoints, step):
    checkpoints.save(step, state(step))
    checkpoints.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def path_of(folder, step):
    return folder / f"step-{step:08d}"


def flip(path, at=0.5, bit=3):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


def raising(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail

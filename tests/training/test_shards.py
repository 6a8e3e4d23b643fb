"""Two processes save what one reads, and the reverse."""

import errno
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rectiflow.base.errors import InputError
from rectiflow.training.checkpoint import Checkpoints
from rectiflow.training.manifest import read_manifest
from tests.conftest import same
from tests.training.checkpoints import finish, flip, loaded, names, raising, state


class Net(nn.Module):
    """Two layers whose sizes two processes don't divide."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 7), nn.Linear(7, 3)


def whole(value):
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    return value.full_tensor() if isinstance(value, DTensor) else value


def draw(network, seed):
    with torch.no_grad():
        for name, p in network.named_parameters():
            value = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + len(name)))
            (p._local_tensor if isinstance(p, DTensor) else p).copy_(
                dist.tensor.distribute_tensor(value, p.device_mesh, p.placements)._local_tensor
                if isinstance(p, DTensor)
                else value
            )


def rank_of_two(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    folder, told = Path(folder), []
    try:
        network = fully_shard(Net())
        draw(network, 0)
        plain = Checkpoints(folder / "plain", 2)
        plain.save(1, state(1), metric=0.5)
        assert plain.steps() == [1]  # in every process, at once
        shards = Checkpoints(folder / "shards", 1, background=True)
        shards.save(1, {"net": network.state_dict(), "step": 1})
        before = whole(network.state_dict())
        draw(network, 5)  # while it is written
        dist.barrier()  # words of training, in between
        shards.save(2, {"net": network.state_dict(), "step": 2})
        shards.wait()
        assert shards.steps() == [2]
        after = whole(network.state_dict())
        assert not same(before, after)
        draw(network, 9)
        into = {"net": network.state_dict(), "step": 0}
        Checkpoints(folder / "shards", 1).load(2, into)
        assert same(whole(into), {"net": after, "step": 2})

        # what one process wrote is read by two
        assert Checkpoints(folder / "one", 1).newest_good(told.append) == 4
        assert same(loaded(Checkpoints(folder / "one", 1), 4), state(4))
        into = {"net": network.state_dict(), "step": 0}
        Checkpoints(folder / "one-net", 1).load(5, into)
        expected = Net()
        draw(expected, 3)
        assert same(whole(into), {"net": expected.state_dict(), "step": 5})

        # a fault in one process is told in both, and leaves the last good one
        for background in (False, True):
            write = dcp.FileSystemWriter.write_data
            if rank == 1:
                dcp.FileSystemWriter.write_data = raising(errno.ENOSPC)
            faulty = Checkpoints(folder / "plain", 2, background=background)
            with pytest.raises(InputError, match="step-00000002: No space left on device"):
                finish(faulty, 2)
            dcp.FileSystemWriter.write_data = write
            dist.barrier()
            assert names(folder / "plain") == ["step-00000001"]

        # damage that one of them reads is known to both; only the first one tells
        plain.save(2, state(2))
        dist.barrier()
        if rank == 0:
            flip(folder / "plain" / "step-00000002" / "__1_0.distcp")
        dist.barrier()
        with pytest.raises(InputError, match=r"__1_0\.distcp is altered"):
            loaded(Checkpoints(folder / "plain", 2), 2)
        assert Checkpoints(folder / "plain", 2).newest_good(told.append) == 1
        assert ["__1_0.distcp is altered" in line for line in told] == ([True] if rank == 0 else [])
        torch.save(after, folder / f"after{rank}.pt")

        # one is killed in the middle of a save: the other is told, and the last good one stays
        lonely = Checkpoints(folder / "plain", 2, background=True)
        if rank == 1:
            dcp.FileSystemWriter.write_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(InputError, match="a process of this job is gone"):
            finish(lonely, 3)
        assert names(folder / "plain") == ["step-00000001", "step-00000002.bad"]
        (folder / "told").touch()
    finally:
        dist.destroy_process_group()


def test_two_processes_write_what_one_reads_and_the_reverse(tmp_path):
    Checkpoints(tmp_path / "one", 1).save(4, state(4))
    network = Net()
    draw(network, 3)
    Checkpoints(tmp_path / "one-net", 1).save(5, {"net": network.state_dict(), "step": 5})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    both = [context.Process(target=rank_of_two, args=(rank, str(tmp_path), port)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in both] == [0, -signal.SIGKILL]
    assert (tmp_path / "told").exists()

    manifest = read_manifest(tmp_path / "plain" / "step-00000001")
    assert (manifest.world, manifest.metric) == (2, 0.5)
    assert set(manifest.files) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert same(loaded(Checkpoints(tmp_path / "plain", 1), 1), state(1))
    into = {"net": Net().state_dict(), "step": 0}
    Checkpoints(tmp_path / "shards", 1).load(2, into)
    assert same(into, {"net": torch.load(tmp_path / "after0.pt"), "step": 2})

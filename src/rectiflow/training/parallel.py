"""How the processes of a job train one model together: torch's DDP, or FSDP2 for a model that fits none of them alone.

Each process takes its parts of the batch (`rectiflow.training.parts`), whose losses add up to the mean over the batch.
torch averages gradients over processes, so a part's loss counts as many times as there are processes.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rectiflow.base import ranks
from rectiflow.base.errors import InputError
from rectiflow.training.blocks import repeated_blocks
from rectiflow.training.config import ParallelConfig, TrainingConfig
from rectiflow.training.parts import check_parts
from rectiflow.training.stage import Stage

Loss = Callable[[int, slice], Tensor]


class Parallel(ABC):
    """How the steps of a stage are shared among processes. Subclasses are final."""

    @abstractmethod
    def spread(self, stage: Stage, averages: Sequence[nn.Module]) -> None:
        """Begin: from here on the weights of `stage.module`, and those of its averages, lie as this way wants them."""

    @abstractmethod
    def loss(self, turn: str) -> Loss:
        """The loss of a turn, of (step, part), whose backward pass leaves the batch's gradient in every process."""

    def unsynchronised(self, turn: str) -> AbstractContextManager[None]:
        """While a part is taken after which others come: its gradients stay here."""
        return nullcontext()

    def whole(self, module: nn.Module) -> nn.Module:
        """A module of the stage, or an average of it, with all its weights in one place; only the first process has it.

        Every process has to ask.
        """
        return module


@final
class Alone(Parallel):
    """One process."""

    def spread(self, stage: Stage, averages: Sequence[nn.Module]) -> None:
        """Nothing is to be done."""
        self._stage = stage

    def loss(self, turn: str) -> Loss:
        """The stage's own."""
        return lambda step, part: self._stage.loss(step, part, turn)


@final
class _Turn(nn.Module):
    """What a turn trains, as a module whose call is the turn's loss: a wrapper sees all that is done with it."""

    def __init__(self, stage: Stage, turn: str) -> None:
        super().__init__()
        self.trained = stage.module.get_submodule(turn)
        self._loss: Callable[[int, slice, str], Tensor] = stage.loss
        self._turn = turn

    def forward(self, step: int, part: slice) -> Tensor:
        return self._loss(step, part, self._turn) * ranks.world()


@final
class DataParallel(Parallel):
    """DDP: every process has all weights; gradients are added up while the backward pass still runs."""

    def spread(self, stage: Stage, averages: Sequence[nn.Module]) -> None:
        """Wrap what each turn trains."""
        self._turns = {}
        with warnings.catch_warnings():
            # torch 2.13 renames the first option, and older ones know it by this name only.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            for turn in stage.turns:
                self._turns[turn] = DistributedDataParallel(
                    _Turn(stage, turn),
                    broadcast_buffers=False,
                    find_unused_parameters=stage.may_leave_out,
                    gradient_as_bucket_view=True,
                )

    def loss(self, turn: str) -> Loss:
        """The stage's, through the wrapper."""
        return self._turns[turn]

    def unsynchronised(self, turn: str) -> AbstractContextManager[None]:
        """Without the wrapper's exchange."""
        return cast(AbstractContextManager[None], self._turns[turn].no_sync())


@final
class Sharded(Parallel):
    """FSDP2: every process has a part of each weight, of its gradient and of its moments; HSDP if in groups.

    Args:
        config: how many processes share a copy of the weights.
        device: where the stage lies.
        bfloat16: whether weights of blocks are gathered in bfloat16; gradients are added up in float32 in any case.
    """

    def __init__(self, config: ParallelConfig, device: torch.device, bfloat16: bool) -> None:
        self._mesh = _mesh(config, device)
        reduced = torch.bfloat16 if bfloat16 else None
        # Inputs stay as they are: times would lose their digits.
        self._policy = MixedPrecisionPolicy(reduced, torch.float32, cast_forward_inputs=False)

    def spread(self, stage: Stage, averages: Sequence[nn.Module]) -> None:
        """Cut up the blocks of the network, and what is around them."""
        # Blocks of two streams give views; nothing of ours writes into them in place, which is what this warns of.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self._stage = stage
        self._plain = copy.deepcopy(stage.module).cpu().requires_grad_(False) if ranks.first() else None
        self._shard(stage.module, self._policy)
        for module in averages:
            self._shard(module, MixedPrecisionPolicy())  # they are asked outside of autocast

    def _shard(self, module: nn.Module, policy: MixedPrecisionPolicy) -> None:
        for block in repeated_blocks(module):
            fully_shard(block, mesh=self._mesh, mp_policy=policy)
        fully_shard(module, mesh=self._mesh)  # what is around the blocks is small, and of it times stay in float32

    def loss(self, turn: str) -> Loss:
        """The stage's own: the shards are gathered by hooks of the module."""
        return lambda step, part: self._stage.loss(step, part, turn) * ranks.world()

    @contextmanager
    def unsynchronised(self, turn: str) -> Iterator[None]:
        """Gradients are not added up; they are held whole meanwhile."""
        module = cast(FSDPModule, self._stage.module)
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    def whole(self, module: nn.Module) -> nn.Module:
        """All weights, on the CPU of the first process."""
        state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self._plain is None:
            return module
        self._plain.load_state_dict(cast(Mapping[str, Tensor], state))
        return self._plain.eval()


def check_parallel(config: TrainingConfig, above: str = "") -> None:
    """Nothing, if a run can be trained by the processes that there are in the way it asks for.

    Args:
        config: a run, or a stage of one.
        above: what its settings' names begin with, such as "latent.train." of a stage.

    Raises:
        InputError: it cannot; one line.
    """
    asked, count = config.parallel, ranks.world()
    check_parts(config, above)
    if asked.kind == "ddp":
        return
    if not ranks.started():
        raise InputError(
            "parallel.kind=fsdp is for several processes, and this is one by itself; start it by torchrun "
            "--nproc-per-node=N -m -- rectiflow train …, or set parallel.kind=ddp."
        )
    if asked.shard and count % asked.shard:
        raise InputError(
            f"parallel.shard={asked.shard} does not divide the {count} processes; set a divisor of that, or 0 for all."
        )


def parallel(config: TrainingConfig, device: torch.device) -> Parallel:
    """The way that `config` asks for, among the processes that there are; it has passed `check_parallel`."""
    if config.parallel.kind == "fsdp":
        return Sharded(config.parallel, device, config.precision == "bfloat16")
    return DataParallel() if ranks.started() else Alone()


def _mesh(config: ParallelConfig, device: torch.device) -> DeviceMesh:
    count, size = ranks.world(), config.shard or ranks.world()
    if size == count:
        return init_device_mesh(device.type, (count,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (count // size, size), mesh_dim_names=("replicate", "shard"))

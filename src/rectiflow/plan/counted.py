"""What a step of a stage computes and keeps, counted while it is taken: of a stage of shapes, or of a real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from rectiflow.base.autocast import autocast
from rectiflow.training.blocks import repeated_blocks
from rectiflow.training.stage import Stage
from rectiflow.training.stepper import alone
from rectiflow.training.watch import flop_counter


@dataclass(frozen=True)
class Counted:
    """Of some samples of one step.

    Args:
        flops: FLOPs.
        forward: those of the losses alone.
        saved: bytes that are kept for a backward pass, at most: those of all tensors but the weights.
        block: bytes of these that one of the repeated blocks keeps, at most.
        calls: operations that a device would start; 0 of a real stage.
    """

    flops: float = 0.0
    forward: float = 0.0
    saved: int = 0
    block: int = 0
    calls: int = 0

    def along(self, other: "Counted", times: float) -> "Counted":
        """What is so many times as far from here as `other` is."""
        flops, forward, saved, block, calls = (
            mine + (theirs - mine) * times for mine, theirs in zip(astuple(self), astuple(other), strict=True)
        )
        return Counted(flops, forward, round(saved), round(block), round(calls))


def counted(stage: Stage, step: int, samples: int, precision: str, backward: bool = True) -> Counted:
    """What the first samples of a step take; no weights are changed.

    Args:
        stage: of a batch of `samples` at least.
        step: its number.
        samples: how many.
        precision: that it computes in.
        backward: whether gradients are taken, too.
    """
    work, forward, saved, block = _Work(), 0.0, 0, 0
    with work:
        for turn in stage.turns_at(step):
            kept, before = Kept(stage.module), work.flops
            with alone(stage.module.get_submodule(turn), stage.module):
                with kept.watching(), autocast(torch.device("cpu"), precision):
                    loss = stage.loss(step, slice(0, samples), turn)
                forward += work.flops - before
                if backward:
                    loss.backward()
            saved, block = max(saved, kept.total), max(block, kept.block)
            del loss
    stage.module.zero_grad(set_to_none=True)
    return Counted(work.flops, forward, saved, block, work.calls)


@final
class Kept:
    """Storages that autograd keeps for a backward pass, each of them once, without those of weights.

    Args:
        module: whose weights these are, and whose blocks are told apart.

    Attributes:
        block: bytes that are new in one of the repeated blocks, at most.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.block = module, 0
        weights = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
        self._weights = {storage._cdata for storage in weights}
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no other gets the address of one

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return sum(storage.nbytes() for storage in self._storages.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts."""
        began: list[int] = []

        def enter(block: nn.Module, args: Any) -> None:
            began.append(self.total)

        def leave(block: nn.Module, args: Any, out: Any) -> None:
            self.block = max(self.block, self.total - began.pop())

        blocks = repeated_blocks(self.module)
        hooks = [block.register_forward_pre_hook(enter) for block in blocks]
        hooks += [block.register_forward_hook(leave) for block in blocks]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, _give_back):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._storages[storage._cdata] = storage
        return tensor


def _give_back(tensor: Tensor) -> Tensor:
    return tensor


@final
class _Work(TorchDispatchMode):
    """Counts FLOPs by torch's own formulas, and what a device would start: operations on tensors without numbers that
    are not mere views."""

    # torch's counter asks of each operation how it is composed, which here takes as long as all the rest.

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops, self.calls = 0.0, 0
        self._formulas = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # where a tensor lies
            return out
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        made = out if isinstance(out, tuple | list) else (out,)
        # Draws and times are computed ahead on a CPU, of numbers.
        self.calls += not func.is_view and any(isinstance(each, FakeTensor) for each in made)
        return out

"""Tensors that may be cut up among processes (FSDP2's)."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: all of it, unless it is cut up."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def complete(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut up; every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

"""Named GPUs by what their makers state: dense rates, memory, bandwidth. Never imports torch."""

from dataclasses import dataclass

from rectiflow.base.errors import unknown


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Args:
        name: in full.
        bfloat16: dense FLOP/s of the tensor cores, accumulated in float32, without sparsity.
        float32: FLOP/s outside of the tensor cores.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        source: where these are stated.
    """

    name: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    source: str


_H100, _H200 = "NVIDIA H100 datasheet, sparse rate halved", "NVIDIA H200 datasheet, sparse rate halved"
_AMPERE = "NVIDIA Ampere GA102 whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
GPUS = {
    "h100": Gpu("NVIDIA H100 SXM 80 GB", 989.4e12, 66.9e12, 80e9, 3.35e12, _H100),
    "h100-pcie": Gpu("NVIDIA H100 PCIe 80 GB", 756e12, 51.2e12, 80e9, 2.0e12, "NVIDIA H100 whitepaper"),
    "h200": Gpu("NVIDIA H200 SXM 141 GB", 989.4e12, 66.9e12, 141e9, 4.8e12, _H200),
    "a100": Gpu("NVIDIA A100 SXM 80 GB", 312e12, 19.5e12, 80e9, 2.039e12, "NVIDIA A100 datasheet"),
    "a100-40gb": Gpu("NVIDIA A100 SXM 40 GB", 312e12, 19.5e12, 40e9, 1.555e12, "NVIDIA A100 datasheet"),
    "a10": Gpu("NVIDIA A10 24 GB", 125e12, 31.2e12, 24e9, 0.6e12, "NVIDIA A10 datasheet"),
    "l40s": Gpu("NVIDIA L40S 48 GB", 362e12, 91.6e12, 48e9, 0.864e12, "NVIDIA L40S datasheet, dense rate"),
    "l4": Gpu("NVIDIA L4 24 GB", 121e12, 30.3e12, 24e9, 0.3e12, "NVIDIA L4 datasheet, sparse rate halved"),
    "3090": Gpu("NVIDIA GeForce RTX 3090 24 GB", 71e12, 35.6e12, 24e9, 0.936e12, _AMPERE),
    "4090": Gpu("NVIDIA GeForce RTX 4090 24 GB", 165.2e12, 82.6e12, 24e9, 1.008e12, _ADA),
}


def gpu(name: str) -> Gpu:
    """The GPU of that name, in capitals or not.

    Raises:
        InputError: there is no such; the near miss and all names in one line.
    """
    plain = name.lower().removeprefix("nvidia-").removeprefix("rtx-").removeprefix("rtx")
    if plain not in GPUS:
        raise unknown("GPU", name, GPUS)
    return GPUS[plain]

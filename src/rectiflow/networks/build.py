"""The network that a configuration describes."""

from torch import nn

from rectiflow.networks.config import DiTConfig, MMDiTConfig, NetworkConfig
from rectiflow.networks.dit import DiT
from rectiflow.networks.mmdit import MMDiT
from rectiflow.networks.unet import UNet


def build(config: NetworkConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights from torch's global generator.

    Raises:
        InputError: its channels or classes are still open.
    """
    if isinstance(config, DiTConfig):
        return DiT(config)
    return MMDiT(config) if isinstance(config, MMDiTConfig) else UNet(config)

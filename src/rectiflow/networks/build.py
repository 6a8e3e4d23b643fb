"""The network that a configuration describes."""

from torch import nn

from rectiflow.networks.config import NetworkConfig, UNetConfig
from rectiflow.networks.dit import DiT
from rectiflow.networks.unet import UNet


def build(config: NetworkConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights from torch's global generator.

    Raises:
        InputError: its channels or classes are still open.
    """
    return UNet(config) if isinstance(config, UNetConfig) else DiT(config)

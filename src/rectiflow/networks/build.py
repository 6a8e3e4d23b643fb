"""The network that a configuration describes."""

from torch import nn

from rectiflow.networks.config import DiTConfig, MMDiTConfig, NetworkConfig, UNetConfig, VideoDiTConfig
from rectiflow.networks.dit import DiT
from rectiflow.networks.mmdit import MMDiT
from rectiflow.networks.unet import UNet
from rectiflow.networks.video import VideoDiT


def build(config: NetworkConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights from torch's global generator.

    Raises:
        InputError: its channels or classes are still open.
    """
    match config:
        case DiTConfig():
            return DiT(config)
        case MMDiTConfig():
            return MMDiT(config)
        case VideoDiTConfig():
            return VideoDiT(config)
        case UNetConfig():
            return UNet(config)

"""Text to image: a flow told captions by an encoder of its own, on digit-scenes or on a folder of captioned pictures."""

from rectiflow.conditioning.config import LearnedConfig, TextConfig
from rectiflow.data.config import DataConfig
from rectiflow.flow.config import FlowConfig
from rectiflow.networks.config import MMDiTConfig
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import PreviewConfig, RunConfig


def scenes() -> RunConfig:
    """Coloured digits in named places, 32×32, from sentences that say exactly what is in them."""
    return RunConfig(
        recipe="scenes",
        data=DataConfig(set="digit-scenes"),
        network=MMDiTConfig(patch=4, width=160, depth=6, heads=5),
        flow=FlowConfig(prediction="data"),
        text=TextConfig(encoders=(LearnedConfig(vocabulary=320, length=48),)),
        condition_dropout=0.1,
        steps=10_000,
        batch=64,
        optimiser=OptimiserConfig(lr=2e-3, warmup=100, decay="linear"),
        ema=EmaConfig(decay=0.995),
        every=EveryConfig(log=20, held_out=250, preview=500, first_preview=0, save=500),
        preview=PreviewConfig(count=8, rows=8, steps=20, solver="ab2"),
        compile=True,
    )

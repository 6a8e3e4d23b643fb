"""Text to video, and pictures that move: a flow in the latents of a causal autoencoder of clips."""

from rectiflow.conditioning.config import LearnedConfig, TextConfig
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.data.config import DataConfig
from rectiflow.flow.config import FlowConfig, TimesConfig
from rectiflow.networks.config import VideoDiTConfig
from rectiflow.recipes.autoencoder import frame_autoencoder, video_autoencoder
from rectiflow.training.config import EmaConfig, EveryConfig, OptimiserConfig
from rectiflow.training.generator_config import LatentConfig, PreviewConfig, RunConfig


def clips() -> RunConfig:
    """Coloured digits that move, 17 frames of 32×32, from sentences that say how."""
    return RunConfig(
        recipe="clips",
        data=DataConfig(set="digit-clips", frames=17),
        latent=LatentConfig(train=video_autoencoder(), pictures=frame_autoencoder()),
        network=VideoDiTConfig(patch=2, width=192, depth=5, heads=3, modulation="shared"),
        flow=FlowConfig(shift=4.0, shift_by_size=True),
        text=TextConfig(encoders=(LearnedConfig(vocabulary=400, length=48, width=128),)),
        frames=FramesConfig(nothing=6.0, first=2.0, last=1.0, both=0.5, beginning=0.5),
        times=TimesConfig(density="logit-normal"),
        condition_dropout=0.1,
        steps=22_000,
        batch=32,
        optimiser=OptimiserConfig(lr=1.5e-3, warmup=200, decay="linear"),
        ema=EmaConfig(decay=0.998),
        every=EveryConfig(log=50, held_out=500, preview=500, first_preview=0, save=500),
        preview=PreviewConfig(rows=8, steps=20, solver="ab2"),
        compile=True,
    )


def video() -> RunConfig:
    """A folder of clips with captions at 64×64, 17 frames, with an autoencoder of their own that is trained first."""
    base, first = clips(), video_autoencoder()
    folder = DataConfig(set="folder", size=64, frames=17, rate=8.0)
    network = first.network.model_copy(update={"width": 32, "multipliers": (1, 2, 4, 4), "temporal": 4})
    stage_1 = first.model_copy(update={"data": folder, "network": network, "steps": 4000, "isometric": False})
    pictures = network.model_copy(update={"temporal": 1})
    stage_0 = frame_autoencoder().model_copy(
        update={"data": folder, "network": pictures, "steps": 1500, "isometric": False}
    )
    return base.model_copy(
        update={
            "recipe": "video",
            "data": folder,
            "latent": LatentConfig(train=stage_1, pictures=stage_0),
            "network": VideoDiTConfig(patch=1, width=192, depth=6, heads=6, modulation="shared", label_std=1.0),
            "flow": FlowConfig(shift_by_size=True),
            "text": TextConfig(),
            "steps": 10_000,
            "batch": 64,
            "optimiser": OptimiserConfig(lr=2e-3, warmup=200, decay="linear"),
            "ema": EmaConfig(decay=0.997),
        }
    )

"""Settings of the training of a generator: a flow, in pixels or in latents, or one of one step. Never imports torch."""

from typing import Literal, Self, final

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.conditioning.config import TextConfig
from rectiflow.conditioning.frames_config import FramesConfig
from rectiflow.conditioning.picture_config import PictureConfig
from rectiflow.data.config import LatentsConfig
from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.networks.config import NetworkConfig
from rectiflow.sampling.config import SolverName
from rectiflow.training.autoencoder_config import AutoencoderRunConfig
from rectiflow.training.config import TrainingConfig


class PreviewConfig(Config):
    """What a preview shows: a row of samples for each class, or for each of some held-out captions.

    Args:
        count: samples in a row.
        rows: classes, or captions of held-out pictures, at most; the first ones.
        steps: N intervals from noise to picture.
        solver: as for `rectiflow sample`.
        guidance: w ≥ 0 of classifier-free guidance, where the null condition is trained; 0 is none.
    """

    count: int = Field(8, ge=1)
    rows: int = Field(10, ge=1)
    steps: int = Field(50, ge=1)
    solver: SolverName = "euler"
    guidance: float = Field(1.0, ge=0)


class VAEConfig(Config):
    """Settings of a variational autoencoder (objective=vae).

    Args:
        deviation: σ > 0 of p(x|z) = N(decoder(z), σ²I).
        beta: weight ≥ 0 of the KL divergence; 1 is the bound.
    """

    deviation: float = Field(0.2, gt=0)
    beta: float = Field(1.0, ge=0)


class GANConfig(Config):
    """Settings of a generator against a critic (objective=gan).

    Args:
        penalty: γ ≥ 0 of the penalty on the critic's gradient, at real and at generated pictures.
        penalty_every: steps k ≥ 1 from one penalty to the next, each k-fold (Karras et al. 2020); 1 is every step.
    """

    penalty: float = Field(1.0, ge=0)
    penalty_every: int = Field(4, ge=1)


class LatentConfig(Config):
    """The autoencoder in whose latents a flow is trained, and how they are kept.

    Args:
        autoencoder: a run or model folder, a folder that diffusers calls AutoencoderKL, or ORG/NAME on the hub; empty
            trains one first, in the run's own folder `autoencoder/`.
        train: how that one is trained; its pictures are the run's.
        pictures: of clips, how an autoencoder of their single frames is trained before, from which that one starts;
            None starts from nothing.
        cache: how latents are kept on disk.
    """

    autoencoder: str = ""
    train: AutoencoderRunConfig
    pictures: AutoencoderRunConfig | None = None
    cache: LatentsConfig = LatentsConfig()


@final
class RunConfig(TrainingConfig):
    """One complete training run of a generator.

    Args:
        objective: what the network is trained by: "flow" matching, or, for a model of one step (flow.one_step=true),
            as the decoder of a "vae" or the generator of a "gan".
        network: architecture; channels and classes that are None are taken from the data, and written into `run.yaml`.
        flow: schedule, prediction and time shift.
        times: density of training times.
        weight: how the loss weighs a time.
        vae: settings of objective=vae.
        gan: settings of objective=gan.
        text: captions as the condition; None is none: the classes are it, if there are any.
        picture: a picture as condition; None is none.
        frames: frames as condition, for clips (data.frames above 1); None is none.
        condition_dropout: share of samples trained with the null condition, in [0, 1]; 0 trains no guidance.
        preview: what a preview shows.
        latent: the autoencoder, for a model of latents; None is pixel space.
    """

    objective: Literal["flow", "vae", "gan"] = "flow"
    network: NetworkConfig
    flow: FlowConfig = FlowConfig()
    times: TimesConfig = TimesConfig()
    weight: WeightConfig = WeightConfig()
    vae: VAEConfig = VAEConfig()
    gan: GANConfig = GANConfig()
    text: TextConfig | None = None
    picture: PictureConfig | None = None
    frames: FramesConfig | None = None
    condition_dropout: float = Field(0.1, ge=0, le=1)
    preview: PreviewConfig = PreviewConfig()
    latent: LatentConfig | None = None

    @property
    def may_be_sharded(self) -> bool:
        """A flow does all by its call; other objectives do not."""
        return self.objective == "flow"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these settings before they train."""
        told = []
        if (
            self.latent is not None
            and self.latent.cache.variants == 1
            and (self.data.flip or self.data.crop == "random")
        ):
            told.append(
                "data.flip and data.crop=random concern the versions that are kept of each picture's latents, and "
                "latent.cache.variants=1 keeps the plain one alone."
            )
        if self.flow.schedule == "ve" and self.flow.prediction != "data":
            told.append(
                f"under ve a {self.flow.prediction} of σ = {self.flow.sigma_max:g} hides the data in its noise; "
                "flow.prediction=data learns in far fewer steps."
            )
        return tuple(told)

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if (self.objective != "flow") != self.flow.one_step:
            expected = str(self.objective != "flow").lower()
            raise ValueError(f"objective {self.objective} needs flow.one_step={expected}; use recipe {self.objective}")
        return self

    @model_validator(mode="after")
    def _captions_are_read(self) -> Self:
        if self.text is not None and self.objective != "flow":
            raise ValueError(f"objective {self.objective} takes no captions; leave text out, or use objective=flow")
        if self.text is not None and self.flow.coupling != "independent":
            raise ValueError(
                f"flow.coupling={self.flow.coupling} pairs pictures of one class, and each caption is a class of its "
                "own; use flow.coupling=independent"
            )
        return self

    @model_validator(mode="after")
    def _picture_is_taken(self) -> Self:
        if self.picture is None:
            return self
        if self.latent is not None:
            raise ValueError("a picture as condition is of pixels, and latent is set; leave out one of them")
        if self.objective != "flow" or self.flow.coupling != "independent":
            other = f"objective={self.objective}" if self.objective != "flow" else f"flow.coupling={self.flow.coupling}"
            raise ValueError(f"a picture as condition needs a flow of independent pairs; {other} does not take one")
        if (self.picture.kind == "paired") != bool(self.picture.dir):
            raise ValueError(
                f"picture.kind={self.picture.kind} with picture.dir='{self.picture.dir}'; paired needs one"
            )
        if self.picture.kind == "paired" and (self.data.flip or self.data.crop == "random" or self.data.buckets > 1):
            raise ValueError(
                "paired pictures must meet pixel by pixel: leave out flip, crop=random and buckets of data"
            )
        return self

    @model_validator(mode="after")
    def _frames_are_of_clips(self) -> Self:
        if self.frames is not None and self.data.frames == 1:
            raise ValueError(
                "frames as condition are of clips, and data.frames is 1; set data.frames=17, or frames=null"
            )
        if self.frames is not None and (self.objective != "flow" or self.picture is not None):
            other = "picture" if self.picture is not None else f"objective={self.objective}"
            raise ValueError(f"frames as condition do not go with {other}; leave out one of them")
        if self.data.frames > 1 and str(self.network.kind) != "video":
            raise ValueError(
                f"clips of {self.data.frames} frames need network.kind=video, received {self.network.kind}; set it, or "
                "data.frames=1 for pictures"
            )
        return self

    @property
    def encoder_dropout(self) -> tuple[float, ...]:
        """Share of samples trained without the captions of each encoder."""
        return () if self.text is None else tuple(encoder.dropout for encoder in self.text.encoders)

    @model_validator(mode="after")
    def _bridge_has_both_ends(self) -> Self:
        if (self.flow.source == "pictures") != bool(self.data.source_dir):
            raise ValueError(
                f"flow.source={self.flow.source} with data.source_dir='{self.data.source_dir}': a bridge from other "
                "pictures needs both, as --source DIR sets them"
            )
        return self

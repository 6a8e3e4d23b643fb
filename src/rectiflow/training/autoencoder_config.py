"""Settings of the training of an autoencoder. Never imports torch."""

from typing import Literal, Self, final

from pydantic import Field, model_validator

from rectiflow.autoencoders.config import AutoencoderConfig
from rectiflow.base.config import Config
from rectiflow.training.config import TrainingConfig


class ReconstructionConfig(Config):
    """The loss of an autoencoder without its adversary: means over a picture's elements.

    Args:
        absolute: weight ≥ 0 of |x − x̂|.
        square: weight ≥ 0 of (x − x̂)²; what PSNR is told by.
        structure: weight ≥ 0 of the multi-scale gradient and SSIM terms, which need no weights.
        perceptual: folder or ORG/NAME of LPIPS weights as safetensors; empty is none.
        perceptual_weight: weight ≥ 0 of LPIPS, if given.
        kl: weight ≥ 0 of the KL divergence from N(0, I), summed over a picture's latents, beside a loss summed over
            its pixels, as Rombach et al. (2022) state theirs; with means over both kl·(latent elements)/(pixels).
        equivariance: share of the steps, in [0, 1], whose latents are shrunk and turned before they are decoded,
            against pictures shrunk and turned alike (EQ-VAE, Kouzelis et al. 2025); 0 is never.
    """

    absolute: float = Field(1.0, ge=0)
    square: float = Field(0.0, ge=0)
    structure: float = Field(0.0, ge=0)
    perceptual: str = ""
    perceptual_weight: float = Field(1.0, ge=0)
    kl: float = Field(1e-6, ge=0)
    equivariance: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _there_is_something_to_learn(self) -> Self:
        perceptual = self.perceptual_weight if self.perceptual else 0
        if not self.absolute + self.square + self.structure + perceptual:
            raise ValueError("absolute, square, structure and perceptual are all 0; a reconstruction needs one of them")
        return self


class DiscriminatorConfig(Config):
    """The adversary of an autoencoder, a PatchGAN with the hinge loss (Isola et al. 2017; Esser et al. 2021).

    Of clips it is one of patches in space and time.

    Args:
        weight: of its term, times the adaptive weight ‖∇ reconstruction‖/‖∇ adversarial‖ at the last layer; 0 is no
            discriminator.
        start: share of the steps, in [0, 1), before it begins to learn.
        lead: share of the steps, in [0, 1), in which it learns alone before the autoencoder feels it.
        width: channels of its first level.
        layers: levels that halve the side.
        lr: its peak learning rate; None is the autoencoder's.
        penalty: weight γ ≥ 0 of R1, γ/2·‖∇ₓ Σ D(x)‖² on real pictures, of the sum over a picture's patches, so that
            0.01 is much (Mescheder et al. 2018); 0 is none.
        lecam: weight ≥ 0 of the LeCAM regulariser (Tseng et al. 2021), for few data; 0 is none.
    """

    weight: float = Field(0.5, ge=0)
    start: float = Field(0.5, ge=0, lt=1)
    lead: float = Field(0.02, ge=0, lt=1)
    width: int = Field(32, ge=1)
    layers: int = Field(3, ge=1)
    lr: float | None = Field(None, gt=0)
    penalty: float = Field(0.0, ge=0)
    lecam: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _starts_before_the_end(self) -> Self:
        if self.start + self.lead >= 1:
            raise ValueError(f"start {self.start} and lead {self.lead} leave the autoencoder no step against it")
        return self


@final
class AutoencoderRunConfig(TrainingConfig):
    """One complete training run of an autoencoder.

    Args:
        objective: "autoencoder".
        network: architecture; channels that are None are taken from the data.
        loss: what a reconstruction is judged by.
        discriminator: its adversary.
        preview: held-out pictures in a preview.
        start_from: run or model folder of an autoencoder of pictures, whose weights one of clips starts from; empty is
            none.
        isometric: whether the linear code begins with latents at whose distances the pixels' are, up to one scale: the
            principal components turned at random among themselves, so that each channel has a like share of all. Else
            each channel is one component at unit deviation, the least as large as the first.
    """

    objective: Literal["autoencoder"] = "autoencoder"
    network: AutoencoderConfig
    loss: ReconstructionConfig = ReconstructionConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    preview: int = Field(6, ge=1)
    start_from: str = ""
    isometric: bool = False

    @model_validator(mode="after")
    def _graphs_are_kept(self) -> Self:
        if self.compile and self.discriminator.weight:
            raise ValueError(
                "compile=true gives the graph up that a discriminator's adaptive weight and penalty go through twice; "
                "set compile=false or discriminator.weight=0"
            )
        return self

    @model_validator(mode="after")
    def _starts_as_clips(self) -> Self:
        if self.start_from and self.network.temporal == 1:
            raise ValueError("start_from is for an autoencoder of clips; set network.temporal=4 or leave it out")
        return self

    @property
    def may_be_sharded(self) -> bool:
        """Its latents and its adversary go round the call."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these settings before they train."""
        if not self.network.linear:
            return ()
        return ("with network.linear=true it cannot be exported to diffusers, whose layout has no linear code.",)

    @property
    def discriminator_from(self) -> tuple[int, int]:
        """Steps at which the discriminator begins to learn, and at which the autoencoder begins to feel it."""
        start = round(self.discriminator.start * self.steps)
        return start, start + round(self.discriminator.lead * self.steps)

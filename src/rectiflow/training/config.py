"""Settings of a training run. Never imports torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rectiflow.base.config import Config
from rectiflow.data.config import DataConfig
from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.networks.config import NetworkConfig
from rectiflow.sampling.config import SolverName

PrecisionName = Literal["auto", "float32", "bfloat16"]


class OptimiserConfig(Config):
    """The optimiser, with warm-up, decay and clipping.

    Args:
        kind: "adamw", or "muon" for the hidden matrices of the blocks with AdamW for the rest, at one rate for both.
        lr: peak learning rate.
        betas: decay of AdamW's two moments.
        momentum: decay of Muon's one moment.
        weight_decay: decoupled decay; 0 is none.
        warmup: steps over which the rate rises from 0.
        decay: how the rate falls from the end of the warm-up to the last step; "trapezoid" stays at its peak and falls
            over the last `decay_share` of the steps, in a line.
        decay_share: of "trapezoid", in (0, 1].
        clip: greatest norm of the gradient; 0 is no clipping.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    momentum: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(100, ge=0)
    decay: Literal["constant", "linear", "cosine", "trapezoid"] = "linear"
    decay_share: float = Field(0.2, gt=0, le=1)
    clip: float = Field(1.0, ge=0)


class EmaConfig(Config):
    """The average of the weights that becomes the model. A number stands for the decay of an exponential one.

    Args:
        kind: "exponential", or "power" (Karras et al. 2024): averages over a share of the training so far, of which any
            other length can be put together afterwards (`rectiflow average`).
        decay: of the exponential one, in [0, 1); 0 is the weights themselves.
        lengths: σ_rel of the power averages, their standard deviation as a share of the steps; the first becomes the
            model.
    """

    kind: Literal["exponential", "power"] = "exponential"
    decay: float = Field(0.999, ge=0, lt=1)
    lengths: tuple[Annotated[float, Field(gt=0, lt=0.28)], ...] = Field((0.05, 0.1), min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _number_is_decay(cls, values: Any) -> Any:
        return {"decay": values} if isinstance(values, int | float) else values


class EveryConfig(Config):
    """Steps between events; 0 is never. The last step has each of them that is not 0.

    Args:
        log: a line of metrics.
        held_out: the loss on held-out data.
        preview: a grid of samples in `samples/`.
        first_preview: a preview at this step and at each doubling of it until `preview`, for a look at the first steps.
        save: a checkpoint and the model.
        average: a snapshot of each power average (`ema.kind`), of which any other length can be made.
    """

    log: int = Field(20, ge=1)
    held_out: int = Field(200, ge=0)
    preview: int = Field(500, ge=0)
    first_preview: int = Field(0, ge=0)
    save: int = Field(500, ge=0)
    average: int = Field(200, ge=0)


class PreviewConfig(Config):
    """What a preview shows: a row of samples for each class.

    Args:
        count: samples in a row.
        rows: classes at most; the first ones.
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


class RunConfig(Config):
    """One complete training run.

    Args:
        recipe: name of the recipe it comes from.
        objective: what the network is trained by: "flow" matching, or, for a model of one step (flow.one_step=true),
            as the decoder of a "vae" or the generator of a "gan".
        data: what to train on.
        network: architecture; channels and classes that are None are taken from the data, and written into `run.yaml`.
        flow: schedule, prediction and time shift.
        times: density of training times.
        weight: how the loss weighs a time.
        vae: settings of objective=vae.
        gan: settings of objective=gan.
        condition_dropout: share of samples trained with the null condition, in [0, 1]; 0 trains no guidance.
        steps: optimiser steps in all.
        batch: samples in a step.
        accumulate: parts that a step's batch is taken in, one after another, for less memory; the step is the same.
        optimiser: AdamW or Muon, and the rate.
        ema: the average of the weights that becomes the model; a number is the decay of an exponential one.
        every: steps between logs, checks, previews and checkpoints.
        preview: what a preview shows.
        keep: checkpoints kept, the newest.
        seed: any integer.
        precision: "auto" measures float32 against bfloat16 autocast; the choice is written into `run.yaml`.
        device: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads; 0 leaves torch's choice.
        compile: compile the network (`torch.compile`), block by block if it has blocks.
        channels_last: keep the kernels of convolutions, and so their pictures, with the channels last in memory.
        activation_checkpointing: keep only each block's input for the backward pass and compute the rest again there.
    """

    recipe: str
    objective: Literal["flow", "vae", "gan"] = "flow"
    data: DataConfig
    network: NetworkConfig
    flow: FlowConfig = FlowConfig()
    times: TimesConfig = TimesConfig()
    weight: WeightConfig = WeightConfig()
    vae: VAEConfig = VAEConfig()
    gan: GANConfig = GANConfig()
    condition_dropout: float = Field(0.1, ge=0, le=1)
    steps: int = Field(1000, ge=1)
    batch: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    optimiser: OptimiserConfig = OptimiserConfig()
    ema: EmaConfig = EmaConfig()
    every: EveryConfig = EveryConfig()
    preview: PreviewConfig = PreviewConfig()
    keep: int = Field(2, ge=1)
    seed: int = 0
    precision: PrecisionName = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(0, ge=0)
    compile: bool = False
    channels_last: bool = False
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        if (self.objective != "flow") != self.flow.one_step:
            expected = str(self.objective != "flow").lower()
            raise ValueError(f"objective {self.objective} needs flow.one_step={expected}; use recipe {self.objective}")
        return self

    @model_validator(mode="after")
    def _bridge_has_both_ends(self) -> Self:
        if (self.flow.source == "pictures") != bool(self.data.source_dir):
            raise ValueError(
                f"flow.source={self.flow.source} with data.source_dir='{self.data.source_dir}': a bridge from other "
                "pictures needs both, as --source DIR sets them"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} takes more parts than a batch of {self.batch} has samples")
        return self

"""Settings that every training run has. Never imports torch."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rectiflow.base.config import Config
from rectiflow.data.config import DataConfig

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


class ParallelConfig(Config):
    """How the processes of a job, as `torchrun` starts them, train one model together.

    Args:
        kind: "ddp", each process has all weights; "fsdp" (FSDP2), the weights of a flow are cut up among them.
        shard: processes that share one copy of the weights, of kind "fsdp"; 0 is all of them. A divisor of their number
            gives several copies, cut up alike (HSDP): with the processes of a machine, weights stay within it.
    """

    kind: Literal["ddp", "fsdp"] = "ddp"
    shard: int = Field(0, ge=0)


class GuardConfig(Config):
    """What a run does about steps whose loss or gradient is not finite, or whose loss jumps: they are not taken.

    Args:
        spike: interquartile ranges of the last 200 losses, above their median, from which a loss counts as a jump (if
            it is also over twice the median); 0 is never.
        skips: bad steps in a row after which the run goes back to its last good checkpoint, with another data order.
        rollbacks: times that it may go back; then it ends with the reason.
    """

    spike: float = Field(20.0, ge=0)
    skips: int = Field(5, ge=1)
    rollbacks: int = Field(3, ge=0)


class TrainingConfig(Config, ABC):
    """What every training run has. Subclasses are final.

    Args:
        recipe: name of the recipe it comes from.
        data: what to train on.
        steps: optimiser steps in all.
        batch: samples in a step.
        accumulate: parts that a step's batch is taken in, one after another, for less memory; the step is the same.
        optimiser: AdamW or Muon, and the rate.
        ema: the average of the weights that becomes the model; a number is the decay of an exponential one.
        every: steps between logs, checks, previews and checkpoints.
        keep: checkpoints kept, the newest.
        keep_best: checkpoints kept besides, those of the least held-out loss.
        save_aside: write checkpoints while training goes on; the state is copied first.
        watch: where metrics go beside the run's own metrics.jsonl: "tensorboard", "wandb" (if installed), or both in
            brackets.
        guard: what is done about steps that would do harm.
        parallel: how several processes train one model.
        seed: any integer.
        precision: "auto" measures float32 against bfloat16 autocast; the choice is written into `run.yaml`.
        device: "auto", "cpu", "cuda" or "mps".
        threads: CPU threads; 0 leaves torch's choice.
        compile: compile the network (`torch.compile`), block by block if it has blocks.
        channels_last: keep the kernels of convolutions, and so their pictures, with the channels last in memory.
        activation_checkpointing: keep only each block's input for the backward pass and compute the rest again there.
    """

    recipe: str
    data: DataConfig
    steps: int = Field(1000, ge=1, le=2**31 - 1)
    batch: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    optimiser: OptimiserConfig = OptimiserConfig()
    ema: EmaConfig = EmaConfig()
    every: EveryConfig = EveryConfig()
    keep: int = Field(2, ge=1)
    keep_best: int = Field(0, ge=0)
    save_aside: bool = True
    watch: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    guard: GuardConfig = GuardConfig()
    parallel: ParallelConfig = ParallelConfig()
    seed: int = 0
    precision: PrecisionName = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = Field(0, ge=0, le=1024)
    compile: bool = False
    channels_last: bool = False
    activation_checkpointing: bool = False

    @field_validator("watch", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these settings before they train."""

    @property
    @abstractmethod
    def may_be_sharded(self) -> bool:
        """Whether all that trains the network goes through its call, so that its weights may be cut up (fsdp)."""

    @model_validator(mode="after")
    def _shards_fit(self) -> Self:
        if self.parallel.kind == "ddp":
            if self.parallel.shard:
                raise ValueError(
                    f"parallel.shard={self.parallel.shard} is of parallel.kind=fsdp; set that, or parallel.shard=0"
                )
        elif not self.may_be_sharded:
            raise ValueError(f"recipe {self.recipe} cannot be trained in shards, only flows can; set parallel.kind=ddp")
        elif self.optimiser.kind == "muon":
            raise ValueError("optimiser.kind=muon needs whole matrices; set adamw, or parallel.kind=ddp")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} takes more parts than a batch of {self.batch} has samples")
        return self

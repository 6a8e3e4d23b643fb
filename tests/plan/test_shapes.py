"""Plans from shapes: what is counted of networks without numbers is what the real ones compute and keep."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rectiflow.autoencoders.build import build_autoencoder
from rectiflow.autoencoders.config import fitted
from rectiflow.autoencoders.latent_space import LatentSpace
from rectiflow.base import machine
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.data.images import InMemory
from rectiflow.data.sets import open_set
from rectiflow.networks.build import build
from rectiflow.plan.counted import counted
from rectiflow.plan.line import Line
from rectiflow.plan.outlined import most_parameters, outline
from rectiflow.plan.seen import seen
from rectiflow.plan.shapes import CPU, Reads, Shaped, hollow, moments_shape
from rectiflow.plan.views import Repeated
from rectiflow.recipes.registry import resolve
from rectiflow.training import stages
from rectiflow.training.autoencoder_stage import AutoencoderStage
from rectiflow.training.blocks import apply_switches
from rectiflow.training.run import GENERATORS
from rectiflow.training.stages import FlowStage, Latents
from rectiflow.training.watch import Watch

UNET = ["network.kind=unet", "network.width=16", "network.multipliers=[1,2]", "network.attention=[2]"]
SMALL = ["network.width=48", "network.depth=2", "network.heads=2"]


def run(*settings: str, recipe: str = "digits"):
    return resolve(recipe, settings=["batch=8", "threads=1", *settings])


def real_flops(stage, config, step: int = 0) -> float:
    """As the trainer counts them."""
    return Watch(stage, config, CPU)._count(step)


@pytest.mark.parametrize(
    "settings",
    [
        ["precision=float32", *SMALL],
        ["precision=bfloat16", *SMALL, "accumulate=4"],
        ["precision=float32", *SMALL, "activation_checkpointing=true"],
        ["precision=float32", "network.width=32", "network.depth=9", "network.heads=2"],  # told from less deep ones
        ["precision=float32", *UNET],
        ["precision=bfloat16", *UNET],
    ],
    ids=["dit", "dit in bfloat16, in parts", "dit computed again", "deep dit", "unet", "unet in bfloat16"],
)
def test_a_run_without_numbers_computes_and_keeps_what_the_real_one_does(settings):
    config = run(*settings)
    told = outline(config, gpu=False).stages[0]
    real = FlowStage(config, open_set(config.data), CPU)
    plain = counted(real, 0, 8 // config.accumulate, config.precision, backward=False)
    apply_switches(real.module, config)
    kept = counted(real, 0, 8 // config.accumulate, config.precision, backward=False)
    assert told.parameters == sum(p.numel() for p in real.module.parameters())
    assert told.flops == pytest.approx(real_flops(real, config), rel=1e-9)
    # Gradients of a block are at hand beside what is kept; and what it keeps, if it is computed again.
    blocks = plain.block * (2 if config.activation_checkpointing else 1)
    assert told.part(8 / config.accumulate) == pytest.approx(kept.saved + blocks, rel=0.01)
    if config.activation_checkpointing:
        assert kept.saved < 0.7 * plain.saved


@pytest.mark.parametrize("picture", ["{kind: low, factor: 2}", "{kind: masked}"])
def test_a_picture_that_is_given_is_counted(picture):
    small = ["network.width=16", "network.multipliers=[1,2]", "network.attention=[2]", "precision=float32"]
    config = run("data={set: digits, crop: center}", f"picture={picture}", *small, recipe="super-resolution")
    real = FlowStage(config, open_set(config.data), CPU)
    told = outline(config, gpu=False).stages[0]
    assert told.parameters == sum(p.numel() for p in real.module.parameters())
    assert told.flops == pytest.approx(real_flops(real, config), rel=1e-9)


def test_what_is_kept_is_what_autograd_says_it_keeps():
    """relu(xW) and exp(xW), by hand: x once, both results, and W, which does not count."""

    class Once:
        module = nn.Linear(6, 5, bias=False)

        def turns_at(self, step):
            return ("",)

        def loss(self, step, part, turn):
            x = torch.ones(part.stop, 6)
            return (torch.relu(self.module(x)) + self.module(x).exp()).sum()

    found = counted(Once(), 0, 3, "float32")
    assert found.saved == 4 * (3 * 6 + 3 * 5 + 3 * 5)
    assert found.flops == 2 * 3 * 6 * 5 * 4  # two products, and the kernel's gradient of each
    assert found.forward == found.flops / 2


def test_a_flow_in_latents_told_captions_is_the_real_one():
    """The network of scenes, of a real tokenizer, autoencoder and conditions, and of shapes alone."""
    settings = ["network.depth=2", "batch=6", "precision=float32", "compile=false", "threads=1"]
    config = resolve("scenes", settings=settings)
    data = open_set(config.data)
    space = LatentSpace(build_autoencoder(fitted(config.latent.train.network, 3)))
    moments = InMemory(torch.zeros(4, *moments_shape(space, data.shape)), torch.zeros(4, dtype=torch.int64))
    few = replace(data, train=Repeated(moments, data.train), held_out=Repeated(moments, data.held_out))
    real = FlowStage(config, data, CPU, Latents(space, few))
    (encoder,) = real.encoders
    length = encoder(real.loader(0).captions).mask.shape[1]
    shaped = Shaped(data.shape, (), (Reads(encoder.gives, length),))
    with hollow(shaped, gpu=False):
        stage = shaped.stage(config, shaped.space(config.latent))
        whole = counted(stage, 0, 6, "float32")
    there = counted(real, 0, 6, "float32")
    assert whole.flops == pytest.approx(real_flops(real, config), rel=1e-9)
    assert whole.saved == pytest.approx(there.saved, rel=0.01)
    assert outline(config, gpu=False).stages[-2].flops == pytest.approx(whole.flops, rel=0.2)  # captions vary


def test_every_kind_of_step_is_counted_as_often_as_it_comes():
    """A critic's penalty every fourth step; an adversary in the last half of the steps."""
    config = run("precision=float32", *SMALL, "steps=800", recipe="gan")
    real = GENERATORS["gan"](config, open_set(config.data), CPU)
    mean = real_flops(real, config, 0) / 4 + real_flops(real, config, 1) * 3 / 4
    assert outline(config, gpu=False).stages[0].flops == pytest.approx(mean, rel=0.02)

    tiny = ["network={width: 4, multipliers: [1, 2], latent_channels: 2, groups: 2}", "steps=40", "precision=float32"]
    adversary = "discriminator={start: 0.5, lead: 0.0, width: 4}"
    config = run("data={set: digit-scenes}", *tiny, adversary, recipe="autoencoder")
    real = AutoencoderStage(config, open_set(config.data), CPU)
    mean = (real_flops(real, config, 0) + real_flops(real, config, 39)) / 2
    assert outline(config, gpu=False).stages[0].flops == pytest.approx(mean, rel=0.02)


def test_a_billion_numbers_take_no_memory():
    machine.forget_peak(CPU)
    before = machine.peak(CPU)
    told = outline(run("network.kind=video", "network.preset=video-2B/2"))
    assert told.stages[0].parameters > 1e9  # without the stream for captions, which is as much again
    assert told.stages[0].states == 20 * told.stages[0].parameters
    assert told.stages[0].disk > 4 * 4 * told.stages[0].parameters
    assert told.stages[0].fixed > 1.9 * told.stages[0].parameters  # as they are computed with, in bfloat16
    assert machine.peak(CPU) - before < 2e8


def test_on_a_gpu_attention_is_fused_and_norms_are_in_float32():
    here, there = (outline(run("precision=bfloat16", *SMALL), gpu=gpu).stages[0] for gpu in (False, True))
    fused = outline(run("precision=float32", *SMALL), gpu=False).stages[0]
    assert there.flops == fused.flops > here.flops
    unet = ["precision=bfloat16", *UNET]
    here, there = (outline(run(*unet), gpu=gpu).stages[0] for gpu in (False, True))
    assert there.per_sample > 1.3 * here.per_sample
    assert there.flops > here.flops  # what fused attention computes again in the backward pass


def test_what_was_replaced_is_put_back():
    before = stages.build, Key.normal, nn.GroupNorm.forward
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    outline(run(*SMALL))
    assert torch.rand(1) == first  # nor has it drawn of anything
    assert (stages.build, Key.normal, nn.GroupNorm.forward) == before
    assert stages.build is build


def test_what_nobody_looked_at_is_assumed_and_said():
    told = seen(resolve("text", settings=["data.size=96", "network.classes=0"]))
    assert told.shape == (3, 96, 96)
    assert told.train is None
    assert [each.length for each in told.reads] == [71]  # 64 tokens at most, as they are padded
    assert "no data were looked at" in told.assumed[0]
    assert seen(run("data.set=folder", "data.size=16", "network.classes=7", "data.colour=grey")).shape == (1, 16, 16)
    with pytest.raises(InputError, match=r"no pictures to look at, and no data\.size"):
        seen(run("data.set=folder"))
    found = outline(resolve("latent", settings=["batch=8"]))
    assert [stage.name for stage in found.stages] == ["autoencoder", "flow"]
    assert most_parameters(resolve("latent")) == max(stage.parameters for stage in found.stages)


def test_a_line_over_two_sizes_tells_any_other():
    shaped = Shaped((1, 8, 8), tuple("0123456789"))
    with hollow(shaped, gpu=False):
        stage = shaped.stage(run("precision=float32", *SMALL, "batch=64"), None)
        two, three, many = (counted(stage, 0, n, "float32", backward=False) for n in (2, 3, 64))
    assert Line.through([(2, two.saved), (3, three.saved)]).at(64) == pytest.approx(many.saved, rel=1e-6)
    assert Line.through([(2, two.forward), (3, three.forward)]).at(64) == pytest.approx(many.forward, rel=1e-9)

"""Networks of others: each convention against the library that it comes from, or against an exact oracle."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from torch import nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.flow.flow import Flow
from rectiflow.flow.foreign import Convention, Foreign, from_diffusers
from rectiflow.flow.schedule import Trig, VPLinear
from rectiflow.flow.tabulated import Tabulated
from rectiflow.sampling.sample import sample, trajectory
from rectiflow.sampling.solvers import solver

NORMALS = Key(0, "z").normal(torch.arange(2), (3, 8, 8))
ORACLE = GaussianMixtureFlow(torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), 0.3)


def unet(classes=None):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=classes,
    ).eval()


def ddim(network, scheduler, steps=10, **arguments):
    """Diffusers' own loop."""
    scheduler.set_timesteps(steps)
    x = NORMALS
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t, **arguments).sample, t, x).prev_sample
    return x, [(int(t) + 1) / 1000 for t in scheduler.timesteps] + [0.0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True])
def test_a_diffusers_model_is_sampled_as_by_diffusers(prediction, zero):
    """Whatever it predicts, on the same times; DDIM is the chain's step without its noise."""
    if zero and prediction == "epsilon":
        pytest.skip("noise alone says nothing of the data where there is nothing else")
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=zero
    )
    network = unet()
    expected, times = ddim(network, scheduler)
    flow = from_diffusers(network, scheduler)
    with torch.no_grad():
        *_, last = trajectory(flow, NORMALS, torch.tensor(times, dtype=torch.float64), solver("ddpm:eta=0"))
    assert torch.allclose(last.x_t, expected, atol=2e-4, rtol=1e-4)


def test_classes_and_their_null():
    network, scheduler = unet(classes=4), DDIMScheduler()
    flow = from_diffusers(network, scheduler, null=3)
    x, t = NORMALS, torch.tensor(0.5)
    with torch.no_grad():
        for labels, theirs in ((None, [3, 3]), (Condition(torch.tensor([1, -1])), [1, 3])):
            expected = network(x, torch.tensor(499.0), class_labels=torch.tensor(theirs)).sample
            assert torch.allclose(flow(x, t, labels).noise, expected, atol=1e-6)
        with pytest.raises(InputError, match="no null condition"):
            from_diffusers(network, scheduler)(x, t, Condition(torch.tensor([1, -1])))


def test_a_flow_of_diffusers_keeps_its_shift():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    network = unet()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, 9)[:-1].tolist())
    x = NORMALS
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        flow = from_diffusers(network, scheduler)
        assert flow.shift == 3.0
        assert torch.allclose(sample(flow, NORMALS, solver("euler"), 8), x, atol=1e-4)


def test_another_scheduler_is_refused_with_the_way_by_hand():
    with pytest.raises(InputError, match=r"EDMEulerScheduler .* by hand: Flow"):
        from_diffusers(unet(), EDMEulerScheduler())


class Theirs(nn.Module):
    """The exact velocity of ORACLE, spoken in another convention."""

    def __init__(self, convention, dialect=lambda value, x: value):
        super().__init__()
        self.convention, self.dialect = convention, dialect

    def forward(self, x, time, labels=None):
        c = self.convention
        t = (time.double() - c.time_offset) / c.time_scale
        t = 1 - t if c.reverse else t
        t = t / (c.shift - (c.shift - 1) * t)
        if labels is not None:
            labels = Condition(torch.where(labels == c.null, -1, labels))
        return self.dialect(c.sign * ORACLE.estimate(x, t, labels).velocity, x)


@pytest.mark.parametrize(
    "convention",
    [
        Convention(),
        Convention(reverse=True, sign=-1.0),
        Convention(time_scale=1000.0),
        Convention(time_scale=1000.0, time_offset=-1.0, reverse=True),
        Convention(shift=3.0, null=2),
    ],
)
def test_every_convention_gives_the_same_flow(convention):
    flow = Flow(Foreign(Theirs(convention), convention))
    x = Key(0, "x").normal(torch.arange(5), (2,)).double()
    labels = None if convention.null is None else Condition(torch.tensor([0, 1, -1, 0, -1]))
    for t in (0.1, 0.5, 0.93):
        found = flow(x, torch.tensor(t), labels).velocity
        assert torch.allclose(found, ORACLE.estimate(x, torch.tensor(t), labels).velocity, atol=1e-5)
    assert (
        not torch.allclose(
            Flow(Theirs(convention))(x, torch.tensor(0.3)).velocity, ORACLE.estimate(x, torch.tensor(0.3)).velocity
        )
        or convention == Convention()
    )


@pytest.mark.parametrize(
    "dialect",
    [
        lambda value, x: (value, "more"),
        lambda value, x: type("Output", (), {"sample": value}),
        lambda value, x: torch.cat([value, x], dim=1),
    ],
    ids=["tuple", "sample", "variance"],
)
def test_outputs_of_other_forms(dialect):
    x = Key(0, "x").normal(torch.arange(5), (2,)).double()
    found = Flow(Foreign(Theirs(Convention(), dialect)))(x, torch.tensor(0.4)).velocity
    assert torch.allclose(found, ORACLE.estimate(x, torch.tensor(0.4)).velocity, atol=1e-6)


def test_an_output_of_another_shape_is_named():
    with pytest.raises(InputError, match=r"gave \(5, 1\) for x_t of \(5, 2\)"):
        Flow(Foreign(Theirs(Convention(), lambda value, x: value[:, :1])))(torch.zeros(5, 2), torch.tensor(0.4))


def test_time_keeps_its_digits_in_low_precision():
    """In bfloat16 999 and 996 are one number."""
    seen = []

    class Listens(nn.Module):
        def forward(self, x, time):
            seen.append(time)
            return x

    Flow(Foreign(Listens(), Convention(time_scale=1000.0)))(torch.zeros(1, 2).bfloat16(), torch.tensor(0.997))
    assert seen[0].dtype == torch.float32
    assert float(seen[0]) == pytest.approx(997)


def betas(count=1000):
    return torch.linspace(0.1 / count, 20 / count, count, dtype=torch.float64)


def test_a_table_of_ddpm_is_the_continuous_path():
    path, smooth = Tabulated((1 - betas()).cumprod(0)), VPLinear()
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    assert torch.allclose(path.log_snr(t), smooth.log_snr(t), atol=0.07)  # Σβ² of the steps
    assert torch.allclose(torch.stack(path.at(t)), torch.stack(smooth.at(t)), atol=0.02)


def test_a_table_passes_through_its_values_and_its_derivative_is_one():
    squared = (1 - betas()).cumprod(0)
    path = Tabulated(squared)
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(path.at(steps).alpha ** 2, squared)
    t, h = torch.linspace(0.01, 0.99, 25, dtype=torch.float64), 1e-6
    low, high, at = path.at(t - h), path.at(t + h), path.at(t)
    assert torch.allclose((high.alpha - low.alpha) / (2 * h), at.alpha_dot, atol=1e-5)
    assert torch.allclose((high.beta - low.beta) / (2 * h), at.beta_dot, atol=1e-5)
    assert torch.allclose(path.time_of(path.log_snr(t)), t, atol=1e-12)
    assert [float(v) for v in path.at(torch.zeros(()))[:2]] == [1.0, 0.0]


def test_a_table_of_the_cosine_is_the_trigonometric_path():
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    path = Tabulated(torch.cos(math.pi / 2 * t) ** 2)
    between = torch.linspace(0.005, 0.995, 34, dtype=torch.float64)
    for mine, exact in zip(path.at(between), Trig().at(between), strict=True):
        assert torch.allclose(mine, exact, atol=1e-6)


@pytest.mark.parametrize("table", [[0.5], [0.5, 0.6], [1.0, 0.5], [0.5, -0.1]])
def test_a_table_that_cannot_be(table):
    with pytest.raises(InputError, match="fall"):
        Tabulated(torch.tensor(table))

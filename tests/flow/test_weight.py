"""w(λ) = π·c·W·β/α: the published closed forms, and that a density only says where the samples are spent."""

import math

import pytest
import torch
from torch import nn

from rectiflow.flow.config import FlowConfig, TimesConfig, WeightConfig
from rectiflow.flow.exact import GaussianFlow
from rectiflow.flow.flow import Flow, expand
from rectiflow.flow.loss import flow_matching_loss
from rectiflow.flow.prediction import Prediction, conversion
from rectiflow.flow.schedule import VE, Rectified, Trig, VPLinear
from rectiflow.flow.times import LogitNormal, Mode, Shifted, Uniform, time_density
from rectiflow.flow.weight import LossWeight, log_snr_weight, weight_at_log_snrs
from tests.flow.oracles import PATHS, noise

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
DENSITIES = [Uniform(), LogitNormal(0.0, 1.0), LogitNormal(0.4, 1.3), Mode(0.5), Shifted(Uniform(), 2.0)]
BY_LOG_SNR = [
    WeightConfig(kind="sigmoid", bias=-1.0),
    WeightConfig(kind="min-snr"),
    WeightConfig(kind="edm"),
]


def amounts_to(path, density, kind="velocity"):
    """λ and w(λ) over the times T."""
    weight = LossWeight(WeightConfig(kind=kind), path, density)
    return path.log_snr(T), log_snr_weight(path, density, weight, T)


def test_velocity_loss_on_rectified_and_trig():
    log_snr, w = amounts_to(Rectified(), Uniform())
    assert torch.allclose(w, torch.exp(-log_snr / 2))
    log_snr, w = amounts_to(Trig(), Uniform())
    assert torch.allclose(w, math.pi / 2 * torch.exp(-log_snr / 2))


def test_noise_loss_on_trig():
    log_snr, w = amounts_to(Trig(), Uniform(), "noise")
    assert torch.allclose(w, 1 / torch.cosh(log_snr / 2) / math.pi)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.4)])
def test_velocity_loss_with_logit_normal_times(mean, std):
    log_snr, w = amounts_to(Rectified(), LogitNormal(mean, std))
    normal = torch.distributions.Normal(-2 * mean, 2 * std).log_prob(log_snr).exp()
    assert torch.allclose(w, 2 * normal * (1 + torch.exp(-log_snr / 2)) ** 2)


def test_elbo_and_sigmoid_as_velocity_losses():
    elbo = LossWeight(WeightConfig(kind="elbo"), Rectified(), Uniform())
    assert torch.allclose(elbo(T), (1 - T) / T)
    sigmoid = LossWeight(WeightConfig(kind="sigmoid", bias=-2.0), Rectified(), Uniform())
    assert torch.allclose(sigmoid(T), torch.sigmoid(-2 - Rectified().log_snr(T)) * (1 - T) / T)


def test_min_snr_is_the_clipped_noise_loss():
    """On trig, noise loss times min(1, γ/SNR) (Hang et al. 2023), up to a factor."""
    weight = LossWeight(WeightConfig(kind="min-snr", gamma=5.0), Trig(), Uniform())
    noise_loss = LossWeight(WeightConfig(kind="noise"), Trig(), Uniform())
    ratio = weight(T) / (noise_loss(T) * (5 * torch.exp(-Trig().log_snr(T))).clamp(max=1))
    assert torch.allclose(ratio, ratio[:1].expand(99))


def test_edm_is_the_loss_of_edm():
    """E_{ln σ ~ N(m, s²)} (σ²+σ_d²)/(σσ_d)²·‖x − x̂‖², as a density of t and a data loss on its own path."""
    path, sigma_data, mean, std = VE(), 0.7, -1.2, 1.2
    sigma = path.at(T).beta
    normal = torch.distributions.Normal(mean, std).log_prob(sigma.log()).exp()
    theirs = normal * math.log(80 / 0.002) * (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    data = LossWeight(WeightConfig(kind="data"), path, Uniform())
    ours = LossWeight(WeightConfig(kind="edm"), path, Uniform(), sigma_data)
    assert torch.allclose(ours(T), theirs * data(T), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("config", [WeightConfig(kind="elbo"), *BY_LOG_SNR], ids=lambda c: c.kind)
def test_kinds_of_the_log_snr_have_it_on_every_path(config, name):
    path, t = PATHS[name], T[30:-5]
    for density in DENSITIES:
        weight = LossWeight(config, path, density)
        assert torch.allclose(log_snr_weight(path, density, weight, t), weight.of_log_snr(path.log_snr(t)))


def wrong_denoiser(path):
    """Data N(0, 0.6²) in one dimension, a model that believes in N(0, 0.9²), x and z of exact second moments."""
    x = 0.6 * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    z = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    return GaussianFlow(torch.zeros(1), 0.9, path), x, z


def expected_loss(path, density, config, nodes=20_000):
    """E c(t)‖v − v̂‖² by the midpoint rule over the quantiles of t."""
    flow, x, z = wrong_denoiser(path)
    t = density.quantile((torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes).clamp(path.t_min, path.t_max)
    total, at, weight = torch.zeros(nodes, dtype=torch.float64), path.at(t), LossWeight(config, path, density)
    for i in range(4):
        pair_x, pair_z = x[i].expand(nodes, 1), z[i].expand(nodes, 1)
        x_t = expand(at.alpha, x) * pair_x + expand(at.beta, x) * pair_z
        target = expand(at.alpha_dot, x) * pair_x + expand(at.beta_dot, x) * pair_z
        total += (flow.estimate(x_t, t).velocity - target).square().mean(1) / 4
    return float((weight(t) * total).mean())


def integral(config):
    """½∫ w(λ) E‖z − ẑ‖² dλ, for the same model at α² + β² = 1."""
    log_snr = torch.linspace(-40, 40, 80_001, dtype=torch.float64)
    alpha, beta = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    gain = beta / (alpha**2 * 0.9**2 + beta**2)  # ẑ = gain·x_t
    error = (1 - gain * beta) ** 2 + (gain * alpha * 0.6) ** 2
    w = LossWeight(config, Rectified(), Uniform()).of_log_snr(log_snr)
    return float(torch.trapezoid(w * error, log_snr)) / 2


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("config", BY_LOG_SNR, ids=lambda c: c.kind)
def test_densities_agree_in_expectation(config, density):
    assert expected_loss(Rectified(), density, config) == pytest.approx(integral(config), rel=1e-2)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("config", BY_LOG_SNR, ids=lambda c: c.kind)
def test_paths_agree_in_expectation(config, name):
    assert expected_loss(PATHS[name], Uniform(), config) == pytest.approx(integral(config), rel=5e-3)


class Constant(nn.Module):
    def forward(self, x_t, t, condition):
        return torch.full_like(x_t, 0.3)


@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("kind", ["noise", "data"])
def test_losses_of_noise_and_data(kind, prediction):
    """With these weights the loss is the plain error of that quantity, whatever is predicted."""
    flow, x, z = Flow(Constant(), prediction=prediction), noise(5, 8), noise(5, 8, seed=1)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    at = flow.schedule.at(t)
    x_t = expand(at.alpha, x) * x + expand(at.beta, x) * z
    estimate, (a, b) = flow(x_t, t), Prediction(kind).row(at)
    expected = (estimate.get(Prediction(kind)) - expand(a, x) * x - expand(b, x) * z).square().mean(1)
    weight = LossWeight(WeightConfig(kind=kind), flow.schedule, Uniform())
    assert torch.allclose(flow_matching_loss(flow, x, t, z, weight=weight), expected, rtol=1e-9)


def test_loss_of_the_predicted_quantity_is_plain_at_every_time():
    """c·k² = 1 even where k is held, near the ends."""
    x, z, t = noise(4, 8), noise(4, 8, seed=1), torch.tensor([0.002, 0.01, 0.99, 0.998], dtype=torch.float64)
    weight = LossWeight(WeightConfig(kind="data"), Rectified(), Uniform())
    loss = flow_matching_loss(Flow(Constant(), prediction="data"), x, t, z, weight=weight)
    assert torch.allclose(loss, (x - 0.3).square().mean(1), rtol=1e-12)


def test_default_weight_changes_no_bit():
    x, z, t = noise(6, 8), noise(6, 8, seed=1), torch.linspace(0, 1, 6, dtype=torch.float64)
    for prediction in Prediction:
        flow = Flow(Constant(), prediction=prediction)
        weight = LossWeight(WeightConfig(), flow.schedule, Uniform())
        assert torch.equal(flow_matching_loss(flow, x, t, z, weight=weight), flow_matching_loss(flow, x, t, z))


@pytest.mark.parametrize("kind", ["elbo", "sigmoid", "min-snr", "edm"])
@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_weight_is_finite_on_the_whole_range(kind, prediction):
    for path in PATHS.values():
        for density in DENSITIES:
            t = density.quantile(torch.tensor([1e-9, 0.5, 1 - 1e-9], dtype=torch.float64))
            held = t.clamp(*prediction.loss_t_range(path))
            c = LossWeight(WeightConfig(kind=kind), path, density)(held)
            k = conversion(prediction, Prediction.VELOCITY, path.at(held)).from_value
            assert torch.isfinite(c * k**2).all()
            assert (c >= 0).all()


def test_what_a_run_is_told():
    told = weight_at_log_snrs(FlowConfig(), TimesConfig(), WeightConfig())
    assert told == pytest.approx({f"{at}": math.exp(-at / 2) for at in (-6, -3, 0, 3, 6)}, abs=1e-6)
    shifted = weight_at_log_snrs(FlowConfig(shift=3.0), TimesConfig(density="logit-normal"), WeightConfig(kind="elbo"))
    assert shifted == pytest.approx(dict.fromkeys(("-6", "-3", "0", "3", "6"), 1.0))
    assert set(weight_at_log_snrs(FlowConfig(schedule="ve", sigma_max=5.0), TimesConfig(), WeightConfig())) == {
        "-3", "0", "3", "6"
    }  # fmt: skip


def test_discrete_times_train_the_discrete_bound():
    """The mean over all steps of the weighted loss, times d, is the chain's diffusion term and N(x; x̂, (β/α)²I)."""
    path, steps = VPLinear(), 40
    density = time_density(TimesConfig(density="discrete", count=steps))
    weight = LossWeight(WeightConfig(kind="elbo"), path, density)
    flow = Flow(Affine(), path, Prediction.NOISE)
    x, z = noise(5, 3), noise(5, 3, seed=1)
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    times = density.quantile(u)
    assert torch.allclose(times, torch.arange(1, steps + 1).double() / steps)
    losses = torch.stack([flow_matching_loss(flow, x, t.expand(5), z, weight=weight) for t in times])
    errors = torch.stack([noise_error(flow, x, z, t.expand(5)) for t in times])
    log_snr = path.log_snr(times)
    terms = 0.5 * torch.expm1(-log_snr.diff())[:, None] * errors[1:]
    assert torch.allclose(3 * losses.mean(0), terms.sum(0) + 0.5 * errors[0], rtol=1e-5)


def test_the_discrete_bound_becomes_the_continuous_one():
    path, config, t = VPLinear(), WeightConfig(kind="elbo"), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    continuous = LossWeight(config, path, time_density(TimesConfig()))(t)
    for count, most in ((1000, 0.02), (100_000, 2e-4)):
        discrete = LossWeight(config, path, time_density(TimesConfig(density="discrete", count=count)))(t)
        assert (discrete / continuous - 1).abs().max() < most


def noise_error(flow, x, z, t):
    """‖z − ẑ(x_t, t)‖² of each sample."""
    at = flow.schedule.at(t)
    x_t = expand(at.alpha, x) * x + expand(at.beta, x) * z
    return (z - flow.estimate(x_t, t).noise).square().sum(1).detach()


class Affine(nn.Module):
    """A prediction that is off everywhere."""

    def forward(self, x_t, t, condition):
        return 0.7 * x_t + 0.1 * t.reshape(-1, 1)

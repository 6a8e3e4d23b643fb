"""Each guidance reduces to the classifier-free one, composes with every solver, and looks at one sample alone."""

import math

import pytest
import torch

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.flow.flow import AbstractFlow
from rectiflow.flow.schedule import Rectified, Trig
from rectiflow.sampling.grids import time_grid
from rectiflow.sampling.guidance import ClassifierFree, guided
from rectiflow.sampling.guidances import APG, Autoguidance, CFGPlusPlus, CFGZeroStar, Rescaled
from rectiflow.sampling.sample import sample, trajectory
from rectiflow.sampling.solvers import SOLVERS, solver
from rectiflow.sampling.stochastic import Noise
from tests.flow.oracles import noise, ring

T, S = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 0.4))
LABELS = Condition(torch.zeros(6, dtype=torch.int64))
NEUTRAL = {
    "apg": lambda w: APG(w, momentum=0.0, radius=math.inf, parallel=1.0),
    "rescale": lambda w: Rescaled(w, mix=0.0),
}
KINDS = {
    "auto": lambda w, interval=(0.0, 1.0): Autoguidance(blurred(), w, interval),
    "apg": lambda w, interval=(0.0, 1.0): APG(w, interval, radius=1.0),
    "cfg-zero": CFGZeroStar,
    "cfg++": CFGPlusPlus,
    "rescale": Rescaled,
}


def blurred(schedule=None) -> GaussianMixtureFlow:
    """The ring with wider modes: a worse model of the same data."""
    exact = ring()
    return GaussianMixtureFlow(exact.means, 0.4, classes=[[0, 1]], schedule=schedule)


class Counting(AbstractFlow):
    """Counts the rows that it is asked for."""

    def __init__(self, inner=None):
        self.inner, self.rows = inner or ring(), 0
        self.schedule, self.source = self.inner.schedule, self.inner.source

    def estimate(self, x_t, t, condition=None, s=None):
        self.rows += len(x_t)
        return self.inner.estimate(x_t, t, condition, s)


@pytest.mark.parametrize("kind", NEUTRAL)
@pytest.mark.parametrize("t", [1.0, 0.5, 0.0])
def test_neutral_settings_are_plain_guidance(kind, t):
    """At t = 0 too, where a solver of two stages ends, and where the data are x_t whatever is predicted."""
    x, time = noise(6, 2), torch.tensor(t, dtype=torch.float64)
    guidance = NEUTRAL[kind](1.5)
    found = guided(ring(), guidance, LABELS, x, time, S, guidance.init(x.shape)).velocity
    expected = guided(ring(), ClassifierFree(1.5), LABELS, x, time, S, None).velocity
    assert torch.allclose(found, expected, atol=1e-9)


def test_zero_star_is_plain_where_the_projection_is_one_and_still_at_first():
    x = noise(6, 2)
    given, null = (ring().estimate(x, T, labels) for labels in (LABELS, LABELS.null()))
    guidance = CFGZeroStar(2.0, still=0.3)
    share = (given.velocity * null.velocity).sum(1) / null.velocity.square().sum(1)
    found = guided(ring(), guidance, LABELS, x, T, S, None).velocity
    assert torch.allclose(found, 3 * given.velocity - 2 * share[:, None] * null.velocity, atol=1e-12)
    early = torch.tensor(0.8, dtype=torch.float64)
    assert torch.equal(guided(ring(), guidance, LABELS, x, early, S, None).velocity, torch.zeros(6, 2).double())
    same = Autoguidance(ring(), 2.0)  # a* = 1 when the two are equal: both are then v_y
    assert torch.allclose(guided(ring(), same, LABELS, x, T, S, None).velocity, given.velocity, atol=1e-12)


@pytest.mark.parametrize("path", [Rectified(), Trig()])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.5, 0.4), (0.1, 0.0)])
def test_plus_plus_is_a_ddim_step_with_the_noise_of_the_null_branch(path, t, s):
    flow, x = ring(path), noise(6, 2)
    t, s, scale = torch.tensor(t).double(), torch.tensor(s).double(), 0.6
    guidance = CFGPlusPlus(scale)
    estimate = guided(flow, guidance, LABELS, x, t, s, guidance.begin(t, s, None))
    given, null = (flow.estimate(x, t, labels) for labels in (LABELS, LABELS.null()))
    there = path.at(s)
    expected = there.alpha * (null.data + scale * (given.data - null.data)) + there.beta * null.noise
    ddim = there.alpha * estimate.data + there.beta * estimate.noise
    assert torch.allclose(ddim, expected, atol=1e-9)


def test_autoguidance_by_the_model_itself_is_no_guidance_and_needs_no_condition():
    x = noise(6, 2)
    plain = sample(ring(), x, solver("heun"), 10)
    assert torch.allclose(sample(ring(), x, solver("heun"), 10, None, Autoguidance(ring(), 3.0)), plain, atol=1e-9)
    guided_away = sample(ring(), x, solver("heun"), 10, None, Autoguidance(blurred(), 1.0))
    assert not torch.allclose(guided_away, plain, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_asks_for_nothing_more(kind):
    flow, x = Counting(), noise(6, 2)
    found = sample(flow, x, solver("euler"), 4, LABELS, KINDS[kind](0.0))
    assert flow.rows == 4 * 6
    assert torch.equal(found, sample(ring(), x, solver("euler"), 4, LABELS))


@pytest.mark.parametrize("kind", KINDS)
def test_outside_the_interval_one_evaluation(kind):
    flow, guidance = Counting(), KINDS[kind](1.0, (0.0, 0.3))
    sample(flow, noise(6, 2), solver("euler"), 4, LABELS, guidance)  # at t = 1, 0.75, 0.5 and 0.25
    assert flow.rows == (4 if kind == "auto" else 5) * 6


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_guidance_works_with_every_solver_and_looks_at_one_sample_alone(kind, name):
    """A sample's result is the same in any batch, whatever the weights of the others."""
    # The deviation of two numbers has a kink, at which a small tolerance is not reached.
    name = "rk45:tolerance=1e-2" if (name, kind) == ("rk45", "rescale") else name
    x, weights = noise(6, 2), torch.tensor([0.0, 0.5, 1.0, 0.3, 0.0, 0.8])
    index = torch.arange(6)
    whole = sample(ring(), x, solver(name, Noise(0, index)), 6, LABELS, KINDS[kind](weights))
    assert bool(torch.isfinite(whole).all())
    part = slice(2, 4)
    alone = sample(
        ring(), x[part], solver(name, Noise(0, index[part])), 6, LABELS.select(part), KINDS[kind](weights[part])
    )
    assert torch.allclose(whole[part], alone, atol=1e-7)
    assert not torch.allclose(
        alone, sample(ring(), x[part], solver(name, Noise(0, index[part])), 6, LABELS.select(part))
    )


def test_momentum_is_of_accepted_steps():
    """D of the second step holds −½ of the first's, not of the evaluations in between (Heun has two a step)."""
    guidance, seen = APG(1.0, momentum=-0.5), []
    original = guidance.commit
    guidance.commit = lambda estimate, state: seen.append(estimate.memory) or original(estimate, state)
    x = noise(6, 2)
    states = list(trajectory(ring(), x, time_grid(2), solver("heun"), LABELS, guidance))
    given, null = (ring().estimate(states[1].x_t, T, labels) for labels in (LABELS, LABELS.null()))
    assert len(seen) == 2
    assert torch.allclose(seen[1], given.data - null.data - 0.5 * seen[0], atol=1e-9)


def test_projection_and_limit():
    """With η = 0 the data move at right angles to x̂_y; with r no farther than w·r."""
    x = noise(6, 2)
    given = ring().estimate(x, T, LABELS)
    for guidance, limit in ((APG(3.0, momentum=0.0), math.inf), (APG(3.0, momentum=0.0, radius=0.01), 0.03)):
        moved = guided(ring(), guidance, LABELS, x, T, S, guidance.init(x.shape)).data - given.data
        assert float((moved * given.data).sum(1).abs().max()) < 1e-9
        assert 0 < float(moved.norm(dim=1).max()) <= limit + 1e-9


def test_rescaling_gives_the_data_the_deviation_of_the_condition():
    x = Key(0, "x").normal(torch.arange(6), (30,)).double()
    means = Key(0, "means").normal(torch.arange(4), (30,)).double()
    flow = GaussianMixtureFlow(means, 0.5, classes=[[0]])
    found = guided(flow, Rescaled(4.0, mix=1.0), LABELS, x, T, S, None).data.std(1)
    assert torch.allclose(found, flow.estimate(x, T, LABELS).data.std(1), rtol=1e-6)
    plain = guided(flow, ClassifierFree(4.0), LABELS, x, T, S, None).data.std(1)
    assert float((plain / found).median()) > 1.05


def test_with_exact_fields_guidance_leads_away_from_the_condition():
    """There is no error of a model to mend: the distance of the samples' mean to the class's grows with w."""
    z = noise(400, 2)
    labels = Condition(torch.zeros(400, dtype=torch.int64))
    centre = ring().means[:2].mean(0)
    distances = [
        float((sample(ring(), z, solver("ab2"), 50, labels, ClassifierFree(w)).mean(0) - centre).norm())
        for w in (0.0, 1.0, 3.0)
    ]
    assert distances[0] < 0.05 < distances[1] < distances[2]


def test_bad_settings_are_refused():
    for kind, words in (
        (lambda: APG(1.0, radius=0.0), "radius must be above 0"),
        (lambda: CFGZeroStar(1.0, still=1.0), "still share"),
        (lambda: Rescaled(1.0, mix=1.5), "mix lies in"),
        (lambda: Rescaled(-1.0), "finite and ≥ 0"),
    ):
        with pytest.raises(InputError, match=words):
            kind()

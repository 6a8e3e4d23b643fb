"""Models broken on purpose: an exact posterior that states another convention than it speaks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rectiflow.base.condition import Condition
from rectiflow.base.errors import InputError
from rectiflow.base.randomness import Key
from rectiflow.evaluation.doctor import Patient, diagnose
from rectiflow.flow.config import FlowConfig
from rectiflow.flow.exact import GaussianMixtureFlow
from rectiflow.flow.flow import Flow
from rectiflow.flow.schedule import schedule

SHAPE, CLASSES, PER_CLASS = (1, 4, 4), 3, 32
MEANS = 0.6 * Key(0, "means").normal(torch.arange(CLASSES), (16,))
LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
X = (MEANS[LABELS] + 0.2 * Key(0, "x").normal(torch.arange(len(LABELS)), (16,))).reshape(-1, *SHAPE)


class Speaks(nn.Module):
    """What a network trained on X under `config` gives, with its own time, sign, scale of the data and null."""

    def __init__(self, time=lambda t: t, sign=1.0, scale=1.0, offset=0.0, null=True, **config):
        super().__init__()
        self.config = FlowConfig(**config)
        self.oracle = GaussianMixtureFlow(scale * MEANS + offset, 0.2 * scale, schedule=schedule(self.config))
        self.time, self.sign, self.null = time, sign, null
        self.sizes = Flow(nn.Identity(), schedule(self.config), self.config.prediction)

    def forward(self, x_t, t, condition=None):
        t = self.time(t.double()).clamp(1e-4, 1 - 1e-4)
        flow = self.sizes
        size, out = torch.ones(len(t)).double(), torch.ones(len(t)).double()
        if flow.schedule.scaled:  # as a network behind `Flow` sees it
            at = flow.schedule.at(t)
            size, out = flow._size(at.alpha, at.beta), flow._size(*flow.prediction.row(at))
        x = x_t.flatten(1).double() * size[:, None]
        if condition is not None and not self.null:
            condition = Condition(torch.where(condition.labels < 0, 0, condition.labels))
        value = self.oracle.estimate(x, t, condition).get(flow.prediction) / out[:, None]
        return self.sign * value.float().reshape(x_t.shape)


def patient(network, x=X, labels=LABELS, **stated):
    config = FlowConfig(**stated)
    return Patient(Flow.build(network, config), x, None if labels is None else Condition(labels), config)


HEALTHY = [
    {},
    {"prediction": "data"},
    {"prediction": "noise", "schedule": "trig"},
    {"schedule": "vp-linear", "prediction": "noise"},
    {"schedule": "ve", "prediction": "data"},
]


@pytest.mark.parametrize("config", HEALTHY, ids=str)
def test_a_model_that_is_what_it_states(config):
    found = diagnose(patient(Speaks(**config), **config), null_trained=True)
    assert found.healthy
    assert found.findings == ()
    assert max(found.stated.values()) < 1.05
    assert found.null.startswith("usable")


BROKEN = [
    ({"time": lambda t: 1 - t}, {}, {"time direction": "reversed"}),
    ({"sign": -1.0}, {}, {"sign": "negative"}),
    ({"time": lambda t: 1 - t, "sign": -1.0}, {}, {"sign": "negative", "time direction": "reversed"}),
    ({"prediction": "noise"}, {}, {"prediction": "noise"}),
    ({"prediction": "data"}, {}, {"prediction": "data"}),
    ({}, {"prediction": "noise"}, {"prediction": "velocity"}),
    ({"schedule": "trig"}, {}, {"schedule": "trig"}),
    ({"schedule": "trig", "prediction": "noise"}, {}, {"schedule": "trig", "prediction": "noise"}),
    ({"schedule": "vp-linear", "prediction": "noise"}, {"schedule": "vp-linear"}, {"prediction": "noise"}),
    ({"schedule": "ve", "prediction": "data"}, {"schedule": "ve", "prediction": "noise"}, {"prediction": "data"}),
    ({"time": lambda t: t / 1000}, {}, {"time scale": "1000"}),
    ({"time": lambda t: t / (3 - 2 * t)}, {}, {"shift": "3"}),
    ({"scale": 0.18215}, {}, {"data scale": "0.182"}),
    ({"scale": 4.0, "sign": -1.0}, {}, {"data scale": "4", "sign": "negative"}),
    ({"scale": 0.5, "offset": 0.5}, {}, {"data scale": "0.5", "data offset": "0.5"}),
]


@pytest.mark.parametrize(("truth", "stated", "names"), BROKEN, ids=[f"broken{i}" for i in range(len(BROKEN))])
def test_what_is_broken_is_named_and_nothing_else(truth, stated, names):
    found = diagnose(patient(Speaks(**truth), **stated))
    told = {name: value for name, _, value in found.findings}
    if "data scale" in names:
        assert float(told["data scale"]) == pytest.approx(float(names["data scale"]), rel=0.1)
        names = names | {"data scale": told["data scale"]}
    assert told == names
    assert found.explained
    assert not found.healthy


@pytest.mark.parametrize(
    ("null", "stated", "healthy"), [(True, True, True), (False, True, False), (False, False, True)]
)
def test_the_null_condition(null, stated, healthy):
    """Without one, ∅ is taken for a class, as a network without dropout may."""
    found = diagnose(patient(Speaks(null=null)), null_trained=stated)
    assert found.healthy == healthy
    assert found.null.startswith("usable" if null else "of no use")


def test_an_untrained_model_is_explained_by_nothing():
    torch.manual_seed(0)

    class Untrained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(17, 16)

        def forward(self, x_t, t, condition=None):
            return self.layer(torch.cat([x_t.flatten(1), t[:, None]], 1)).reshape(x_t.shape)

    found = diagnose(patient(Untrained(), labels=None))
    assert not found.explained
    assert not found.healthy


def test_other_data_are_not_explained_either():
    found = diagnose(patient(Speaks(), x=3 + X.roll(5, -1).flip(-1) ** 2, labels=None))
    assert not found.explained


def test_refusals():
    with pytest.raises(InputError, match="at least 16"):
        diagnose(patient(Speaks(), x=X[:4], labels=LABELS[:4]))
    with pytest.raises(InputError, match="one-step"):
        diagnose(patient(Speaks(), one_step=True))
    with pytest.raises(InputError, match="a bridge starts from pictures"):
        diagnose(patient(Speaks(), source="pictures"))


def test_a_wrapper_is_read_relative_to_what_it_states():
    """A convention stated by `Foreign` and wrong is found as one stated by the flow."""
    from rectiflow.flow.foreign import Convention, Foreign

    true = patient(Speaks(time=lambda t: 1 - t, sign=-1.0), labels=None)
    healed = Flow(Foreign(true.flow.network, Convention(reverse=True, sign=-1.0)))
    assert diagnose(replace(true, flow=healed)).healthy
    half = Flow(Foreign(true.flow.network, Convention(reverse=True)))
    assert [name for name, _, _ in diagnose(replace(true, flow=half)).findings] == ["sign"]

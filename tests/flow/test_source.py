import torch

from rectiflow.base.randomness import Key
from rectiflow.flow.source import Gaussian


def test_log_density_against_torch():
    z = Gaussian().sample(Key(0, "z"), torch.arange(5), (3, 4))
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)
    assert z.shape == (5, 3, 4)
    assert torch.allclose(Gaussian().log_density(z), expected)

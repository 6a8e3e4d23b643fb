"""The adversarial terms against closed forms: linear discriminators, scaled losses, constant logits."""

import pytest
import torch

from rectiflow.autoencoders.adversarial import adaptive_weight, generator_hinge, gradient_penalty, hinge, lecam
from rectiflow.autoencoders.discriminator import Discriminator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 5)


def test_hinges_of_constant_logits():
    real, fake = constant(0.0, 1.0, 3.0, -2.0), constant(0.0, -1.0, -3.0, 1.0)
    assert hinge(real, fake).tolist() == [1.0, 0.0, 0.0, 2.5]
    assert generator_hinge(fake).tolist() == [0.0, 1.0, 3.0, -1.0]


def test_the_hinge_is_a_mean_over_the_map_and_stops_pulling_past_its_margin():
    real = torch.tensor([[[[0.0, 2.0], [5.0, -1.0]]]], requires_grad=True)
    fake = torch.zeros(1, 1, 2, 2, requires_grad=True)
    hinge(real, fake).sum().backward()
    assert hinge(real, fake).detach().tolist() == pytest.approx([(3 / 4 + 1) / 2])
    assert real.grad.flatten().tolist() == [-1 / 8, 0.0, 0.0, -1 / 8]
    assert fake.grad.flatten().tolist() == [1 / 8] * 4


def test_the_optimal_discriminator_of_two_overlapping_laws_is_the_sign_of_their_difference():
    """Over the values of D at one point, p relu(1−D) + q relu(1+D) is least at sign(p − q), at 2 min(p, q)."""
    level = torch.linspace(-3, 3, 601)
    for p, q in ((0.7, 0.3), (0.2, 0.8)):
        loss = p * hinge(level, torch.full_like(level, -1)) + q * hinge(torch.ones_like(level), level)
        assert float(level[loss.argmin()]) == pytest.approx(1.0 if p > q else -1.0, abs=1e-5)
        assert 2 * float(loss.min()) == pytest.approx(2 * min(p, q), abs=1e-5)


def test_the_adaptive_weight_of_scaled_losses_is_their_ratio():
    """L = c·⟨g, w⟩ has ∇ = c·g; the weight is c₁‖g₁‖/(c₂‖g₂‖ + 1e−4)."""
    weights = normal(4, 3, 3, 3).requires_grad_()
    first, second = normal(4, 3, 3, 3, seed=1), normal(4, 3, 3, 3, seed=2)
    norms = float(first.norm()), float(second.norm())
    for scale in (0.01, 1.0, 50.0):
        found = adaptive_weight((first * weights).sum(), scale * (second * weights).sum(), [weights])
        assert float(found) == pytest.approx(norms[0] / (scale * norms[1] + 1e-4), rel=1e-5)
    balanced = float(found) * torch.autograd.grad(scale * (second * weights).sum(), weights)[0].norm()
    assert float(balanced) == pytest.approx(norms[0], rel=1e-4)


def test_the_adaptive_weight_is_clipped_detached_and_leaves_the_graph_whole():
    weights = normal(5).requires_grad_()
    reconstruction, adversarial = weights.square().sum(), 1e-9 * weights.sum()
    found = adaptive_weight(reconstruction, adversarial, [weights], limit=7.0)
    assert float(found) == 7.0
    assert float(adaptive_weight(1e3 * reconstruction, adversarial, [weights])) == 1e4
    assert not found.requires_grad
    assert weights.grad is None
    (reconstruction + found * adversarial).backward()
    assert weights.grad == pytest.approx(2 * weights.detach() + 7e-9)


def test_the_penalty_of_a_linear_discriminator_is_its_squared_norm():
    """D(x) = ⟨w, x⟩ + b: ‖∇ₓD‖² = ‖w‖² for every x, and its gradient by w is 2w."""
    w = normal(3, 4, 4).requires_grad_()
    x = normal(5, 3, 4, 4, seed=1).requires_grad_()
    penalty = gradient_penalty((x * w).sum((1, 2, 3)) + 3, x)
    assert penalty.tolist() == pytest.approx([float(w.detach().square().sum())] * 5, rel=1e-5)
    penalty.mean().backward()
    assert w.grad == pytest.approx(2 * w.detach(), rel=1e-5)


def test_the_penalty_of_a_quadratic_discriminator_belongs_to_each_sample():
    """D(x) = ½‖x‖² on a map of two equal logits: ∇ Σ = 2x."""
    x = normal(4, 1, 3, 3).requires_grad_()
    logits = (x.square().flatten(1).sum(1) / 2).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 2)
    assert gradient_penalty(logits, x).detach() == pytest.approx(4 * x.detach().square().flatten(1).sum(1), rel=1e-5)


def test_the_penalty_trains_the_real_discriminator():
    """Its gradient by a weight agrees with a finite difference: norms are differentiated twice."""
    torch.manual_seed(0)
    network = Discriminator(1, width=4, layers=1).double()
    x = normal(2, 1, 12, 12).double().requires_grad_()

    def penalty() -> torch.Tensor:
        return gradient_penalty(network(x), x).sum()

    weight = network.blocks[0].conv.weight
    (slope,) = torch.autograd.grad(penalty(), weight)
    with torch.no_grad():
        weight[0, 1, 2, 3] += 1e-5
    above = float(penalty().detach())
    with torch.no_grad():
        weight[0, 1, 2, 3] -= 2e-5
    below = float(penalty().detach())
    assert float(slope[0, 1, 2, 3]) == pytest.approx((above - below) / 2e-5, rel=1e-5)
    assert float(slope.abs().max()) > 0


def test_lecam_of_constant_logits_crosses_the_means():
    """(D(x) − m_fake)² + (D(x̂) − m_real)²: it is 0 where each side sits at the other's mean, not at its own."""
    real, fake = constant(0.5, -0.25, 2.0), constant(-1.0, 0.75, 0.0)
    found = lecam(real, fake, 0.75, torch.tensor(-0.25))
    assert found.tolist() == [0.75**2 + 1.75**2, 0.0, 2.25**2 + 0.75**2]
    varied = normal(2, 1, 8, 8)
    expected = (varied**2).mean((1, 2, 3)) + ((varied - 1) ** 2).mean((1, 2, 3))
    assert lecam(varied, varied, 1.0, 0.0) == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_give_float32_losses():
    """1 + 2⁻¹⁰ is 1 in bfloat16: a loss kept in it would lose such steps."""
    logits = normal(3, 1, 4, 4).bfloat16()
    for loss in (hinge(logits, logits), generator_hinge(logits), lecam(logits, logits, 0.1, 0.2)):
        assert loss.dtype == torch.float32
    assert generator_hinge(logits) == pytest.approx(-logits.float().mean((1, 2, 3)), rel=1e-6)


def test_two_layers_that_make_the_pixels_are_balanced_together():
    """The norms are those of both gradients in one: of (3, 4) and (0, 10), 5 over 10."""
    first, second = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    found = adaptive_weight((3 * first + 4 * second).sum(), (10 * second + 0 * first).sum(), [first, second])
    assert float(found) == pytest.approx(0.5, rel=1e-4)

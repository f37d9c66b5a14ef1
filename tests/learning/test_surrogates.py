"""How the ratio enters the loss, by numbers worked by hand and against naive versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rllib_gpg.learning.surrogates import (
    Clip,
    ClippedWeight,
    SoftGate,
    Surrogate,
    Unclipped,
    reference_kl,
    resolve_surrogate,
    trajectory_ratio,
)
from rllib_gpg.learning.torch_learner import ratios
from rllib_gpg.learning.trajectories import TRAJECTORIES

# The cases of equation 2 with eps 0.2, so the clipped ratio is in [0.8, 1.2]:
#
#    ratio    A   ratio * A   clipped * A    min   d min / d ratio
#     1.5    +2        3.0           2.4    2.4    0: good enough already
#     1.1    +2        2.2           2.2    2.2    A
#     0.5    +2        1.0           1.6    1.0    A: it must be able to come back
#     1.5    -2       -3.0          -2.4   -3.0    A: it must be able to come back
#     0.9    -2       -1.8          -1.8   -1.8    A
#     0.5    -2       -1.0          -1.6   -1.6    0: bad enough already
#     1.0     0          0             0      0    0
CASES = [
    pytest.param(1.5, 2.0, 2.4, 0.0, id="good-above"),
    pytest.param(1.1, 2.0, 2.2, 2.0, id="good-inside"),
    pytest.param(0.5, 2.0, 1.0, 2.0, id="good-below"),
    pytest.param(1.5, -2.0, -3.0, -2.0, id="bad-above"),
    pytest.param(0.9, -2.0, -1.8, -2.0, id="bad-inside"),
    pytest.param(0.5, -2.0, -1.6, 0.0, id="bad-below"),
    pytest.param(1.0, 0.0, 0.0, 0.0, id="worth-nothing"),
]


@pytest.mark.parametrize(("ratio", "advantage", "surrogate", "gradient"), CASES)
def test_clipped_surrogate_and_its_gradient(
    ratio: float, advantage: float, surrogate: float, gradient: float
) -> None:
    ratios = torch.tensor([ratio], requires_grad=True)
    result = Clip(0.2)(ratios, torch.tensor([advantage]))
    result.sum().backward()
    assert result.item() == pytest.approx(surrogate)
    assert ratios.grad is not None
    # Where both terms of the minimum are equal, PyTorch halves the gradient between them; the sum
    # is that of either.
    assert ratios.grad.item() == pytest.approx(gradient)


def test_clipped_surrogate_takes_any_shape() -> None:
    """[B, T] for recurrent modules."""
    ratio = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    advantages = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    expected = torch.tensor([[2.4, 1.0], [-3.0, -1.6]])
    torch.testing.assert_close(Clip(0.2)(ratio, advantages), expected)


def test_the_first_surrogate_of_a_group_is_the_advantage_and_its_gradient() -> None:
    """At ratio 1 the gradient is that of the plain policy gradient, whatever the clip range."""
    ratio = torch.ones(3, requires_grad=True)
    advantages = torch.tensor([-1.5, 0.0, 2.0])
    surrogate = Clip(0.01)(ratio, advantages)
    surrogate.sum().backward()
    torch.testing.assert_close(surrogate.detach(), advantages)
    torch.testing.assert_close(ratio.grad, advantages)


def test_is_clipped_counts_ratios_outside_of_the_range_on_either_side() -> None:
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0])
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(Clip(0.2).is_clipped(ratio), expected)


def value_and_slope(surrogate: Surrogate, ratio: float, advantage: float) -> tuple[float, float]:
    ratios = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    value = surrogate(ratios, torch.tensor([advantage], dtype=torch.float64))
    (slope,) = torch.autograd.grad(value.sum(), ratios)
    return value.item(), slope.item()


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


RATIOS = (0.05, 0.5, 0.79, 0.9, 1.0, 1.1, 1.25, 1.3, 2.0, 5.0)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_surrogates_against_naive_versions(ratio: float, advantage: float) -> None:
    """Values, and slopes by differences of the value, or by the formula where it has none."""

    def higher(r: float) -> float:
        return min(r * advantage, min(max(r, 0.8), 1.28) * advantage)

    def dual(r: float) -> float:
        value = min(r * advantage, min(max(r, 0.8), 1.2) * advantage)
        return max(value, 3.0 * advantage) if advantage < 0 else value

    def gate(r: float) -> float:
        tau = 1.0 if advantage > 0 else 1.05
        return sigmoid(tau * (r - 1.0)) * 4.0 / tau * advantage

    for surrogate, naive in (
        (Clip(0.2, 0.28), higher),
        (Clip(0.2, dual=3.0), dual),
        (SoftGate(), gate),
        (Unclipped(), lambda r: r * advantage),
    ):
        value, slope = value_and_slope(surrogate, ratio, advantage)
        assert value == pytest.approx(naive(ratio), rel=1e-9)
        difference = (naive(ratio + 1e-6) - naive(ratio - 1e-6)) / 2e-6
        assert slope == pytest.approx(difference, rel=1e-5, abs=1e-8)
    # d (w A log r) / d r = w A / r, with w held.
    _, slope = value_and_slope(ClippedWeight(low=0.5, high=0.28), ratio, advantage)
    assert slope == pytest.approx(min(max(ratio, 0.5), 1.28) * advantage / ratio, rel=1e-9)


@pytest.mark.parametrize(
    "surrogate", [Clip(), Clip(0.2, 0.28, 3.0), SoftGate(2.0, 5.0), ClippedWeight(), Unclipped()]
)
@pytest.mark.parametrize("advantage", [1.5, 0.0, -2.5])
def test_at_ratio_1_all_have_the_plain_gradient(surrogate: Surrogate, advantage: float) -> None:
    assert value_and_slope(surrogate, 1.0, advantage)[1] == pytest.approx(advantage)


def test_clipped_steps_are_those_out_of_bounds() -> None:
    ratio = torch.tensor([0.7, 0.81, 1.0, 1.21, 1.27, 1.29])
    assert Clip(0.2, 0.28).is_clipped(ratio).tolist() == [1, 0, 0, 0, 0, 1]
    assert ClippedWeight(high=0.2).is_clipped(ratio).tolist() == [0, 0, 0, 1, 1, 1]
    assert SoftGate().is_clipped(ratio).tolist() == [0] * 6


def test_trajectory_ratios_are_geometric_means() -> None:
    """Values and gradients, with the steps of three trajectories shuffled.

    Where all steps of a trajectory weigh the same, as with an outcome (GSPO).
    """
    rng = np.random.default_rng(0)
    number = rng.permutation(np.repeat([0, 1, 2], [1, 4, 7]))
    log_ratio = torch.tensor(rng.normal(size=12), requires_grad=True)
    weights = torch.tensor(rng.normal(size=3))[number]
    ratio = trajectory_ratio(log_ratio, torch.tensor(number))
    naive = torch.stack(
        [torch.prod(torch.exp(log_ratio[number == n])) ** (1 / (number == n).sum()) for n in number]
    )
    torch.testing.assert_close(ratio, naive, rtol=1e-9, atol=0.0)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), log_ratio)[0] for x in (ratio, naive))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_trajectory_ratio_leaves_each_step_its_own_advantage() -> None:
    """GSPO-token: d (s A_t) / d log pi_t = s A_t. A mean's own gradient would share them out."""
    log_ratio = torch.tensor([0.3, -0.1, 0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    ratio = trajectory_ratio(log_ratio, torch.tensor([0, 0, 0]))
    (gradient,) = torch.autograd.grad((ratio * advantages).sum(), log_ratio)
    torch.testing.assert_close(gradient, math.exp(0.1) * advantages, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("level", ["step", "trajectory"])
@pytest.mark.parametrize(
    "surrogate", [Clip(), Clip(dual=3.0), SoftGate(), ClippedWeight(), Unclipped()], ids=repr
)
def test_a_ratio_beyond_all_numbers_takes_no_other_step_its_gradient(
    surrogate: Surrogate, level: str
) -> None:
    """exp(200) and exp(-200) are infinity and 0 in single precision, and 0 has no logarithm."""
    log_ratio = torch.tensor([200.0, -200.0, 200.0, -200.0, 200.0, 0.0], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 2.0])
    batch = {TRAJECTORIES: torch.arange(6)} if level == "trajectory" else {}
    values = surrogate(ratios(log_ratio, batch), advantages)
    (gradient,) = torch.autograd.grad(values.sum(), log_ratio)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[-1] == pytest.approx(2.0)


def test_of_trajectories_of_one_step_the_ratio_is_that_of_the_step() -> None:
    log_ratio = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64)
    torch.testing.assert_close(trajectory_ratio(log_ratio, torch.arange(3)), torch.exp(log_ratio))


def test_the_kl_to_a_reference_is_never_negative_and_right_on_average() -> None:
    """Its mean over the policy's actions is the exact KL of two discrete policies."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        pi, reference = torch.tensor(rng.dirichlet(np.ones(4), size=2))
        estimate = reference_kl(torch.log(reference) - torch.log(pi))
        assert (estimate >= 0.0).all()
        exact = (pi * torch.log(pi / reference)).sum()
        torch.testing.assert_close((pi * estimate).sum(), exact, rtol=1e-9, atol=0.0)
    assert reference_kl(torch.zeros(3)).tolist() == [0.0] * 3


def test_an_action_that_the_policy_has_all_but_given_up_leaves_others_their_pull() -> None:
    """exp(100) is infinite in single precision, and so would be the gradient of the minibatch."""
    log_x = torch.tensor([100.0, 1.0, -1000.0], requires_grad=True)
    estimate = reference_kl(log_x)
    (gradient,) = torch.autograd.grad(estimate.sum(), log_x)
    assert estimate.isfinite().all() and gradient.isfinite().all()
    # However far the other way, the pull doesn't end.
    assert gradient[1:].tolist() == pytest.approx([math.e - 1.0, -1.0])


def test_names_and_bounds_are_resolved_or_refused() -> None:
    assert resolve_surrogate("clip", 0.3) == Clip(0.3, 0.3)
    assert resolve_surrogate("clip", (0.2, 0.28)) == Clip(0.2, 0.28)
    assert resolve_surrogate("clipped_weight", (0.2, 0.28)) == ClippedWeight(0.2, 0.28)
    own = Clip(dual=2.0)
    assert resolve_surrogate(own, 0.3) is own
    with pytest.raises(ValueError, match="nearest is 'soft_gate'"):
        resolve_surrogate("softgate")
    with pytest.raises(TypeError, match="derives from"):
        resolve_surrogate(lambda ratio, advantages: ratio)  # type: ignore[arg-type]
    for wrong in (lambda: Clip(0.0), lambda: Clip(dual=1.0), lambda: SoftGate(-1.0)):
        with pytest.raises(ValueError, match="must be"):
            wrong()

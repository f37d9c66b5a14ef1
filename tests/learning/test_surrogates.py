"""The clipped surrogate, by numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from rllib_gpg.learning.surrogates import clipped_surrogate, is_clipped

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
    result = clipped_surrogate(ratios, torch.tensor([advantage]), 0.2)
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
    torch.testing.assert_close(clipped_surrogate(ratio, advantages, 0.2), expected)


def test_the_first_surrogate_of_a_group_is_the_advantage_and_its_gradient() -> None:
    """At ratio 1 the gradient is that of the plain policy gradient, whatever the clip range."""
    ratio = torch.ones(3, requires_grad=True)
    advantages = torch.tensor([-1.5, 0.0, 2.0])
    surrogate = clipped_surrogate(ratio, advantages, 0.01)
    surrogate.sum().backward()
    torch.testing.assert_close(surrogate.detach(), advantages)
    torch.testing.assert_close(ratio.grad, advantages)


def test_is_clipped_counts_ratios_outside_of_the_range_on_either_side() -> None:
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0])
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    torch.testing.assert_close(is_clipped(ratio, 0.2), expected)

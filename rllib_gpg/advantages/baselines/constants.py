"""Baselines that are one number: none at all, and the one that makes the gradient vary least.

Axes: S = steps of the group, trajectory after trajectory; N = trajectories.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rllib_gpg.advantages.baselines.base import Baseline, Valuation
from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray


@dataclass(frozen=True)
class NoBaseline(Baseline):
    """Compares with nothing: returns are advantages (REINFORCE; Williams, 1992)."""

    def values(self, group: BinnedGroup, returns: FloatArray, memory: Any) -> Valuation:
        """Returns 0."""
        return Valuation(np.zeros_like(returns))


@dataclass(frozen=True)
class OptimalBaseline(Baseline):
    """The constant with which the gradient varies least, by the policy's own gradients.

    With g(n) = sum_t grad log pi(a[n,t]|s[n,t]) and G(n) = sum_t R[n,t] grad log pi(a[n,t]|s[n,t])

        b* = E[<G, g>] / E[<g, g>]

    which is E[R |g|^2] / E[|g|^2] where every step is credited with the outcome R (Peters and
    Schaal, 2008). A trajectory's own terms are left out of the b* that it is compared with, so that
    the estimate is unbiased; alone, it is compared with 0. It is the best for gradients that are
    sums over steps: where the loss divides those of a trajectory by its length
    (`loss_averaging="trajectories"`), another constant would be.

    It costs a forward and two backward passes over the group, trajectory by trajectory: about as
    much as two epochs where trajectories are long, more where they are short.
    """

    needs_scores: ClassVar[bool] = True

    def values(self, group: BinnedGroup, returns: FloatArray, memory: Any) -> Valuation:
        """Returns b* without the own episode, for every step.

        Raises:
            ValueError: If the group comes without the policy's gradients.
        """
        if group.scores is None:
            raise ValueError(
                f"{self} needs the gradients of the policy: give `scores`, a function of the "
                "returns, or use it under GPG, whose connector does."
            )
        # Of returns less their mean, which changes b* by just that: gradients are in single
        # precision, and of equal returns nothing is to be left.
        mean = float(returns.mean())
        product_N2 = np.asarray(group.scores(returns - mean), np.float64)
        total, others_N2 = product_N2.sum(0), group.sum_of_other_episodes(product_N2)
        # b*(n) = mean + sum_{m != n} <G(m), g(m)> / sum_{m != n} <g(m), g(m)>
        has_N = others_N2[:, 1] > 0.0
        ratio_N = others_N2[:, 0] / np.where(has_N, others_N2[:, 1], 1.0)
        value_N = np.where(has_N, mean + ratio_N, 0.0)
        constant = mean + float(total[0] / total[1]) if total[1] > 0.0 else 0.0
        metrics = {"baseline_constant": constant}
        return Valuation(np.repeat(value_N, group.lengths), metrics=metrics)

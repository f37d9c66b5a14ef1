"""The protocol of baselines: what the return of a step is compared with.

A baseline is settings, and never changes. What it learns from a group it hands back, and is given
again with the next one: its *memory*. Whoever calls it keeps that, per module and in checkpoints.

    >>> @dataclass(frozen=True)
    ... class HalfTheMean(Baseline):
    ...     '''Half of what the other trajectories of a bin got.'''
    ...     def values(self, group, returns, memory):
    ...         return Valuation(0.5 * group.mean_of_others(returns))

Axes: S = steps of the group, trajectory after trajectory; N = trajectories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rllib_gpg.advantages.grouping import BinnedGroup
from rllib_gpg.advantages.inputs import FloatArray


@dataclass(frozen=True)
class Valuation:
    """What a baseline says of a group.

    Attributes:
        values: [S], the value of every step, float64, in the unit of the returns.
        memory: What to be given with the next group: anything that can be pickled, or None. Plain
            dicts of arrays and numbers outlast changes of the code.
        alone: [S], marks the steps that could be compared with nothing, so that the value is the
            own return. Default None: there are none.
        metrics: Numbers to log.
    """

    values: FloatArray
    memory: Any = None
    alone: NDArray[np.bool_] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Baseline:
    """Base of all baselines: settings, without what is learned.

    Attributes:
        needs_scores: Whether it asks for the policy's gradients, `BinnedGroup.scores`.
    """

    needs_scores: ClassVar[bool] = False

    @property
    def sees_state(self) -> bool:
        """Whether the value of a step depends on its state, beyond the bin that the state is in.

        λ-returns (`lambda_` < 1) are safe only then.
        """
        return False

    @property
    def remembers(self) -> bool:
        """Whether earlier groups count. Only then a memory is kept, and a group of one learns."""
        return False

    @property
    def keeps_own(self) -> bool:
        """Whether a trajectory's own return is part of the values it is compared with."""
        return False

    def values(self, group: BinnedGroup, returns: FloatArray, memory: Any) -> Valuation:
        """Returns the value of every step of a group, and what to remember.

        For an unbiased gradient the value of a step may depend on its own state and on other
        trajectories, not on its own trajectory's rewards: see `BinnedGroup.mean_of_others`.

        Args:
            group: The group, its steps sorted into bins.
            returns: [S], the returns-to-go.
            memory: What this baseline handed back with the group before; None at first.
        """
        raise NotImplementedError

    def final_values(self, group: BinnedGroup, memory: Any) -> FloatArray:
        """Returns [N], the values of the observations after trajectories that were cut, else 0.

        Only earlier groups may count. Needed for `bootstrap_truncated` alone.
        """
        raise NotImplementedError(f"{self} can't complete the returns of truncated trajectories.")

    def check_space(self, numbers: int | None) -> None:
        """Refuses, before the first sample, observations it cannot take. The base takes all.

        Args:
            numbers: How many numbers one flattened observation has; None if it has other parts.
        """

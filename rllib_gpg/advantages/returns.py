"""Returns-to-go of a whole group at once: line 1 of Algorithm 2.

Array names carry their axes: ``S`` is every step of the group, trajectory after trajectory.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def returns_to_go(
    rewards_flat: ArrayLike, lengths: Sequence[int] | NDArray[np.integer], gamma: float
) -> NDArray[np.float64]:
    """Discounted sum of the rewards from every step to the end of its trajectory.

    Works by doubling: after pass k every step holds the sum of its next 2^k rewards, so the
    longest trajectory decides the number of passes, ceil(log2(length)), and the rounding error
    grows with that number too, not with the length.

    Args:
        rewards_flat: [S], the rewards of all trajectories, one trajectory after the other.
        lengths: [N], the number of steps of each trajectory; their sum is S.
        gamma: Discount factor in [0, 1], per step.

    Returns:
        [S] float64, in the unit of the rewards: ``R[n,t] = sum_{s>=t} gamma^(s-t) * r[n,s]``.
        Nothing leaks from one trajectory into another, and nothing is added at a cut.

    Raises:
        ValueError: If gamma is outside [0, 1], or the lengths do not add up to S.

    Example:
        >>> returns_to_go([1.0, 1.0, 1.0, 5.0], lengths=[3, 1], gamma=0.5)
        array([1.75, 1.5 , 1.  , 5.  ])
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}.")
    ret_S = np.array(rewards_flat, dtype=np.float64)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    if ret_S.shape != (lengths_N.sum(),):
        raise ValueError(
            f"rewards_flat has shape {ret_S.shape}, but the lengths add up to {lengths_N.sum()}."
        )

    # Steps that follow step t in its own trajectory: 0 at the last one.
    left_S = np.repeat(np.cumsum(lengths_N), lengths_N) - 1 - np.arange(len(ret_S))
    span = 1  # ret_S[t] = sum_{j<span} gamma^j r[t+j]
    while span < lengths_N.max(initial=0) and gamma**span > 0.0:
        # sum_{j<2*span} gamma^j r[t+j] = ret_S[t] + gamma^span ret_S[t+span]
        later_S = gamma**span * ret_S[span:]
        np.add(ret_S[:-span], later_S, out=ret_S[:-span], where=left_S[:-span] >= span)
        span *= 2
    return ret_S

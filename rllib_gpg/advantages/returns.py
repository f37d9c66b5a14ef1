"""Returns-to-go of a whole group at once, line 1 of Algorithm 2, and λ-returns.

Array names carry their axes: ``S`` is every step of the group, trajectory after trajectory.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Sums of the same rewards in another order differ by so much, relative to them.
ROUNDING = 1e-9


def are_equal(returns: ArrayLike) -> bool:
    """Whether returns are equal, up to rounding: of which actions were better they say nothing.

    Args:
        returns: [N], of whole trajectories, in any unit; at least one.
    """
    ret_N = np.asarray(returns, dtype=np.float64)
    return bool(np.ptp(ret_N) <= ROUNDING * np.abs(ret_N).max())


def without_rounding(x_S: NDArray[np.float64], of_S: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns x, or zeros where all of it is what rounding leaves of numbers as large as `of_S`."""
    largest, scale = (max(y_S.max(), -y_S.min()) for y_S in (x_S, of_S))
    return np.zeros_like(x_S) if largest <= ROUNDING * scale else x_S


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
    _check_share("gamma", gamma)
    ret_S = np.array(rewards_flat, dtype=np.float64)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    _check_lengths(ret_S, lengths_N)

    # Steps that follow step t in its own trajectory: 0 at the last one.
    left_S = np.repeat(np.cumsum(lengths_N), lengths_N) - 1 - np.arange(len(ret_S))
    span = 1  # ret_S[t] = sum_{j<span} gamma^j r[t+j]
    while span < lengths_N.max(initial=0) and gamma**span > 0.0:
        # sum_{j<2*span} gamma^j r[t+j] = ret_S[t] + gamma^span ret_S[t+span]
        later_S = gamma**span * ret_S[span:]
        np.add(ret_S[:-span], later_S, out=ret_S[:-span], where=left_S[:-span] >= span)
        span *= 2
    return ret_S


def lambda_returns(
    rewards_flat: ArrayLike,
    values_flat: ArrayLike,
    lengths: Sequence[int] | NDArray[np.integer],
    gamma: float,
    lambda_: float,
) -> NDArray[np.float64]:
    """What GAE compares with the value of a step: its return, mixed with the values that follow.

    GAE's advantage, the sum over j of ``(gamma * lambda_)^j * delta[n,t+j]`` with ``delta[n,t] =
    r[n,t] + gamma * v[n,t+1] - v[n,t]``, is this minus ``v[n,t]``. With `lambda_` 1 it is the
    return-to-go itself, to the last bit; with 0 it is ``r[n,t] + gamma * v[n,t+1]``.

    Args:
        rewards_flat: [S], the rewards of all trajectories, one trajectory after the other.
        values_flat: [S], the value of every step, in the unit of the rewards.
        lengths: [N], the number of steps of each trajectory; their sum is S.
        gamma: Discount factor in [0, 1], per step.
        lambda_: Share of the return in the mixture, in [0, 1], per step.

    Returns:
        [S] float64: ``G[n,t] = r[n,t] + gamma * ((1 - lambda_) v[n,t+1] + lambda_ G[n,t+1])``, with
        v = G = 0 after the end of a trajectory.

    Raises:
        ValueError: If gamma or lambda_ is outside [0, 1], or the lengths do not add up to S.

    Example:
        >>> lambda_returns([1.0, 1.0, 5.0], [2.0, 3.0, 4.0], [2, 1], gamma=0.5, lambda_=0.5)
        array([2.  , 1.  , 5.  ])
    """
    _check_share("gamma", gamma)
    _check_share("lambda_", lambda_)
    reward_S = np.array(rewards_flat, dtype=np.float64)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    _check_lengths(reward_S, lengths_N)
    following_S = np.append(np.asarray(values_flat, dtype=np.float64)[1:], 0.0)
    following_S[np.cumsum(lengths_N) - 1] = 0.0
    # G = (r + gamma (1 - lambda) v') + gamma lambda G'
    reward_S += gamma * (1.0 - lambda_) * following_S
    return returns_to_go(reward_S, lengths_N, gamma * lambda_)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def _check_lengths(reward_S: NDArray[np.float64], lengths_N: NDArray[np.int64]) -> None:
    if reward_S.shape != (lengths_N.sum(),):
        raise ValueError(
            f"rewards_flat has shape {reward_S.shape}, but the lengths add up to {lengths_N.sum()}."
        )

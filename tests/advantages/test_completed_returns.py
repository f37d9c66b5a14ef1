"""Returns that a time limit cut, completed by the value of the last observation."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rllib_gpg.advantages import RidgeBaseline
from rllib_gpg.advantages.binning import (
    SpatialTimeBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import estimate_advantages, estimate_group
from rllib_gpg.advantages.grouping import into_bins
from tests.advantages.ridge_groups import SMALL, estimates, flat, random_groups


@pytest.mark.parametrize("num_numbers", [1, 3])
def test_the_state_after_the_last_step_has_its_value(num_numbers):
    """s' = 0.9 s + noise, r = s: V = s / (1 - 0.9 gamma). Each episode is cut after 100 steps."""
    rng, gamma, memory, errors = np.random.default_rng(0), 0.95, None, []
    scale = 1.0 / (1.0 - 0.9 * gamma)
    for _ in range(40):
        state = rng.normal(size=(101, 8, num_numbers))
        state[0] /= np.sqrt(1.0 - 0.81)
        for t in range(100):
            state[t + 1] += 0.9 * state[t]
        observations, finals = list(state[:-1].swapaxes(0, 1)), list(state[-1][:, None])
        lengths = np.full(8, 100)
        group = into_bins(TimeBinning(), observations, lengths, 0 * lengths, [""] * 8, finals)
        if memory is not None:
            found = RidgeBaseline().final_values(group, memory["baseline"])
            errors.append(found - scale * state[-1, :, 0])
        memory = estimate_group(
            observations,
            [o[:, 0] for o in observations],
            gamma=gamma,
            binning="time",
            baseline="ridge",
            lambda_=0.95,
            final_observations=finals,
            memory=memory,
        ).memory
    late = np.array(errors[20:])
    spread = scale / np.sqrt(1.0 - 0.81)  # of the true values
    assert abs(late.mean()) < 0.1 * spread
    assert np.sqrt(np.square(late).mean()) < 0.5 * spread


def test_a_value_that_completes_returns_is_within_what_returns_have_been():
    """Else an error becomes part of the returns that the next one is learned from."""
    ridge = RidgeBaseline(num_features=0)
    *before, (observations, _) = random_groups(23, 6, lengths=[12] * 4)
    memory = estimates(before, gamma=0.0, baseline=ridge)[-1].memory
    rewards = np.concatenate([r for _, rs in before for r in rs])  # what returns are with gamma 0
    low, high = rewards.min(), rewards.max()
    finals = [np.full((1, 2), wild) for wild in (-1e6, 1e6, -3.0, 0.5)]
    lengths = np.full(4, 12)
    group = into_bins(TimeBinning(), observations, lengths, 0 * lengths, [""] * 4, finals)
    found = ridge.final_values(group, memory["baseline"])
    assert low <= found.min() < found.max() <= high
    assert [low, high] == found[:2].tolist()


def test_only_truncated_trajectories_are_completed_and_by_earlier_groups_alone():
    *before, (observations, rewards) = random_groups(19, 5, lengths=[10] * 4)
    memory = estimates(before)[-1].memory
    finals = [None, np.ones((1, 2)), None, None]
    group = into_bins(
        TimeBinning(), observations, np.full(4, 10), np.zeros(4, int), ["n"] * 4, finals
    )
    found = SMALL.final_values(group, memory["baseline"])
    assert (found != 0.0).tolist() == [False, True, False, False]
    # The same as rewards that say what would have followed.
    completed = [r + 0.9 * f * (np.arange(10) == 9) for r, f in zip(rewards, found, strict=True)]
    options = {"gamma": 0.9, "binning": "time", "baseline": SMALL, "memory": memory}
    one = estimate_group(observations, rewards, final_observations=finals, **options)
    other = estimate_group(observations, completed, **options)
    assert_array_equal(flat(one), flat(other))
    # Nothing is known before the first group, nor by the weights of other features.
    assert_array_equal(SMALL.final_values(group, None), np.zeros(4))
    assert_array_equal(RidgeBaseline().final_values(group, memory["baseline"]), np.zeros(4))


@pytest.mark.parametrize("binning", [TimeBinning(), UniversalBinning(), SpatialTimeBinning(1.0)])
def test_a_reward_that_never_ends_is_worth_one_over_one_minus_gamma(binning):
    """Reward 1 for ever, cut after 50 steps: completed returns approach the infinite sum soon."""
    observations, rewards = [np.zeros((50, 1))] * 4, [np.ones(50)] * 4
    final = [np.zeros((1, 1))] * 4
    memory = None
    for _ in range(40):
        memory = estimate_group(
            observations,
            rewards,
            gamma=0.98,
            binning=binning,
            baseline="ridge",
            memory=memory,
            final_observations=final,
        ).memory
    bins = memory["baseline"]["bins"]
    assert_allclose(bins["sums"][:, 0] / bins["counts"], 50.0, rtol=0.05)


def test_what_is_at_the_place_of_the_cut_counts_where_bins_know_no_time():
    """Two places, one worth more than the other; trajectories are cut in either."""
    observations = [np.full((20, 1), place) for place in (0.0, 1.0, 0.0, 1.0)]
    rewards = [np.full(20, 1.0 + o[0, 0]) for o in observations]
    final = [o[:1] for o in observations]
    options = {"gamma": 0.9, "binning": "state", "baseline": "ridge"}
    memory = None
    for _ in range(40):
        memory = estimate_group(
            observations, rewards, memory=memory, final_observations=final, **options
        ).memory
    bins = memory["baseline"]["bins"]
    assert_allclose(bins["sums"][:, 0] / bins["counts"], [10.0, 20.0], rtol=1e-3)


@pytest.mark.parametrize(
    ("final", "match"),
    [
        ([None], "one entry per trajectory.*got 1 for 2"),
        ([None, np.zeros(3)], r"trajectory 1: .*shape \[1, ...\], got \(3,\)"),
        ([None, np.array([[0.0, np.inf]])], "trajectory 1: the final observation is not finite"),
    ],
)
def test_final_observations_that_cannot_be_meant_are_refused(final, match):
    ((observations, rewards),) = random_groups(0, 1, lengths=(3, 4))
    with pytest.raises(ValueError, match=match):
        estimate_advantages(
            observations,
            rewards,
            gamma=0.9,
            binning="time",
            baseline="ridge",
            final_observations=final,
        )


def test_entries_of_long_ago_are_worth_what_those_of_now_are():
    """If a timestep is seen once in many groups, its entries add up to less than 1."""
    *before, (observations, _) = random_groups(29, 5, lengths=[10] * 4)
    memory = estimates(before)[-1].memory["baseline"]
    finals = [np.full((1, 2), 0.5)] * 4
    group = into_bins(
        TimeBinning(), observations, np.full(4, 10), np.zeros(4, int), ["n"] * 4, finals
    )
    bins = memory["bins"]
    faded = {**bins, "sums": 0.01 * bins["sums"], "counts": 0.01 * bins["counts"]}
    assert faded["counts"].sum() < 1.0
    found = SMALL.final_values(group, {**memory, "bins": faded})
    assert_allclose(found, SMALL.final_values(group, memory))

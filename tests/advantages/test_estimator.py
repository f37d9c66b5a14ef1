import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rllib_gpg.advantages import RidgeBaseline
from rllib_gpg.advantages.binning import (
    SpatialBinning,
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import check_finite, estimate_advantages, estimate_group
from rllib_gpg.advantages.grouping import first_visits, key_codes
from tests.advantages.naive import naive_advantages


def pairs_of_steps(observations, timesteps):
    """A custom binning: keys [T]."""
    return timesteps // 2


def start_and_turns(observations, timesteps):
    """A custom binning with history: the first observation, and the changes of state so far."""
    first = np.rint(observations[:1, 0])
    turns = np.cumsum(np.diff(observations[:, 0], prepend=observations[:1, 0]) != 0)
    return np.column_stack([np.repeat(first, len(timesteps)), turns]).astype(np.int64)


BINNINGS = [
    TimeBinning(),
    UniversalBinning(),
    StateBinning(),
    SpatialBinning(2.0),
    SpatialTimeBinning([2.0, 1.0]),
    pairs_of_steps,
    start_and_turns,
]


def name_of(binning):
    return getattr(binning, "__name__", str(binning))


@st.composite
def groups(draw):
    """Groups of 1-8 trajectories of 1-300 steps, whose few states are visited again and again."""
    short_or_long = st.integers(1, 4) | st.integers(1, 300)
    lengths = draw(st.lists(short_or_long, min_size=1, max_size=8))
    scale = draw(st.sampled_from([1.0, 1e4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    observations = [rng.integers(-2, 3, (length, 2)).astype(np.float32) for length in lengths]
    # Rewards of size scale / T keep |R| below a few times the scale.
    rewards = [rng.normal(0.3, 1.0, length) * scale / length for length in lengths]
    return observations, rewards


GAMMAS = st.sampled_from([0.0, 0.9, 1.0])


# -- the estimator is Algorithm 2 ------------------------------------------------------------------


@pytest.mark.parametrize("binning", BINNINGS, ids=name_of)
@settings(deadline=None, max_examples=100)
@given(group=groups(), gamma=GAMMAS, leave_one_out=st.booleans(), normalize=st.booleans())
def test_equals_naive_algorithm_2(binning, group, gamma, leave_one_out, normalize):
    assert_equals_naive(
        *group, gamma=gamma, binning=binning, leave_one_out=leave_one_out, normalize=normalize
    )


@pytest.mark.parametrize("binning", BINNINGS, ids=name_of)
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_equals_naive_algorithm_2_on_many_trajectories(binning, leave_one_out):
    rng = np.random.default_rng(5)
    lengths = range(1, 301, 10)
    observations = [rng.normal(0.0, 2.0, (length, 2)) for length in lengths]
    rewards = [rng.normal(30.0, 30.0, length) for length in lengths]  # |R| up to 1e4
    assert_equals_naive(
        observations, rewards, gamma=1.0, binning=binning, leave_one_out=leave_one_out
    )


def assert_equals_naive(*group, **options):
    found = estimate_advantages(*group, **options)
    expected = naive_advantages(*group, **options)
    assert len(found) == len(expected)
    for fast, slow in zip(found, expected, strict=True):
        assert fast.dtype == np.float64
        assert_allclose(fast, slow, rtol=1e-9, atol=1e-9)


# Three trajectories on the states of a discrete space; trajectory 0 comes back to state 5.
#
#   n  states    rewards   R (gamma 1)   first visits
#   0  5 6 5     1 2 3     6 5 3         t=0 (5), t=1 (6); t=2 is the second visit to 5
#   1  5         2         2             t=0 (5)
#   2  6 5       0 4       4 4           t=0 (6), t=1 (5)
STATES = [np.array([5, 6, 5]), np.array([5]), np.array([6, 5])]
REWARDS = [np.array([1.0, 2.0, 3.0]), np.array([2.0]), np.array([0.0, 4.0])]


def check(expected, **options):
    found = estimate_advantages(STATES, REWARDS, gamma=1.0, **options)
    assert [len(a) for a in found] == [3, 1, 2]
    assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-12)


def test_state_bins_enter_a_trajectory_once_worked_by_hand():
    # b(5) = mean(6, 2, 4) = 4; the 3 at the second visit does not count.  b(6) = mean(5, 4) = 4.5
    check([2, 0.5, -1, -2, -0.5, 0], binning=StateBinning())


def test_state_bins_leave_one_out_worked_by_hand():
    # Trajectory 0: b(5) = mean(2, 4) = 3 at both visits, b(6) = 4
    # Trajectory 1: b(5) = mean(6, 4) = 5;   trajectory 2: b(6) = 5, b(5) = mean(6, 2) = 4
    check([3, 1, 0, -3, -1, 0], binning=StateBinning(), leave_one_out=True)


def test_time_bins_worked_by_hand():
    # b(0) = mean(6, 2, 4) = 4;  b(1) = mean(5, 4) = 4.5;  b(2) = 3, a singleton
    check([2, 0.5, 0, -2, 0, -0.5], binning=TimeBinning())


def test_universal_bins_take_the_total_returns_worked_by_hand():
    # First visits are the steps t = 0 alone: b = mean(6, 2, 4) = 4
    check([2, 1, -1, -2, 0, 0], binning=UniversalBinning())


def test_normalize_worked_by_hand():
    # A = 2 0.5 -1 -2 -0.5 0: mean -1/6, mean square (4 + .25 + 1 + 4 + .25 + 0) / 6 = 9.5/6,
    # variance 9.5/6 - 1/36 = 56/36, so std = sqrt(56)/6 and (A + 1/6) / std = (6 A + 1) / sqrt(56)
    expected = np.array([13, 4, -5, -11, -2, 1]) / np.sqrt(56)
    check(expected, binning=StateBinning(), normalize=True)


def test_gamma_discounts_per_step():
    # gamma 0.5, one trajectory of rewards 1 1 1 against one of rewards 0 0 0, time bins:
    # R = 1.75 1.5 1 and 0 0 0, so A = +- half of it
    found = estimate_advantages(
        [np.zeros(3)] * 2, [np.ones(3), np.zeros(3)], gamma=0.5, binning="time"
    )
    assert_array_equal(found, [[0.875, 0.75, 0.5], [-0.875, -0.75, -0.5]])


def test_a_group_of_one_has_no_signal_under_time_bins():
    for leave_one_out in (False, True):
        (found,) = estimate_advantages(
            STATES[:1], REWARDS[:1], gamma=0.9, binning="time", leave_one_out=leave_one_out
        )
        assert_array_equal(found, np.zeros(3))


def test_singletons_fall_back_to_their_own_first_return_with_leave_one_out():
    # Trajectory 0 alone visits state 1, twice: R = 5 3, so b = 5 at both and A = 0 -2
    found = estimate_advantages(
        [np.array([1, 1]), np.array([2])],
        [np.array([2.0, 3.0]), np.array([7.0])],
        gamma=1.0,
        binning="state",
        leave_one_out=True,
    )
    assert_array_equal(np.concatenate(found), [0, -2, 0])


@pytest.mark.parametrize("binning", BINNINGS, ids=name_of)
@settings(deadline=None, max_examples=50)
@given(group=groups(), gamma=GAMMAS)
def test_leave_one_out_scales_first_visits_by_n_over_n_minus_1(binning, group, gamma):
    observations, rewards = group
    plain = estimate_advantages(observations, rewards, gamma=gamma, binning=binning)
    loo = estimate_advantages(
        observations, rewards, gamma=gamma, binning=binning, leave_one_out=True
    )
    visitors, firsts = {}, []
    for n, obs in enumerate(observations):
        for t, key in enumerate(np.atleast_1d(binning(obs, np.arange(len(obs)))).tolist()):
            here = visitors.setdefault(str(key), set())
            if n not in here:
                here.add(n)
                firsts.append((n, t, here))
    for n, t, here in firsts:
        entries = len(here)
        factor = entries / (entries - 1) if entries > 1 else 1.0
        assert_allclose(loo[n][t], factor * plain[n][t], rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(
    "setting",
    [
        *({"normalize": unit} for unit in (False, True, "bins")),
        # Returns that are compared with nothing become equal by taking their mean away.
        {"baseline": "none", "normalize": True},
    ],
)
def test_rounding_errors_of_equal_returns_are_exactly_0(setting):
    # 0.1 + 0.2 and 0.3 differ in the last digit.
    rewards = [np.array([0.1 + 0.2]), np.array([0.3])]
    found = estimate_advantages([np.zeros(1)] * 2, rewards, gamma=1.0, binning="time", **setting)
    assert np.abs(found).max() == 0.0


def test_differences_far_below_the_returns_count():
    found = estimate_advantages(
        [np.zeros(1)] * 2, [np.array([1e6]), np.array([1e6 + 0.01])], gamma=1.0, binning="time"
    )
    assert_allclose(np.concatenate(found), [-0.005, 0.005], rtol=1e-6)


@settings(deadline=None, max_examples=100)
@given(group=groups())
def test_normalized_advantages_have_mean_0_and_std_1_over_all_steps(group):
    plain = np.concatenate(estimate_advantages(*group, gamma=0.9, binning="universal"))
    found = np.concatenate(
        estimate_advantages(*group, gamma=0.9, binning="universal", normalize=True)
    )
    assert abs(found.mean()) < 1e-9
    if plain.std() > 1e-4:
        assert_allclose(found.std(), 1.0, rtol=1e-9)


def test_the_order_of_trajectories_is_kept():
    forth = estimate_advantages(STATES, REWARDS, gamma=0.9, binning="state")
    back = estimate_advantages(STATES[::-1], REWARDS[::-1], gamma=0.9, binning="state")
    for a, b in zip(forth, back[::-1], strict=True):
        assert_allclose(a, b, atol=1e-12)


def test_inputs_are_not_written_to():
    observations, rewards = [np.ones((4, 2))], [np.ones(4)]
    estimate_group(observations, rewards, gamma=0.5, binning=SpatialBinning(0.5), normalize=True)
    assert_array_equal(observations[0], np.ones((4, 2)))
    assert_array_equal(rewards[0], np.ones(4))


def test_plain_lists_do():
    found = estimate_advantages(
        [[5, 6, 5], [5], [6, 5]], [[1, 2, 3], [2], [0, 4]], gamma=1, binning="state"
    )
    assert_allclose(np.concatenate(found), [2, 0.5, -1, -2, -0.5, 0])


# -- statistics ------------------------------------------------------------------------------------


def test_statistics_worked_by_hand():
    # State bins: 2 bins, 5 first visits, none alone. R = 6 5 3 2 4 4 has variance 10/6; without the
    # own return A = 3 1 0 -3 -1 0 (above) has variance 20/6: others predict worse than the mean.
    for leave_one_out in (False, True):
        found = estimate_group(
            STATES, REWARDS, gamma=1.0, binning="state", leave_one_out=leave_one_out
        )
        assert (found.num_bins, found.singleton_fraction) == (2, 0.0)
        assert found.baseline_explained_variance == pytest.approx(-1.0)
        assert found.bins_explained_variance == pytest.approx(-1.0)


def test_explained_variance_is_over_the_steps_that_have_company_worked_by_hand():
    # Time bins: R = 6 2 4 at t=0 and 5 4 at t=1; the 3 at t=2 is alone. Others' means: 3 5 4, 4 5.
    # R has mean 21/5 and variance 97/5 - 441/25 = 44/25; A = 3 -3 0 1 -1 has variance 20/5.
    found = estimate_group(STATES, REWARDS, gamma=1.0, binning="time")
    assert found.baseline_explained_variance == pytest.approx(1 - 4 / (44 / 25))


def test_a_group_of_singletons_explains_nothing():
    found = estimate_group([np.zeros(3)], [np.arange(3.0)], gamma=1.0, binning="time")
    assert (found.singleton_fraction, found.baseline_explained_variance) == (1.0, 0.0)


def test_singleton_fraction_counts_first_visits():
    # Time bins: t=0 has 3 entries, t=1 has 2, t=2 has 1: 1 of 6 first visits is alone
    found = estimate_group(STATES, REWARDS, gamma=1.0, binning="time")
    assert (found.num_bins, found.singleton_fraction) == (3, 1 / 6)


def test_statistics_are_those_before_normalisation():
    plain = estimate_group(STATES, REWARDS, gamma=0.9, binning="time")
    normal = estimate_group(STATES, REWARDS, gamma=0.9, binning="time", normalize=True)
    assert plain.baseline_explained_variance == normal.baseline_explained_variance


@pytest.mark.parametrize("reward", [0.0, 0.1])
def test_equal_returns_explain_nothing(reward):
    rewards = [np.full(7, reward), np.full(3, reward)]
    observations = [np.arange(7), np.arange(3)]
    found = estimate_group(observations, rewards, gamma=0.0, binning="universal")
    assert found.baseline_explained_variance == 0.0


def test_statistics_are_plain_numbers():
    found = estimate_group(STATES, REWARDS, gamma=1.0, binning="state")
    assert type(found.num_bins) is int
    assert type(found.singleton_fraction) is float
    assert type(found.baseline_explained_variance) is float


# -- exact grouping --------------------------------------------------------------------------------

LOW, HIGH = np.iinfo(np.int64).min, np.iinfo(np.int64).max
AWKWARD = st.sampled_from([LOW, LOW + 1, -(2**32), -1, 0, 1, 2**31, 2**32, 2**62, HIGH - 1, HIGH])


@settings(deadline=None, max_examples=500)
@given(
    data=st.data(), width=st.integers(1, 12), values=st.sampled_from([AWKWARD, st.integers(0, 2)])
)
def test_grouping_is_exact_for_awkward_keys(data, width, values):
    row = st.tuples(*[values] * width)
    trajectories = data.draw(
        st.lists(st.lists(row, min_size=1, max_size=8), min_size=1, max_size=5)
    )
    rows = [row for rows in trajectories for row in rows]
    trajectory = np.repeat(np.arange(len(trajectories)), [len(t) for t in trajectories])
    bins, entries = first_visits(key_codes(np.array(rows, np.int64)), trajectory)

    number, entry = {}, {}  # key -> its bin; (trajectory, key) -> its first step
    for s, (n, key) in enumerate(zip(trajectory, rows, strict=True)):
        assert number.setdefault(key, bins[s]) == bins[s]
        assert entries[s] == entry.setdefault((n, key), s)
    assert sorted(number.values()) == list(range(len(number)))  # other keys, other bins


@pytest.mark.parametrize(
    "sizes", [(2**21, 2**21, 2**21), (2**21, 2**21, 2**21 - 1), (1, 2**63), (2**62, 1, 2), (2**64,)]
)
def test_grouping_is_exact_at_the_edge_of_one_integer(sizes):
    corners = {tuple(LOW + (size - 1) * up for size in sizes) for up in (0, 1)}
    corners |= {
        (*c[:-1], c[-1] + d) for c in corners for d in (0, 1, -1) if LOW <= c[-1] + d <= HIGH
    }
    rows = np.array(sorted(corners) * 2, np.int64)
    assert len(np.unique(key_codes(rows))) == len(corners)
    assert_array_equal(*np.split(key_codes(rows), 2))


def test_grouping_of_images_is_exact():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 84, 84), np.uint8)
    images[3] = images[1]
    images[4] = images[1]
    images[4, -1, -1] ^= 1
    found = estimate_group([images], [np.ones(6)], gamma=1.0, binning="state")
    assert found.num_bins == 5


def test_unsigned_keys_of_64_bits_are_taken_where_they_fit():
    def binning(observations, timesteps):
        return np.uint64(HIGH) - timesteps.astype(np.uint64)

    assert estimate_group(STATES, REWARDS, gamma=1.0, binning=binning).num_bins == 3


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32])
def test_keys_of_small_dtypes_are_taken(dtype):
    def binning(observations, timesteps):
        return (observations == 5).astype(dtype)

    found = estimate_advantages(STATES, REWARDS, gamma=1.0, binning=binning)
    expected = estimate_advantages(STATES, REWARDS, gamma=1.0, binning="state")
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)


# -- observations that are not one array -----------------------------------------------------------


def test_nested_observations_reach_a_custom_binning_as_they_are():
    nested = [{"state": states, "camera": (np.zeros((len(states), 2, 2)),)} for states in STATES]
    found = estimate_advantages(
        nested, REWARDS, gamma=1.0, binning=lambda observations, timesteps: observations["state"]
    )
    assert_allclose(np.concatenate(found), [2, 0.5, -1, -2, -0.5, 0])


@pytest.mark.parametrize("nest", [lambda a: {"x": {"y": a}}, lambda a: (a, a), lambda a: [a, a]])
def test_leaves_of_nested_observations_are_checked(nest):
    with pytest.raises(ValueError, match="trajectory 0: the observation at step 1 is not finite"):
        estimate_group([nest(np.array([0.0, np.nan]))], [np.ones(2)], gamma=1.0, binning="time")
    with pytest.raises(ValueError, match="trajectory 0: 2 rewards, but observations of shape"):
        estimate_group([nest(np.zeros(3))], [np.ones(2)], gamma=1.0, binning="time")


def test_observations_of_words_are_finite():
    check_finite([np.array(["a", "b"])], [np.ones(2)])


# -- errors ----------------------------------------------------------------------------------------


def estimate(observations=STATES, rewards=REWARDS, **options):
    return estimate_group(observations, rewards, **{"gamma": 1.0, "binning": "time", **options})


@pytest.mark.parametrize("gamma", [-0.1, 1.1, np.nan])
def test_gamma_outside_the_unit_interval_is_refused(gamma):
    with pytest.raises(ValueError, match="gamma"):
        estimate(gamma=gamma)


def test_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="group is empty"):
        estimate([], [])


def test_an_empty_trajectory_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"trajectory 1: rewards must have shape \[T\] with T >= 1"
    ):
        estimate([np.zeros(2), np.zeros(0)], [np.zeros(2), np.zeros(0)])


def test_rewards_that_are_not_flat_are_refused_by_name():
    with pytest.raises(ValueError, match=r"trajectory 0: rewards must have shape.*got \(2, 1\)"):
        estimate([np.zeros(2)], [np.zeros((2, 1))])


def test_a_final_observation_too_many_is_refused_by_name():
    with pytest.raises(ValueError, match=r"trajectory 1: 2 rewards.*\(3, 4\).*without the final"):
        estimate([np.zeros((2, 4)), np.zeros((3, 4))], [np.zeros(2), np.zeros(2)])


def test_an_observation_that_is_no_sequence_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"trajectory 0: 1 rewards, but observations of shape \(\)"
    ):
        estimate([3.0], [np.zeros(1)])


def test_more_rewards_than_observations_are_refused():
    with pytest.raises(ValueError, match="3 trajectories of observations and 2 of rewards"):
        estimate(STATES, REWARDS[:2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_reward_is_refused_with_trajectory_step_and_value(value):
    rewards = [np.zeros(5), np.array([0.0, 0.0, value, 0.0, value])]
    message = f"trajectory 1: the reward at step 2 is not finite: {value}"
    for refuse in (check_finite, estimate):
        with pytest.raises(ValueError, match=message):
            refuse([np.zeros(5)] * 2, rewards)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_bad_observation_is_refused_with_trajectory_step_and_value(dtype):
    observations = np.zeros((5, 2, 2), dtype)
    observations[3, 1, 0] = np.inf
    for refuse in (check_finite, estimate):
        with pytest.raises(ValueError, match=r"trajectory 0: the observation at step 3 .*: inf"):
            refuse([observations], [np.zeros(5)])


@pytest.mark.parametrize(
    ("bad_reward", "first"), [(1, "reward at step 1"), (4, "observation at step 2")]
)
def test_the_first_bad_step_is_named(bad_reward, first):
    observations, rewards = np.zeros(5), np.zeros(5)
    observations[2] = rewards[bad_reward] = np.nan
    with pytest.raises(ValueError, match=first):
        check_finite([observations], [rewards])


def test_names_of_trajectories_are_used_in_errors():
    names = ["episode a", "episode b"]
    rewards = [np.zeros(1), np.array([np.nan])]
    for refuse in (check_finite, estimate):
        with pytest.raises(ValueError, match=r"^episode b: the reward at step 0"):
            refuse([np.zeros(1)] * 2, rewards, names=names)
    with pytest.raises(ValueError, match=r"^episode a: 1 rewards"):
        estimate([np.zeros(2)] * 2, [np.zeros(1)] * 2, names=names)
    with pytest.raises(TypeError, match="<lambda>, episode a: got float64"):
        estimate([np.zeros(1)] * 2, [np.zeros(1)] * 2, binning=lambda o, t: o, names=names)


def width_grows(observations, timesteps):
    return np.zeros((len(timesteps), 1 if len(timesteps) == 3 else 2), np.int64)


@pytest.mark.parametrize(
    ("binning", "error", "message"),
    [
        (lambda o, t: o * 0.5, TypeError, "trajectory 0: got float64.*integers.*astype"),
        (lambda o, t: t * np.nan, TypeError, "trajectory 0: got float64"),
        (lambda o, t: None, TypeError, "trajectory 0: got object"),
        (lambda o, t: 0, ValueError, r"trajectory 0: got int64 of shape \(\).*\(3,\) or \(3, k\)"),
        (lambda o, t: t[1:], ValueError, r"trajectory 0: got int64 of shape \(2,\)"),
        (lambda o, t: np.append(t, 9), ValueError, r"trajectory 0: got int64 of shape \(4,\)"),
        (lambda o, t: t[:, None, None], ValueError, r"of shape \(3, 1, 1\)"),
        (lambda o, t: np.zeros((len(t), 0), int), ValueError, r"of shape \(3, 0\)"),
        (
            width_grows,
            ValueError,
            "binning width_grows, trajectory 1: .*keys of trajectory 0 hold 1",
        ),
        (lambda o, t: t.astype(np.uint64) + 2**63, ValueError, r"got uint64.*above 2\*\*63 - 1"),
    ],
    ids=["float", "nan", "none", "scalar", "short", "long", "3d", "no width", "widths", "uint64"],
)
def test_keys_a_custom_binning_must_not_return_are_refused(binning, error, message):
    with pytest.raises(error, match=message):
        estimate(binning=binning)


def test_errors_inside_a_binning_say_where():
    bad = [np.zeros((2, 3)), np.full((2, 3), 1e300)]
    with pytest.raises(ValueError, match="larger epsilon") as error:
        estimate(bad, [np.zeros(2)] * 2, binning=SpatialBinning(1.0))
    assert error.value.__notes__ == [
        "Raised in binning SpatialBinning(epsilon=1.0), trajectory 1. What it was given: "
        "observations of shape (2, 3), as connectors leave them, and as many timesteps."
    ]


def test_binnings_without_a_name_are_named_by_their_repr():
    partial = functools.partial(lambda o, t, scale: t * scale, scale=0.5)
    with pytest.raises(TypeError, match=r"functools\.partial"):
        estimate(binning=partial)


def test_unknown_binning_names_are_refused():
    with pytest.raises(ValueError, match="Unknown binning 'tim'"):
        estimate(binning="tim")


# -- several agents of one episode -----------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["bins", "ridge"])
@pytest.mark.parametrize("num_episodes", [2, 3])
def test_the_gradient_of_a_team_is_unbiased(baseline: str, num_episodes: int) -> None:
    """Two agents, one step, a coin each; both are given the sum. By exact enumeration.

    d/d theta of the expected return of an agent, for P(1) = sigmoid(theta) = 1/2, is the mean of
    (action - 1/2) * return: 1/4. A team mate's return is one's own: left in, it takes a part of
    the signal away.
    """
    agents = 2 * num_episodes
    total = 0.0
    for actions in itertools.product([0, 1], repeat=agents):
        teams = np.reshape(actions, (num_episodes, 2)).sum(1)
        advantages = estimate_advantages(
            [np.zeros((1, 1))] * agents,
            [[float(team)] for team in teams.repeat(2)],
            gamma=1.0,
            binning="time",
            baseline=baseline,
            leave_one_out=baseline == "bins",
            episodes=np.arange(num_episodes).repeat(2).tolist(),
        )
        total += np.mean((np.array(actions) - 0.5) * np.concatenate(advantages)) / 2**agents
    assert total == pytest.approx(0.25)


@pytest.mark.parametrize("options", [{"leave_one_out": True}, {"baseline": "ridge"}], ids=str)
@pytest.mark.parametrize("num_trajectories", [1, 2, 4, 6])
def test_singletons_are_all_that_is_missing_of_the_gradient(options, num_trajectories) -> None:
    """Action 0 ends the episode, action 1 leads to another step, whose action is its reward.

    Both actions are as likely, so a trajectory is alone at its second step where all others have
    ended at once. Over all groups there are, with grad log pi = action - 1/2.
    """
    kinds = [((0,), 0.5), ((1, 0), 0.25), ((1, 1), 0.25)]
    gradient = np.zeros(2)
    for group in itertools.product(kinds, repeat=num_trajectories):
        probability = np.prod([likely for _, likely in group])
        actions = [np.array(taken, np.float64) for taken, _ in group]
        found = estimate_advantages(
            [np.zeros((len(a), 1)) for a in actions],
            [np.append(np.zeros(len(a) - 1), a[-1] * (len(a) > 1)) for a in actions],
            gamma=1.0,
            binning="time",
            **options,
        )
        for a, advantages in zip(actions, found, strict=True):
            gradient[: len(a)] += probability * advantages * (a - 0.5) / num_trajectories
    have_company = 1.0 - 0.5 ** (num_trajectories - 1)
    # 1/8: half of the episodes get there, a half of the actions differs by 1 from the other
    assert_allclose(gradient, [0.125 * (num_trajectories > 1), 0.125 * have_company], atol=1e-12)


def test_what_a_team_mate_gets_is_left_out_also_where_bins_are_revisited() -> None:
    rewards = [np.array([1.0, 2.0]), np.array([4.0, 8.0]), np.array([16.0]), np.array([32.0])]
    observations = [np.zeros((len(r), 1)) for r in rewards]
    estimate = estimate_group(
        observations,
        rewards,
        gamma=1.0,
        binning="universal",
        leave_one_out=True,
        episodes=["a", "a", "b", "c"],
    )
    # Returns at first visits: 3, 12; 16; 32.
    expected = [[3 - 24, 2 - 24], [12 - 24, 8 - 24], [16 - 47 / 3], [32 - 31 / 3]]
    for advantages, wanted in zip(estimate.advantages, expected, strict=True):
        np.testing.assert_allclose(advantages, wanted, rtol=1e-12)
    alone = estimate_group(
        observations[:2],
        rewards[:2],
        gamma=1.0,
        binning="universal",
        leave_one_out=True,
        episodes=["a", "a"],
    )
    assert alone.singleton_fraction == 1.0
    np.testing.assert_array_equal(np.concatenate(alone.advantages), [0.0, -1.0, 0.0, -4.0])


# -- trajectories that go on from an earlier group -------------------------------------------------


def test_time_is_counted_from_the_reset() -> None:
    """One from the start, one from step 1 on: they meet at steps 1 and 2."""
    rewards = [np.array([1.0, 2.0, 4.0]), np.array([8.0, 16.0, 32.0])]  # R = 7 6 4; 56 48 32
    observations = [np.zeros((3, 1))] * 2
    estimate = estimate_group(
        observations, rewards, gamma=1.0, binning="time", first_timesteps=[0, 1]
    )
    assert_array_equal(estimate.advantages[0], [0.0, 6 - 31, 4 - 26])
    assert_array_equal(estimate.advantages[1], [56 - 31, 48 - 26, 0.0])
    assert estimate.num_bins == 4


def test_a_binning_and_features_of_ones_own_are_told_the_time_since_the_reset() -> None:
    seen: dict[str, list[list[int]]] = {"binning": [], "features": []}

    def binning(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        seen["binning"].append(timesteps.tolist())
        return timesteps

    def features(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        seen["features"].append(timesteps.tolist())
        return observations

    binning.keys_last = True  # type: ignore[attr-defined]
    estimate_group(
        [np.zeros((2, 1))] * 2,
        [np.ones(2)] * 2,
        gamma=0.9,
        binning=binning,
        baseline=RidgeBaseline(features=features),
        first_timesteps=[0, 5],
        final_observations=[None, np.zeros((1, 1))],
    )
    assert seen["binning"] == [[0, 1], [5, 6]]
    # The last one is that of the observation after the cut.
    assert seen["features"] == [[7], [0, 1], [5, 6]]


@pytest.mark.parametrize("first_timesteps", [[0], [0, -1], [0, 0.5], [0, 1, 2]])
def test_first_timesteps_that_cannot_be_meant_are_refused(first_timesteps: list[float]) -> None:
    with pytest.raises(ValueError, match="one integer >= 0 per trajectory"):
        estimate_group(
            [np.zeros((1, 1))] * 2,
            [np.ones(1)] * 2,
            gamma=1.0,
            binning="time",
            first_timesteps=first_timesteps,
        )

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_gpg.advantages.returns import lambda_returns, returns_to_go

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=8)
GAMMAS = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0])


def test_three_trajectories_worked_by_hand():
    # gamma 0.5. Trajectory 0, rewards 1 2 4:  4;  2 + 4/2 = 4;  1 + 4/2 = 3
    #            Trajectory 1, reward 8:       8
    #            Trajectory 2, rewards 0 0 0 16:  16; 8; 4; 2
    found = returns_to_go([1, 2, 4, 8, 0, 0, 0, 16], [3, 1, 4], 0.5)
    np.testing.assert_array_equal(found, [3, 4, 4, 8, 2, 4, 8, 16])
    assert found.dtype == np.float64


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, gamma=GAMMAS, seed=st.integers(0, 2**32 - 1))
def test_equals_the_plain_recurrence(lengths, gamma, seed):
    rewards = np.random.default_rng(seed).uniform(-100.0, 100.0, sum(lengths))
    found = np.split(returns_to_go(rewards, lengths, gamma), np.cumsum(lengths)[:-1])
    for ret, reward in zip(found, np.split(rewards, np.cumsum(lengths)[:-1]), strict=True):
        following = 0.0
        for t in reversed(range(len(reward))):
            following = reward[t] + gamma * following
            # Relative to the largest possible return: sums of mixed signs cancel.
            assert abs(ret[t] - following) <= 1e-12 * np.abs(reward[t:]).sum()


def test_long_positive_trajectory_is_accurate_to_the_last_digits():
    # All rewards 1: R[0] = (1 - gamma^T) / (1 - gamma), a geometric sum.
    gamma, length = 0.9999, 100_000
    first = returns_to_go(np.ones(length), [length], gamma)[0]
    np.testing.assert_allclose(first, (1 - gamma**length) / (1 - gamma), rtol=1e-11)


def test_undiscounted_large_rewards_keep_their_small_differences():
    # 1e8 + 0.1 is 100000000.1 in float64, and 100000000.0 in float32.
    np.testing.assert_allclose(returns_to_go([1e8, 0.1], [2], 1.0), [100000000.1, 0.1], rtol=1e-15)


def test_gamma_zero_gives_the_rewards():
    np.testing.assert_array_equal(returns_to_go([3, -1, 2], [2, 1], 0.0), [3, -1, 2])


def test_the_given_rewards_are_not_written_to():
    rewards = np.ones(5)
    returns_to_go(rewards, [5], 1.0)
    np.testing.assert_array_equal(rewards, np.ones(5))


def test_an_infinite_reward_stays_in_its_trajectory():
    found = returns_to_go([1, 1, np.inf, 1, 1], [2, 1, 2], 1.0)
    np.testing.assert_array_equal(found, [2, 1, np.inf, 2, 1])


def test_no_steps_give_no_returns():
    assert returns_to_go([], [], 0.9).shape == (0,)


@pytest.mark.parametrize("gamma", [-0.1, 1.01, float("nan"), float("inf")])
def test_gamma_outside_the_unit_interval_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\]"):
        returns_to_go([1.0], [1], gamma)


@pytest.mark.parametrize(("rewards", "lengths"), [([1, 2, 3], [2]), ([[1], [2]], [2])])
def test_rewards_that_do_not_match_the_lengths_are_refused(rewards, lengths):
    with pytest.raises(ValueError, match="the lengths add up to 2"):
        returns_to_go(rewards, lengths, 0.9)


def test_lambda_returns_worked_by_hand():
    # gamma 0.5, lambda 0.5. Trajectory 0, rewards 1 1, values 2 3:
    #   G[1] = 1;  G[0] = 1 + 0.5 (0.5 * 3 + 0.5 * 1) = 2
    # Trajectory 1, reward 5, value 4: G = 5
    found = lambda_returns([1, 1, 5], [2, 3, 4], [2, 1], gamma=0.5, lambda_=0.5)
    np.testing.assert_array_equal(found, [2, 1, 5])


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, gamma=GAMMAS, lambda_=GAMMAS, seed=st.integers(0, 2**32 - 1))
def test_lambda_returns_minus_values_are_the_advantages_of_gae(lengths, gamma, lambda_, seed):
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(lengths)[:-1]
    rewards, values = rng.uniform(-1.0, 1.0, (2, sum(lengths)))
    found = np.split(lambda_returns(rewards, values, lengths, gamma, lambda_) - values, cuts)
    for adv, r, v in zip(found, np.split(rewards, cuts), np.split(values, cuts), strict=True):
        delta = r + gamma * np.append(v[1:], 0.0) - v
        following = 0.0
        for t in reversed(range(len(r))):
            following = delta[t] + gamma * lambda_ * following
            assert adv[t] == pytest.approx(following, abs=1e-12 * len(r))


def test_lambda_one_is_the_return_to_the_last_bit_and_zero_looks_one_step_ahead():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 50))
    lengths = [20, 30]
    one = lambda_returns(rewards, values, lengths, 0.9, 1.0)
    np.testing.assert_array_equal(one, returns_to_go(rewards, lengths, 0.9))
    following = np.append(values[1:], 0.0)
    following[19] = 0.0
    zero = lambda_returns(rewards, values, lengths, 0.9, 0.0)
    np.testing.assert_array_equal(zero, rewards + 0.9 * following)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lambda_": 1.1}, r"lambda_ must lie in \[0, 1\]"),
        ({"gamma": 1.5, "lambda_": 0.5}, r"gamma must lie in \[0, 1\]"),
        ({"lengths": [3]}, "the lengths add up to 3"),
    ],
)
def test_lambda_returns_refuse_what_returns_refuse(settings, match):
    given = {"lengths": [2], "gamma": 0.9, "lambda_": 0.9, **settings}
    with pytest.raises(ValueError, match=match):
        lambda_returns([1.0, 1.0], [0.0, 0.0], **given)

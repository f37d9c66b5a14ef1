"""Proposition 2 and its corollary in numbers, on an MDP whose gradient is known exactly.

Two states, two actions, three steps, a tabular softmax policy. It has 2 * (2 * 2)^3 = 128
trajectories: few enough to sum over, so expectations are exact, and a group is a draw from a table.
"""

import itertools

import numpy as np
import pytest

from rllib_gpg.advantages import BinBaseline, RidgeBaseline
from rllib_gpg.advantages.estimator import estimate_advantages, estimate_group

STEPS = 3
START = np.array([0.6, 0.4])  # P(s0)
MOVE = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]])  # P(s' | s, a)
REWARD = np.array([[[1.0, 0.0], [-1.0, 2.0]], [[0.5, 3.0], [0.0, -2.0]]])  # r(s, a, s')
THETA = np.array([[0.3, -0.4], [-0.2, 0.5]])  # logits of pi(a | s)

# The table: 128 trajectories of states s0..s3 and actions a0..a2.
STATES = np.array(
    [(s, *path[1::2]) for s in (0, 1) for path in itertools.product((0, 1), repeat=2 * STEPS)]
)
ACTIONS = np.array([path[0::2] for _ in (0, 1) for path in itertools.product((0, 1), repeat=6)])
REWARDS = REWARD[STATES[:, :-1], ACTIONS, STATES[:, 1:]]
TOTALS = REWARDS.sum(axis=1)


def policy(theta):
    return np.exp(theta) / np.exp(theta).sum(axis=1, keepdims=True)


def probabilities(theta):
    """P(trajectory), [128]."""
    chosen = policy(theta)[STATES[:, :-1], ACTIONS] * MOVE[STATES[:, :-1], ACTIONS, STATES[:, 1:]]
    return START[STATES[:, 0]] * chosen.prod(axis=1)


# grad log pi(a|s) = one-hot of (s, a) minus pi(.|s) in row s: [128, step, theta as 4 numbers]
SCORE = np.einsum(
    "nts,nta->ntsa",
    np.eye(2)[STATES[:, :-1]],
    np.eye(2)[ACTIONS] - policy(THETA)[STATES[:, :-1]],
).reshape(128, STEPS, 4)

P = probabilities(THETA)
GRADIENT = P * TOTALS @ SCORE.sum(axis=1)  # E[R grad log P(trajectory)]
TOTALS_STD = np.sqrt(P @ TOTALS**2 - (P @ TOTALS) ** 2)


def sample_gradient(rng, group_size, **options):
    """One draw of g_N = 1/N sum_n sum_t A[n,t] grad log pi(a|s), and the std of its returns."""
    rows = rng.choice(128, size=group_size, p=P)
    advantages = estimate_advantages(STATES[rows, :-1], REWARDS[rows], gamma=1.0, **options)
    gradient = np.einsum("nt,ntp->p", np.array(advantages), SCORE[rows]) / group_size
    return gradient, TOTALS[rows].std()


def sample_gradients(group_size, repeats, **options):
    rng = np.random.default_rng([group_size, repeats])
    return [sample_gradient(rng, group_size, **options) for _ in range(repeats)]


def rms(errors):
    return np.sqrt(np.square(errors).sum(axis=-1).mean())


def test_the_table_holds_all_trajectories():
    assert len({(*s, *a) for s, a in zip(STATES.tolist(), ACTIONS.tolist(), strict=True)}) == 128
    np.testing.assert_allclose(P.sum(), 1.0, rtol=1e-12)


def test_the_exact_gradient_is_that_of_finite_differences():
    step = 1e-5
    for i, direction in enumerate(np.eye(4).reshape(4, 2, 2) * step):
        up, down = (probabilities(THETA + sign * direction) @ TOTALS for sign in (1, -1))
        assert GRADIENT[i] == pytest.approx((up - down) / (2 * step), abs=1e-8)
    assert np.abs(GRADIENT).max() > 0.1  # not a stationary point: there is something to estimate


SIZES = [16, 64, 256, 1024, 4096]


@pytest.mark.parametrize("binning", ["time", "state"])
def test_error_falls_like_one_over_sqrt_group_size(binning):
    plain, normalised, last = [], [], None
    for size in SIZES:
        last = sample_gradients(size, 60, binning=binning)
        plain.append(rms([g - GRADIENT for g, _ in last]))
        normalised.append(rms([g / std - GRADIENT / TOTALS_STD for g, std in last]))
    for errors in (plain, normalised):  # Proposition 2, and its corollary
        slope = np.polyfit(np.log(SIZES), np.log(errors), 1)[0]
        assert -0.6 < slope < -0.4

    # Without bias the mean of 60 repetitions is off by 1/sqrt(60) of the error of one.
    assert rms([np.mean([g for g, _ in last], axis=0) - GRADIENT]) < 3 * plain[-1] / np.sqrt(60)
    assert plain[-1] < 0.05 * np.linalg.norm(GRADIENT)


def mean_and_its_error(group_size, repeats, **options):
    gradients = np.array([g for g, _ in sample_gradients(group_size, repeats, **options)])
    return gradients.mean(axis=0), gradients.std(axis=0) / np.sqrt(repeats)


def test_time_bins_shrink_the_gradient_of_a_small_group_by_n_minus_1_over_n():
    # The own return is 1/N of the mean it is compared with: E[g_N] = (1 - 1/N) gradient.
    mean, error = mean_and_its_error(4, 4000, binning="time")
    assert (np.abs(mean - 0.75 * GRADIENT) < 4 * error).all()
    assert (np.abs(mean - GRADIENT) > 4 * error).any()  # the test can tell


@pytest.mark.parametrize(("binning", "group_size"), [("time", 4), ("state", 16)])
def test_leave_one_out_is_unbiased_in_small_groups(binning, group_size):
    mean, error = mean_and_its_error(
        group_size, 16_000 // group_size, binning=binning, leave_one_out=True
    )
    assert (np.abs(mean - GRADIENT) < 4 * error).all()


def gradient_over_all_pairs(**options):
    """E[g] for starts of two episodes each: exact, since a start is compared with nobody else.

    One group of all pairs of trajectories that begin in one state, each pair a start.
    """
    pairs = [(i, j) for i, j in itertools.product(range(128), repeat=2) if i // 64 == j // 64]
    rows = np.array(pairs).ravel()
    starts = np.repeat(np.arange(len(pairs)), 2).tolist()
    advantages = estimate_advantages(
        STATES[rows, :-1], REWARDS[rows], gamma=1.0, binning="time", starts=starts, **options
    )
    of_pair = np.einsum("nt,ntp->np", np.array(advantages), SCORE[rows]).reshape(-1, 2, 4).mean(1)
    # P(s0) P(i | s0) P(j | s0)
    probability = np.array([P[i] * P[j] / START[STATES[i, 0]] for i, j in pairs])
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-12)
    return probability @ of_pair


def test_leave_one_out_is_unbiased_where_episodes_share_their_starts():
    np.testing.assert_allclose(gradient_over_all_pairs(leave_one_out=True), GRADIENT, atol=1e-12)


def test_the_own_return_shrinks_the_gradient_by_that_of_a_start_where_these_are_shared():
    # Two episodes per start: by half, however many starts there are.
    np.testing.assert_allclose(gradient_over_all_pairs(), 0.5 * GRADIENT, atol=1e-12)


@pytest.mark.parametrize(
    ("baseline", "binning", "group_size"),
    [
        (RidgeBaseline(num_features=4), "time", 4),
        (RidgeBaseline(num_features=4), "state", 16),
        (BinBaseline(decay=0.5), "time", 4),
    ],
)
def test_baselines_that_remember_are_unbiased_in_small_groups(baseline, binning, group_size):
    # Each group is compared with those before it. Given these its gradient is right on average, so
    # the errors of a chain of groups are uncorrelated.
    rng = np.random.default_rng(group_size)
    memory, gradients = None, []
    for _ in range(3000):
        rows = rng.choice(128, size=group_size, p=P)
        estimate = estimate_group(
            np.eye(2)[STATES[rows, :-1]],
            REWARDS[rows],
            gamma=1.0,
            binning=binning,
            baseline=baseline,
            memory=memory,
        )
        memory = estimate.memory
        advantages = np.array(estimate.advantages)
        gradients.append(np.einsum("nt,ntp->p", advantages, SCORE[rows]) / group_size)
    mean, error = np.mean(gradients, axis=0), np.std(gradients, axis=0) / np.sqrt(3000)
    assert (np.abs(mean - GRADIENT) < 4 * error).all()
    if baseline.sees_state and binning == "time":
        # It has found what the state is worth: less noise than with leave-one-out time bins.
        _, plain = mean_and_its_error(group_size, 3000, binning="time", leave_one_out=True)
        assert rms(error[None]) < 0.9 * rms(plain[None])

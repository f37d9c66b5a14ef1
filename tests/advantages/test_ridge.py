"""`RidgeBaseline`: equal to its formulas, and the invariants that follow from them."""

import pickle
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rllib_gpg.advantages import Baseline, BinBaseline, RidgeBaseline, Valuation
from rllib_gpg.advantages.baselines.ridge import RIDGE_SHARE
from rllib_gpg.advantages.binning import (
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.estimator import estimate_advantages, estimate_group
from rllib_gpg.advantages.returns import returns_to_go
from tests.advantages.naive_ridge import naive_ridge
from tests.advantages.ridge_groups import (
    SMALL,
    estimates,
    flat,
    random_group,
    random_groups,
    values,
)


@st.composite
def sequences(draw):
    """3 groups of 1-4 trajectories of 1-20 steps, the later ones perhaps longer than all before."""
    lengths = st.lists(st.integers(1, 20), min_size=1, max_size=4)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1.0, 1e4]))
    return [random_group(rng, draw(lengths), scale=scale) for _ in range(3)], scale


@pytest.mark.parametrize(
    "binning", [TimeBinning(), UniversalBinning(), StateBinning(), SpatialTimeBinning(2.0)], ids=str
)
@settings(deadline=None, max_examples=25)
@given(
    sequence=sequences(),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lambda_=st.sampled_from([0.0, 0.9, 1.0]),
    decay=st.sampled_from([0.0, 0.5, 0.8]),
)
def test_equals_the_naive_version(binning, sequence, gamma, lambda_, decay):
    groups, scale = sequence
    lambda_ = lambda_ if decay else 1.0  # without weights, values don't see the state
    found = estimates(
        groups,
        gamma=gamma,
        lambda_=lambda_,
        binning=binning,
        baseline=RidgeBaseline(num_features=3, decay=decay),
    )
    expected = naive_ridge(
        groups, gamma=gamma, lambda_=lambda_, binning=binning, num_features=3, decay=decay
    )
    for estimate, (advantages, _) in zip(found, expected, strict=True):
        assert_allclose(flat(estimate), np.concatenate(advantages), rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("binning", [TimeBinning(), UniversalBinning()], ids=str)
def test_equals_the_naive_version_over_many_groups_strengths_included(binning):
    groups = random_groups(3, 10, lengths=(12, 9, 12, 7, 15, 3))
    options = {"gamma": 0.95, "lambda_": 0.9, "binning": binning}
    found = estimates(groups, baseline=RidgeBaseline(num_features=8, seed=4), **options)
    expected = naive_ridge(groups, num_features=8, decay=0.8, seed=4, **options)
    strengths = [strength for _, strength in expected]
    assert len(set(strengths)) > 2  # the choice moves
    shares = [1.0 / (1.0 + strength) for strength in strengths]
    assert [estimate.metrics[RIDGE_SHARE] for estimate in found] == shares
    for estimate, (advantages, _) in zip(found, expected, strict=True):
        assert_allclose(flat(estimate), np.concatenate(advantages), rtol=1e-9, atol=1e-9)


def test_blocks_and_the_limit_on_bins_change_nothing_that_fits(monkeypatch):
    groups = random_groups(5, 4)
    for binning in ("time", "universal", "state"):
        whole = estimates(groups, binning=binning)
        with monkeypatch.context() as patch:
            patch.setattr("rllib_gpg.advantages.baselines.regression._BLOCK", 7)
            patch.setattr("rllib_gpg.advantages.baselines.carried.MAX_BINS", 49)
            pieces = estimates(groups, binning=binning)
        for one, other in zip(whole, pieces, strict=True):
            assert_allclose(flat(one), flat(other), rtol=0, atol=1e-12)


def test_it_predicts_what_bins_cannot():
    """Returns that are a function of the state: after some groups the ridge explains them."""
    found = estimates(random_groups(0, 12, lengths=[20] * 8), baseline="ridge", gamma=0.0)
    assert found[0].baseline_explained_variance == found[0].bins_explained_variance
    assert found[0].bins_explained_variance < 0.0 < 0.8 < found[-1].baseline_explained_variance
    assert found[0].metrics[RIDGE_SHARE] == 0.0 < 0.5 < found[-1].metrics[RIDGE_SHARE]


def test_noise_that_no_state_explains_is_left_to_the_bins():
    rng = np.random.default_rng(1)
    groups = [
        ([rng.normal(size=(20, 3)) for _ in range(4)], [rng.normal(size=20) for _ in range(4)])
        for _ in range(8)
    ]
    shares = [e.metrics[RIDGE_SHARE] for e in estimates(groups, baseline="ridge")]
    assert max(shares) <= 0.25


@pytest.mark.parametrize("binning", ["time", "universal", "state"])
def test_the_first_group_is_leave_one_out_to_the_last_bit(binning):
    ((observations, rewards),) = random_groups(2, 1, lengths=(12, 1, 9, 15))
    options = {"gamma": 0.9, "binning": binning}
    found = estimate_advantages(observations, rewards, baseline="ridge", **options)
    expected = estimate_advantages(observations, rewards, leave_one_out=True, **options)
    for a, b in zip(found, expected, strict=True):
        assert_array_equal(a, b)
    if binning == "time":
        assert (found[3][12:] == 0.0).all()  # singletons


@pytest.mark.parametrize("binning", ["time", "state"])
@pytest.mark.parametrize("num_before", [0, 1, 4])
def test_no_trajectory_moves_its_own_values(binning, num_before):
    *before, (observations, rewards) = random_groups(7, num_before + 1, lengths=(12, 9, 14, 7))
    memory = estimates(before, binning=binning)[-1].memory["baseline"] if before else None
    plain, alone = values(observations, rewards, memory, binning)
    for n in range(4):
        changed = [r + 100.0 * (m == n) for m, r in enumerate(rewards)]
        found, _ = values(observations, changed, memory, binning)
        shared = ~alone[n]
        assert shared.any()
        # To rounding: sums are taken over all, and the own is subtracted.
        assert_allclose(found[n][shared], plain[n][shared], rtol=0, atol=1e-9)
        assert not np.allclose(found[(n + 1) % 4], plain[(n + 1) % 4])  # but those of others


def test_lambda_one_gives_returns_minus_values():
    *before, (observations, rewards) = random_groups(8, 4)
    memory = estimates(before)[-1].memory
    expected, _ = values(observations, rewards, memory["baseline"])
    found = estimate_group(
        observations, rewards, gamma=0.9, binning="time", baseline=SMALL, memory=memory
    )
    returns = [returns_to_go(reward, [len(reward)], 0.9) for reward in rewards]
    for a, r, v in zip(found.advantages, returns, expected, strict=True):
        assert_allclose(a, r - v, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class ZeroWeights(Baseline):
    """A ridge whose weights are zero, which keeps the own entries and forgets everything."""

    sees_state = True

    def values(self, group, returns, memory):
        return Valuation((group.sum_in_bins(returns) / group.counts)[group.bins])


def test_with_weights_zero_and_equal_lengths_lambda_is_a_smaller_gamma():
    ((observations, rewards),) = random_groups(9, 1, lengths=[15] * 5)
    found = estimate_advantages(
        observations, rewards, gamma=0.9, lambda_=0.8, binning="time", baseline=ZeroWeights()
    )
    expected = estimate_advantages(observations, rewards, gamma=0.9 * 0.8, binning="time")
    assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lambda_", [0.9, 1.0])
def test_rewards_times_c_give_advantages_times_c_and_the_same_strengths(lambda_):
    groups = random_groups(10, 5)
    plain = estimates(groups, lambda_=lambda_)
    for c in (4.0, 1e-3, 1e5):
        scaled = estimates([(o, [c * r for r in rs]) for o, rs in groups], lambda_=lambda_)
        for one, other in zip(plain, scaled, strict=True):
            assert_allclose(flat(other), c * flat(one), rtol=1e-9, atol=1e-9 * c)
            assert one.metrics == other.metrics


def test_permuting_trajectories_permutes_advantages():
    groups = random_groups(11, 4, lengths=(12, 9, 14, 7))
    order = [2, 0, 3, 1]
    permuted = [([o[n] for n in order], [r[n] for n in order]) for o, r in groups]
    options = {"lambda_": 0.9}
    for one, other in zip(
        estimates(groups, **options), estimates(permuted, **options), strict=True
    ):
        for place, n in enumerate(order):
            assert_allclose(other.advantages[place], one.advantages[n], rtol=0, atol=1e-9)


def test_observations_known_from_the_bin_add_nothing_to_bins():
    groups = [([np.arange(len(o))[:, None] for o in os], rs) for os, rs in random_groups(14, 5)]
    for estimate in estimates(groups):
        assert estimate.metrics[RIDGE_SHARE] == 0.0


def test_longer_than_ever_and_groups_of_one_stay_finite():
    groups = [g for n in range(1, 8) for g in random_groups(n, 1, lengths=(5 * n,))]
    found = estimates(groups, lambda_=0.9, normalize=True)
    for n, estimate in enumerate(found):
        (advantages,) = estimate.advantages
        assert np.isfinite(advantages).all()
        # Where earlier groups have been there is a signal; behind there is none.
        assert (np.abs(advantages[: 5 * n]) > 1e-6).all()
        assert_allclose(advantages[5 * n :], 0.0, atol=1e-9)


def test_advantages_of_a_group_of_one_keep_their_sign_when_normalised():
    """An episode better than those before is good throughout: its own mean must stay in."""
    groups = [([np.zeros((10, 1))], [np.full(10, reward)]) for reward in (1.0, 1.0, 1.0, 2.0)]
    found = estimates(groups, normalize=True, gamma=1.0)
    assert_array_equal(flat(found[0]), np.zeros(10))
    assert_allclose(flat(found[2]), np.zeros(10), atol=1e-9)
    assert (flat(found[3]) > 0.0).all()
    # A = 1..10 steps to go; the unit: all steps but the first group's, 0.9 per group.
    unit = np.sqrt((np.arange(1.0, 11.0) ** 2).sum() / (10 * (1 + 0.9 + 0.81)))
    assert_allclose(flat(found[3]), np.arange(10.0, 0.0, -1.0) / unit, rtol=1e-9)


def test_a_group_of_one_has_a_unit_from_its_first_group_on():
    """Revisits of a bin have an advantage before there is another episode to compare with."""
    for binning in ("universal", "state"):
        for estimate in estimates(
            random_groups(4, 3, lengths=(30,)), binning=binning, normalize=True
        ):
            assert 0.1 < np.abs(flat(estimate)).max() < 10.0


@pytest.mark.parametrize("lambda_", [0.9, 0.98])
def test_a_first_visit_alone_in_its_bin_has_no_advantage(lambda_):
    """Its value is its own return: the worse later values say it did, the better it would look."""
    groups = [
        (
            [np.vstack([rng.uniform(10.0, 1e6, (1, 2)), o]) for o in os],
            [np.append(0.0, r) for r in rs],
        )
        for rng in [np.random.default_rng(0)]
        for os, rs in random_groups(19, 12, lengths=[30] * 4)
    ]
    found = estimates(groups, binning=SpatialTimeBinning(5.0), lambda_=lambda_)
    assert found[-1].metrics[RIDGE_SHARE] > 0.0
    for estimate in found:
        for advantages in estimate.advantages:
            assert_allclose(advantages[0], 0.0, atol=1e-12)
            assert (advantages[1:] != 0.0).any()


def test_memory_is_left_as_it_is_and_survives_pickling():
    *before, (observations, rewards) = random_groups(15, 4)
    memory = estimates(before)[-1].memory
    saved = pickle.dumps(memory)
    options = {"gamma": 0.9, "binning": "time", "baseline": SMALL, "lambda_": 0.9}
    once = estimate_group(observations, rewards, memory=memory, **options)
    again = estimate_group(observations, rewards, memory=pickle.loads(saved), **options)
    assert_array_equal(flat(once), flat(again))
    assert pickle.dumps(memory) == saved


def test_weights_of_a_version_with_other_functions_count_for_nothing(caplog):
    """A checkpoint from before waves names its features by three numbers."""
    *before, (observations, rewards) = random_groups(15, 4)
    memory = estimates(before)[-1].memory
    memory["baseline"]["kind"] = (3, 5, 0)
    options = {"gamma": 0.9, "binning": "time", "baseline": SMALL, "lambda_": 0.9}
    found = estimate_group(observations, rewards, memory=memory, **options)
    assert_array_equal(flat(found), flat(estimate_group(observations, rewards, **options)))
    assert "(3, 5, 0); now there are 5 waves of 3 numbers (seed 0): the ridge" in caplog.text


def test_keys_that_do_not_last_are_not_carried_but_weights_are():
    def clusters(observations, timesteps):
        return timesteps

    groups = random_groups(16, 8, lengths=[20] * 8)
    passing = estimates(groups, binning=clusters, gamma=0.0)
    clusters.keys_last = clusters.counts_time = True
    lasting = estimates(groups, binning=clusters, gamma=0.0)
    assert len(passing[-1].memory["baseline"]["bins"]["keys"]) == 0
    assert len(lasting[-1].memory["baseline"]["bins"]["keys"]) == 20
    assert passing[-1].baseline_explained_variance > 0.5
    for one, other in zip(lasting, estimates(groups, gamma=0.0), strict=True):
        assert_array_equal(flat(one), flat(other))


def test_memory_is_in_proportion_to_the_group_and_bins_are_limited(monkeypatch):
    monkeypatch.setattr("rllib_gpg.advantages.baselines.carried.MAX_BINS", 1000)
    monkeypatch.setattr("rllib_gpg.advantages.baselines.regression._BLOCK", 512)
    rng = np.random.default_rng(0)
    observations = [rng.normal(size=(20_000, 8)).astype(np.float32) for _ in range(4)]
    rewards = [rng.normal(size=20_000) for _ in range(4)]
    options = {"gamma": 0.9, "binning": SpatialTimeBinning(5.0), "baseline": "ridge"}
    memory = estimate_group(observations, rewards, **options).memory
    tracemalloc.start()
    memory = estimate_group(observations, rewards, memory=memory, **options).memory
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(memory["baseline"]["bins"]["keys"]) == 1000
    # The features of all steps at once would take 82 * 8 bytes a step.
    assert peak < 0.6 * 80_000 * 82 * 8


@pytest.mark.parametrize(
    "other", [RidgeBaseline(num_features=6), RidgeBaseline(num_features=5, seed=1), "wider", "bins"]
)
def test_what_is_remembered_of_other_features_or_baselines_counts_for_nothing(other):
    """A run goes on with other settings: a search restores the state of another trial."""
    *before, (observations, rewards) = random_groups(0, 4)
    options = {"gamma": 0.9, "binning": "time", "baseline": SMALL}
    if other == "wider":
        before = [([np.column_stack([o, o]) for o in os], rs) for os, rs in before]
        memory = estimates(before)[-1].memory
    else:
        baseline = BinBaseline(decay=0.5) if other == "bins" else other
        memory = estimates(before, baseline=baseline)[-1].memory
    found = estimate_group(observations, rewards, memory=memory, **options)
    fresh = estimate_group(observations, rewards, **options)
    assert_array_equal(flat(found), flat(fresh))
    # Other than after groups of the same kind.
    same_kind = estimates(random_groups(0, 4))[-1]
    assert not np.allclose(flat(same_kind), flat(fresh))


def test_a_large_level_of_returns_rounds_nothing_away():
    """1e9 more at the end of each trajectory, undiscounted: the same advantages."""
    plain = random_groups(23, 4, lengths=[10] * 4)
    raised = [(os, [r + 1e9 * (np.arange(10) == 9) for r in rs]) for os, rs in plain]
    found = [estimates(groups, gamma=1.0, lambda_=0.9)[-1] for groups in (plain, raised)]
    assert found[0].metrics == found[1].metrics
    assert_allclose(flat(found[0]), flat(found[1]), atol=1e-4)

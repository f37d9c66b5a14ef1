"""The protocol of baselines, bins carried over groups, and what may be given as a baseline."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rllib_gpg.advantages import Baseline, BinBaseline, RidgeBaseline, Valuation
from rllib_gpg.advantages.baselines import resolve_baseline
from rllib_gpg.advantages.baselines.carried import CarriedBins
from rllib_gpg.advantages.binning import SpatialBinning, TimeBinning, UniversalBinning
from rllib_gpg.advantages.estimator import estimate_advantages, estimate_group
from rllib_gpg.advantages.grouping import find_keys

GROUP = {"gamma": 1.0, "binning": "time"}
FIRST = [np.zeros(2), np.zeros(1)], [np.array([1.0, 2.0]), np.array([5.0])]  # R = 3 2; 5
SECOND = [np.zeros(3)], [np.array([1.0, 0.0, 4.0])]  # R = 5 4 4


# -- bins that are carried -------------------------------------------------------------------------


def test_carried_bins_worked_by_hand():
    first = estimate_group(*FIRST, **GROUP, baseline=BinBaseline(decay=0.5))
    # Without the own: b = 5 at t=0 for the first, 3 for the second; t=1 is alone.
    assert_array_equal(np.concatenate(first.advantages), [3 - 5, 0, 5 - 3])
    # Carried: weight 1/2 each. t=0: mean of 3 and 5; t=1: 2; t=2: nothing, alone.
    second = estimate_group(*SECOND, **GROUP, baseline=BinBaseline(decay=0.5), memory=first.memory)
    assert_array_equal(np.concatenate(second.advantages), [5 - 4, 4 - 2, 0])
    # Third, two alike: t=0: (3 + 5) / 4 + 5 / 2 and the other's 7, over 1/2 + 1/2 + 1.
    third = estimate_group(
        [np.zeros(1)] * 2,
        [[7.0], [7.0]],
        **GROUP,
        baseline=BinBaseline(decay=0.5),
        memory=second.memory,
    )
    assert_allclose(third.advantages, np.full((2, 1), 7 - (2 + 2.5 + 7) / 2), rtol=1e-15)
    assert third.baseline_explained_variance == 0.0  # equal returns


def test_carried_bins_explain_what_a_group_of_one_cannot():
    rng = np.random.default_rng(0)
    memory, plain = None, None
    for _ in range(5):
        observations, rewards = [np.zeros(30)], [np.ones(30) + 0.1 * rng.normal(size=30)]
        plain = estimate_group(observations, rewards, **GROUP, normalize=True)
        found = estimate_group(
            observations,
            rewards,
            **GROUP,
            baseline=BinBaseline(decay=0.8),
            memory=memory,
            normalize=True,
        )
        memory = found.memory
    assert plain.baseline_explained_variance == found.bins_explained_variance == 0.0
    assert not np.any(plain.advantages)
    assert found.baseline_explained_variance > 0.9
    assert np.all(found.advantages)


def test_plain_bins_remember_nothing():
    assert estimate_group(*FIRST, **GROUP).memory is None
    found = estimate_group(*FIRST, **GROUP, memory=None, baseline=BinBaseline())
    assert found.memory is None
    for a, b in zip(found.advantages, estimate_advantages(*FIRST, **GROUP), strict=True):
        assert_array_equal(a, b)


def test_bins_are_forgotten_when_nothing_has_been_there_for_long():
    memory = estimate_group(*FIRST, **GROUP, baseline=BinBaseline(decay=0.5)).memory
    for n in range(12):
        memory = estimate_group(
            [np.zeros(1)], [[1.0]], **GROUP, baseline=BinBaseline(decay=0.5), memory=memory
        ).memory
        keys = memory["baseline"]["keys"]
        # The bin t=1 began with weight 1/2.
        assert len(keys) == (2 if 0.5 ** (n + 2) >= 1e-3 else 1)


def test_keys_of_another_width_are_those_of_another_binning():
    def pairs(observations, timesteps):
        return np.column_stack([timesteps, timesteps])

    pairs.keys_last = True
    options = {"gamma": 1.0, "baseline": BinBaseline(decay=0.5)}
    memory = estimate_group(*FIRST, binning="time", **options).memory
    found = estimate_group(*SECOND, binning=pairs, memory=memory, **options)
    assert not np.any(found.advantages)
    assert found.memory["baseline"]["keys"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_find_keys():
    among = np.array([[3, 1], [-7, 2**40], [3, 2]])
    keys = np.array([[3, 2], [3, 3], [-7, 2**40], [3, 1], [2**62, -(2**62)]])
    assert find_keys(keys, among).tolist() == [2, -1, 1, 0, -1]
    assert find_keys(keys, among[:0]).tolist() == [-1] * 5
    assert find_keys(keys, among[:, :1]).tolist() == [-1] * 5


def test_the_most_visited_bins_are_carried(monkeypatch):
    monkeypatch.setattr("rllib_gpg.advantages.baselines.carried.MAX_BINS", 2)
    group = CarriedBins(np.arange(4)[:, None], np.array([1.0, 3.0, 1.0, 2.0]), np.ones((4, 1)))
    carried = CarriedBins.none(1).and_then(group, 0.5)
    assert carried.keys[:, 0].tolist() == [1, 3]
    assert carried.counts.tolist() == [1.5, 1.0]


# -- a baseline of one's own -----------------------------------------------------------------------


@dataclass(frozen=True)
class MeanOfLastGroup(Baseline):
    """One number: the mean first return of the group before."""

    @property
    def remembers(self):
        return True

    def values(self, group, returns, memory):
        mean = returns[group.timesteps == 0].mean()
        values = np.full_like(returns, 0.0 if memory is None else memory)
        return Valuation(values, memory=mean, metrics={"mean": mean})


def test_a_baseline_of_ones_own():
    first = estimate_group(*FIRST, **GROUP, baseline=MeanOfLastGroup())
    assert_array_equal(np.concatenate(first.advantages), [3, 2, 5])
    second = estimate_group(*SECOND, **GROUP, baseline=MeanOfLastGroup(), memory=first.memory)
    assert_array_equal(np.concatenate(second.advantages), [1, 0, 0])
    assert second.metrics == {"mean": 5.0}


def test_a_baseline_of_ones_own_changes_no_returns():
    class Subtracts(Baseline):
        def values(self, group, returns, memory):
            returns -= returns.mean()
            return Valuation(returns)

    with pytest.raises(ValueError, match="read-only"):
        estimate_group(*FIRST, **GROUP, baseline=Subtracts())


def test_a_baseline_of_ones_own_without_values_is_refused_at_once():
    class Empty(Baseline):
        pass

    with pytest.raises(TypeError, match="Empty needs a method values"):
        resolve_baseline(Empty())


def test_a_baseline_of_ones_own_is_told_how_to_say_that_it_sees_the_state():
    with pytest.raises(
        ValueError, match=r"MeanOfLastGroup do, it says so: `sees_state = True`\. Or"
    ):
        estimate_group(*FIRST, **GROUP, baseline=MeanOfLastGroup(), lambda_=0.9)


def test_a_baseline_of_ones_own_gives_a_valuation():
    class GivesAnArray(Baseline):
        def values(self, group, returns, memory):
            return np.zeros_like(returns)

    with pytest.raises(TypeError, match=r"GivesAnArray.* must give a Valuation, got ndarray"):
        estimate_group(*FIRST, **GROUP, baseline=GivesAnArray())


def test_a_baseline_of_ones_own_that_completes_nothing_says_so():
    class Sees(MeanOfLastGroup):
        sees_state = True

    with pytest.raises(ValueError, match="no method `final_values`"):
        estimate_group(*SECOND, **GROUP, baseline=Sees(), final_observations=[np.zeros(1)])


def test_a_baseline_of_ones_own_that_forgets_to_say_that_it_remembers_is_told():
    class Forgets(Baseline):
        def values(self, group, returns, memory):
            return Valuation(np.zeros_like(returns), memory={"something": 1})

    with pytest.raises(ValueError, match="let its property `remembers` say so"):
        estimate_group(*SECOND, **GROUP, baseline=Forgets())


@pytest.mark.parametrize(
    ("first", "second", "is_known"),
    [
        (SpatialBinning(0.5), SpatialBinning(0.5), True),
        (SpatialBinning(0.5), SpatialBinning(2.0), False),
        (TimeBinning(), UniversalBinning(), False),
    ],
    ids=str,
)
def test_bins_of_another_binning_are_not_taken_for_ones_own(first, second, is_known):
    observations, rewards = [np.zeros((1, 1))], [np.array([7.0])]
    options = {"gamma": 1.0, "baseline": BinBaseline(decay=0.5)}
    memory = estimate_group(observations, rewards, binning=first, **options).memory
    found = estimate_group(
        observations, [np.array([9.0])], binning=second, memory=memory, **options
    )
    assert found.advantages[0][0] == (9.0 - 7.0 if is_known else 0.0)


# -- what may be given -----------------------------------------------------------------------------


def test_names_and_objects():
    assert resolve_baseline("bins") == BinBaseline()
    assert resolve_baseline("bins", leave_one_out=True) == BinBaseline(leave_one_out=True)
    assert resolve_baseline("bins", decay=0.3) == BinBaseline(decay=0.3)
    assert resolve_baseline("ridge") == RidgeBaseline()
    assert resolve_baseline("ridge", decay=0.3, leave_one_out=True) == RidgeBaseline(decay=0.3)
    ridge = RidgeBaseline(num_features=3)
    assert resolve_baseline(ridge, leave_one_out=True) is ridge


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"baseline": "rigde"}, ValueError, "Unknown baseline 'rigde'.*nearest is 'ridge'"),
        ({"baseline": RidgeBaseline}, TypeError, "a name or an object"),
        ({"baseline": lambda group: 0}, TypeError, "derives from"),
        ({"baseline": RidgeBaseline(), "decay": 0.5}, ValueError, "its own setting"),
        ({"baseline": BinBaseline(), "leave_one_out": True}, ValueError, "set leave_one_out there"),
        ({"baseline": "bins", "decay": 1.0}, ValueError, r"decay must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_a_baseline_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        resolve_baseline(**given)


@pytest.mark.parametrize("baseline", ["bins", BinBaseline(decay=0.8), MeanOfLastGroup()])
def test_lambda_and_completion_are_refused_without_a_baseline_that_sees_the_state(baseline):
    with pytest.raises(ValueError, match=r"lambda_=0.9 .*don't see the state.*baseline='ridge'"):
        estimate_advantages(*FIRST, **GROUP, baseline=baseline, lambda_=0.9)
    with pytest.raises(ValueError, match=r"truncated episode.*baseline='ridge'"):
        estimate_advantages(*FIRST, **GROUP, baseline=baseline, final_observations=[None, None])


def test_lambda_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"lambda_ must be a number in \[0, 1\]"):
        estimate_advantages(*FIRST, **GROUP, baseline="ridge", lambda_=1.5)

"""Bins that hold the trajectories of one start only."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_gpg.advantages import BinBaseline, GroupAdvantageEstimation, RidgeBaseline
from rllib_gpg.advantages.binning import (
    SpatialTimeBinning,
    StateBinning,
    TimeBinning,
    UniversalBinning,
)
from rllib_gpg.advantages.connector import STARTS
from rllib_gpg.advantages.estimator import estimate_advantages, estimate_group
from rllib_gpg.advantages.returns import are_equal
from tests.advantages.naive import naive_advantages


def steps_and_turns(observations, timesteps):
    """A custom binning: negative keys too, of two integers."""
    return np.column_stack([-timesteps, np.cumsum(observations[:, 0] > 0)])


BINNINGS = [
    TimeBinning(),
    UniversalBinning(),
    StateBinning(),
    SpatialTimeBinning(2.0),
    steps_and_turns,
]
# Labels of any kind, in any order, and not as many trajectories of each.
LABELS = [7, "b", 7, (1, 2), "b", 7, None, (1, 2), "b", 7]


def random_group(seed, labels=LABELS):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, len(labels))
    observations = [rng.integers(-1, 3, (length, 2)) for length in lengths]
    return observations, [rng.normal(10.0, 10.0, length) for length in lengths]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("binning", BINNINGS, ids=lambda binning: type(binning).__name__)
def test_equals_naive_algorithm_2_with_bins_per_start(binning, leave_one_out, normalize, seed):
    group = random_group(seed)
    options = {
        "gamma": 0.9,
        "binning": binning,
        "leave_one_out": leave_one_out,
        "normalize": normalize,
        "starts": LABELS,
    }
    found, expected = estimate_advantages(*group, **options), naive_advantages(*group, **options)
    for fast, slow in zip(found, expected, strict=True):
        assert fast.dtype == np.float64
        assert_allclose(fast, slow, rtol=1e-9, atol=1e-9)
    # It makes a difference.
    of_all = estimate_advantages(*group, **{**options, "starts": None})
    assert not np.allclose(np.concatenate(found), np.concatenate(of_all))


@pytest.mark.parametrize("binning", BINNINGS, ids=lambda binning: type(binning).__name__)
def test_a_start_has_the_advantages_that_it_has_alone(binning):
    group = random_group(0)
    found = estimate_advantages(*group, gamma=0.9, binning=binning, starts=LABELS)
    for label in dict.fromkeys(LABELS):
        which = [n for n, other in enumerate(LABELS) if other == label]
        part = [[column[n] for n in which] for column in group]
        alone = estimate_advantages(*part, gamma=0.9, binning=binning)
        for n, expected in zip(which, alone, strict=True):
            assert_allclose(found[n], expected, atol=1e-12)


def test_one_start_is_all_of_the_group():
    group = random_group(1)
    one = estimate_advantages(*group, gamma=0.9, binning="time", starts=["x"] * len(LABELS))
    for found, expected in zip(
        one, estimate_advantages(*group, gamma=0.9, binning="time"), strict=True
    ):
        assert_array_equal(found, expected)


def test_starts_that_differ_are_apart_also_where_each_has_one_trajectory():
    estimate = estimate_group(*random_group(2), gamma=0.9, binning="time", starts=range(10))
    assert estimate.singleton_fraction == 1.0
    assert_allclose(np.concatenate(estimate.advantages), 0.0, atol=1e-12)


def test_statistics_are_those_of_the_bins_of_starts_worked_by_hand():
    # Starts a, a, b, b of 2, 1, 1, 1 steps: bins (a, 0), (a, 1), (b, 0); only (a, 1) has one visit.
    observations = [np.zeros(2), np.zeros(1), np.zeros(1), np.zeros(1)]
    rewards = [[1.0, 0.0], [3.0], [10.0], [20.0]]
    estimate = estimate_group(observations, rewards, gamma=1.0, binning="time", starts="aabb")
    assert estimate.num_bins == 3
    assert estimate.singleton_fraction == 1 / 5
    assert [a.tolist() for a in estimate.advantages] == [[-1.0, 0.0], [1.0], [-5.0], [5.0]]


def test_agents_of_one_episode_are_left_out_together_within_their_start():
    # One start with two episodes of two agents each: what is left is the other episode.
    rewards = [[1.0], [3.0], [10.0], [20.0], [100.0], [100.0]]
    observations = [np.zeros(1)] * 6
    found = estimate_advantages(
        observations,
        rewards,
        gamma=1.0,
        binning="time",
        leave_one_out=True,
        episodes=[0, 0, 1, 1, 2, 2],
        starts=[0, 0, 0, 0, 1, 1],
    )
    assert np.concatenate(found).tolist() == [1 - 15, 3 - 15, 10 - 2, 20 - 2, 0, 0]


def test_a_ridge_remembers_its_weights_and_not_the_bins_of_starts():
    """As with a binning that has the start in its keys, and doesn't say that these last."""

    def start_and_time(observations, timesteps):
        return np.column_stack([observations[:, 0].astype(np.int64), timesteps])

    start_and_time.counts_time = True
    labels = [n // 3 for n in range(9)]
    memory = {"starts": None, "keys": None}
    for number in range(3):
        observations, rewards = random_group(number, labels)
        observations = [
            np.column_stack([np.full(len(o), label), o])
            for o, label in zip(observations, labels, strict=True)
        ]
        settings = {"gamma": 0.9, "lambda_": 0.9, "baseline": RidgeBaseline(num_features=4)}
        of_starts = estimate_group(
            observations,
            rewards,
            binning="time",
            starts=labels,
            memory=memory["starts"],
            **settings,
        )
        of_keys = estimate_group(
            observations, rewards, binning=start_and_time, memory=memory["keys"], **settings
        )
        memory = {"starts": of_starts.memory, "keys": of_keys.memory}
        for found, expected in zip(of_starts.advantages, of_keys.advantages, strict=True):
            assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    kept = memory["starts"]["baseline"]
    assert len(kept["bins"]["counts"]) == 0
    assert np.abs(kept["equations"]["product"]).max() > 0.0


def test_what_needs_the_bins_of_earlier_groups_is_refused():
    observations, rewards = random_group(3)
    settings = {"gamma": 0.9, "binning": "time", "starts": LABELS}
    with pytest.raises(ValueError, match=r"hold one start's episodes only.*baseline='ridge'"):
        estimate_group(observations, rewards, baseline=BinBaseline(decay=0.5), **settings)
    with pytest.raises(ValueError, match=r"hold one start's episodes only.*`bootstrap_truncated`"):
        estimate_group(
            observations,
            rewards,
            baseline=RidgeBaseline(),
            final_observations=[None] * len(rewards),
            **settings,
        )
    with pytest.raises(ValueError, match="starts needs one label per trajectory: got 2 for 10"):
        estimate_group(observations, rewards, gamma=0.9, binning="time", starts=[0, 1])


def test_returns_are_equal_up_to_rounding():
    assert are_equal([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])
    assert are_equal([0.0, 0.0])
    assert are_equal([-5.0])
    assert not are_equal([1e6, 1e6 + 1.0])
    assert not are_equal([0.0, 1e-6])


# The connector piece.


def episode(id_, rewards):
    steps = len(rewards)
    return SingleAgentEpisode(
        id_=id_,
        observations=[np.zeros(1)] * (steps + 1),
        actions=[0] * steps,
        rewards=rewards,
        terminated=True,
        len_lookback_buffer=0,
    )


def run(group, shared_data):
    piece, metrics = (
        GroupAdvantageEstimation(gamma=1.0, normalize_advantages=False),
        MetricsLogger(),
    )
    batch = piece(
        rl_module=SimpleNamespace(),
        batch={},
        episodes=group,
        shared_data=shared_data,
        metrics=metrics,
    )
    columns = batch[Columns.ADVANTAGES].values()
    return np.concatenate([np.ravel(items) for items in columns]), metrics.peek("default_policy")


def test_the_piece_takes_the_starts_from_the_shared_data():
    # The ids that `AddObservationsFromEpisodesToBatch` makes of a, b, c and d_1.
    group = [episode(i, [r]) for i, r in (("a_0", 1.0), ("c_1", 5.0), ("b_2", 3.0), ("d_1", 5.0))]
    found, logged = run(group, {STARTS: {"a": 0, "b": 0, "c": 1, "d_1": 1}})
    assert found.tolist() == [-1.0, 0.0, 1.0, 0.0]
    assert logged["group_equal_starts"] == 1
    for shared_data in (None, {}, {STARTS: None}):
        found, logged = run(group, shared_data)
        assert found.tolist() == [-2.5, 1.5, -0.5, 1.5]
        assert "group_equal_starts" not in logged


def test_an_episode_without_a_start_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Episode b_1 has no start.*`episodes_per_start`"):
        run([episode("a", [1.0]), episode("b_1", [1.0])], {STARTS: {"a": 0}})


def test_labels_of_starts_may_be_an_array():
    group = random_group(3)
    labels = [0, 1, 0, 2, 1, 0, 2, 2, 1, 0]
    options = {"gamma": 0.9, "binning": "time"}
    one = estimate_advantages(*group, **options, starts=labels)
    other = estimate_advantages(*group, **options, starts=np.array(labels))
    assert_array_equal(np.concatenate(one), np.concatenate(other))

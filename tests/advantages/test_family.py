"""Credits, constants, units and levels, against naive versions and the methods' own formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rllib_gpg.advantages import (
    BinBaseline,
    Level,
    RidgeBaseline,
    estimate_advantages,
    estimate_group,
)
from rllib_gpg.advantages.credit import credited_returns

Arrays = list[np.ndarray]


def some_group(seed: int, num_states: int = 3) -> tuple[Arrays, Arrays]:
    """States and rewards of a few trajectories of different length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=rng.integers(2, 7))
    observations = [rng.integers(num_states, size=(length, 1)) for length in lengths]
    return observations, [rng.normal(size=length) * 3.0 + 1.0 for length in lengths]


def estimate(group: tuple[Arrays, Arrays], **settings: Any) -> Arrays:
    return estimate_advantages(*group, **{"gamma": 0.9, "binning": "time", **settings})


def naive_returns(rewards: Arrays, gamma: float) -> Arrays:
    return [
        np.array([sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))])
        for r in rewards
    ]


def assert_equal(ours: Arrays, theirs: Arrays) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_without_a_baseline_advantages_are_what_is_credited(seed: int) -> None:
    _, rewards = group = some_group(seed)
    assert_equal(estimate(group, baseline="none"), naive_returns(rewards, 0.9))
    outcomes = [np.full(len(r), r.sum()) for r in rewards]
    assert_equal(estimate(group, baseline="none", credit="outcome"), outcomes)
    every = np.concatenate(rewards)
    unit = [(r - every.mean()) / every.std() for r in rewards]
    assert_equal(estimate(group, baseline="none", credit="process"), naive_returns(unit, 0.9))


@pytest.mark.parametrize("seed", range(10))
def test_outcome_supervision_is_grpos(seed: int) -> None:
    """Universal bins in their own unit: (total - mean of totals) / std of totals, at every step."""
    observations, rewards = group = some_group(seed)
    totals = np.array([r.sum() for r in rewards])
    expected = [
        np.full(len(r), (total - totals.mean()) / totals.std())
        for r, total in zip(rewards, totals, strict=True)
    ]
    ours = estimate(group, credit="outcome", binning="universal", normalize="bins")
    assert_equal(ours, expected)
    # With a terminal reward alone and gamma 1, returns-to-go are outcomes.
    terminal = [np.concatenate([np.zeros(len(r) - 1), [r.sum()]]) for r in rewards]
    ours = estimate((observations, terminal), gamma=1.0, binning="universal", normalize="bins")
    assert_equal(ours, expected)


@pytest.mark.parametrize("seed", range(5))
def test_returns_normalised_over_the_group_are_universal_bins_normalised(seed: int) -> None:
    """REINFORCE++: a constant subtracted from all returns is taken away with their mean."""
    group = some_group(seed)
    assert_equal(
        estimate(group, baseline="none", normalize=True),
        estimate(group, binning="universal", normalize=True),
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("binning", ["time", "state", "universal"])
def test_units_of_bins_against_a_naive_version(seed: int, binning: str) -> None:
    """Over the spread of the bin's entries, but no less than a tenth of that of all steps."""
    observations, _ = group = some_group(seed)
    plain = estimate(group, binning=binning)
    keys = [
        {"time": range(len(x)), "state": x[:, 0].tolist(), "universal": [0] * len(x)}[binning]
        for x in observations
    ]
    entries: dict[int, list[float]] = {}
    for of_one, advantages in zip(keys, plain, strict=True):
        seen = set()
        for key, advantage in zip(of_one, advantages, strict=True):
            if key not in seen:
                seen.add(key)
                entries.setdefault(key, []).append(advantage)
    typical = np.std(np.concatenate(plain))
    std = {
        key: max(typical if len(of_bin) == 1 else np.std(of_bin), 0.1 * typical)
        for key, of_bin in entries.items()
    }
    expected = [
        np.array([a / std[key] for key, a in zip(of_one, advantages, strict=True)])
        for of_one, advantages in zip(keys, plain, strict=True)
    ]
    assert_equal(estimate(group, binning=binning, normalize="bins"), expected)


def test_close_returns_are_not_blown_up() -> None:
    """A bin of two that are equal but for rounding, beside one that isn't."""
    rewards = [np.array([0.0, 1.0]), np.array([0.0, 1.0 + 1e-12]), np.array([5.0])]
    observations = [np.zeros((len(r), 1)) for r in rewards]
    ours = estimate((observations, rewards), normalize="bins")
    assert max(np.abs(np.concatenate(ours))) < 2.0
    # And where all returns are equal, nothing is.
    equal = [np.ones(3), np.ones(3)]
    ours = estimate(([np.zeros((3, 1))] * 2, equal), normalize="bins")
    assert not np.concatenate(ours).any()


@pytest.mark.parametrize("baseline", [BinBaseline(decay=0.8), RidgeBaseline(), "none"])
@pytest.mark.parametrize("binning", ["time", "universal", "state"])
def test_equal_returns_far_from_the_baseline_are_not_blown_up(baseline: Any, binning: str) -> None:
    """Groups whose returns differ, then groups of 0 and of 1 alone."""
    memory = None
    for number in range(12):
        observations, rewards = some_group(number)
        if number > 5:
            rewards = [np.zeros(len(r)) for r in rewards]
            for r in rewards:
                r[-1] = number % 2
        found = estimate_group(
            observations,
            rewards,
            gamma=1.0,
            binning=binning,
            baseline=baseline,
            normalize="bins",
            credit="outcome",
            memory=memory,
        )
        memory = found.memory
        assert np.abs(np.concatenate(found.advantages)).max() <= 10.0


def test_the_optimal_constant_leaves_nothing_of_equal_outcomes() -> None:
    """Also with the policy's gradients in single precision."""
    observations, rewards = some_group(0)
    rewards = [500.0 * (np.arange(len(r)) == len(r) - 1) for r in rewards]
    squares = np.linspace(0.1, 0.9, len(rewards), dtype=np.float32)
    lengths = [len(r) for r in rewards]

    def scores(returns: np.ndarray) -> np.ndarray:
        of_each = returns[np.cumsum([0, *lengths[:-1]])].astype(np.float32)
        return np.stack((of_each * squares, squares), 1)

    found = estimate_group(
        observations,
        rewards,
        gamma=1.0,
        binning="universal",
        baseline="optimal",
        normalize="bins",
        credit="outcome",
        scores=scores,
    )
    assert not np.concatenate(found.advantages).any()


def test_later_visits_far_from_close_entries_are_not_blown_up() -> None:
    """All episodes but one last 500 steps: returns-to-go differ far more than the first of each."""
    rewards = [np.ones(500)] * 31 + [np.ones(499)]
    group = [np.zeros((len(r), 1)) for r in rewards], rewards
    ours = np.concatenate(estimate(group, gamma=1.0, binning="universal", normalize="bins"))
    assert np.abs(ours).max() < 40.0  # in the std of all advantages: 10 (500 - 0) / 144 at most


def test_bins_of_one_say_nothing_of_the_spread_of_others() -> None:
    """States of one episode's own, visited again and again, beside one of two, with close returns.

    What differs in the former is 9 at most.
    """
    rewards = [np.ones(10) for _ in range(50)]
    rewards[0][0] = 1.01
    states = [np.full((10, 1), max(n, 1)) for n in range(50)]
    ours = estimate((states, rewards), gamma=1.0, binning="state", normalize="bins")
    plain = estimate((states, rewards), gamma=1.0, binning="state")
    alone = slice(2, None)
    for a, b in zip(ours[alone], plain[alone], strict=True):
        np.testing.assert_allclose(a, b / np.std(np.concatenate(plain)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_process_supervision_normalises_over_the_episodes_of_a_start(seed: int) -> None:
    """As in GRPO over the answers to one prompt; those of another may have easier rewards."""
    one, other = some_group(seed), some_group(seed + 100)
    other = other[0], [10.0 * r + 5.0 for r in other[1]]
    both = one[0] + other[0], one[1] + other[1]
    starts = ["one"] * len(one[0]) + ["other"] * len(other[0])
    settings: dict[str, Any] = {"credit": "process", "baseline": "none"}
    ours = estimate(both, starts=starts, **settings)
    assert_equal(ours, [*estimate(one, **settings), *estimate(other, **settings)])


@pytest.mark.parametrize("reward", [-0.1, 1.0 / 3.0, -100.1])
@pytest.mark.parametrize("settings", [{"baseline": "none"}, {"normalize": "bins"}], ids=str)
def test_equal_rewards_say_nothing_to_the_last_bit(reward: float, settings: Any) -> None:
    """Their mean is rounded, and what that leaves would be summed."""
    lengths = [50, 400, 3, 77]
    group = [np.zeros((length, 1)) for length in lengths], [np.full(n, reward) for n in lengths]
    for starts in (None, [0, 0, 1, 1]):
        ours = estimate(group, credit="process", starts=starts, **settings)
        assert not np.concatenate(ours).any()


def test_a_single_trajectory_in_a_bin_of_its_own_keeps_its_unit() -> None:
    """Later visits of the only bin there is are neither 0 nor blown up."""
    group = [np.zeros((3, 1))], [np.array([1.0, 1.0, 1.0])]
    (ours,) = estimate(group, gamma=1.0, binning="universal", normalize="bins")
    np.testing.assert_allclose(ours, np.array([0.0, -1.0, -2.0]) / np.std([0.0, -1.0, -2.0]))


@pytest.mark.parametrize("seed", range(10))
def test_two_levels_are_gigpos(seed: int) -> None:
    """(total - mean) / std, plus (return - mean of its state) / std of its state's entries."""
    group = some_group(seed)
    ours = estimate(
        group,
        credit="outcome",
        binning="universal",
        normalize="bins",
        second_level=Level("state", weight=0.5),
    )
    episode = estimate(group, credit="outcome", binning="universal", normalize="bins")
    state = estimate(group, binning="state", normalize="bins")
    assert_equal(ours, [a + 0.5 * b for a, b in zip(episode, state, strict=True)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("first", "leaves_out"),
    [
        ({}, False),
        ({"leave_one_out": True}, True),
        ({"baseline": "none"}, True),
        ({"baseline": RidgeBaseline(num_features=2)}, True),
    ],
    ids=["bins", "leave-one-out", "none", "ridge"],
)
def test_the_second_level_keeps_the_own_return_where_the_first_does(
    first: dict[str, Any], leaves_out: bool, seed: int
) -> None:
    """And compares within starts where the first does."""
    group = some_group(seed)
    starts = {"starts": [n % 2 for n in range(len(group[1]))]}
    level = Level("state", credit="process", normalize=False, weight=2.0)
    ours = estimate(group, **first, **starts, second_level=level)
    alone = estimate(group, **first, **starts)
    second = estimate(group, binning="state", credit="process", leave_one_out=leaves_out, **starts)
    assert_equal(ours, [a + 2.0 * b for a, b in zip(alone, second, strict=True)])


def scores_of(gradients: Arrays) -> Any:
    """What the learner gives, of the gradients of log pi at every step: N arrays [T, P]."""

    def scores(returns: np.ndarray) -> np.ndarray:
        parts = np.split(returns, np.cumsum([len(g) for g in gradients])[:-1])
        sums = [(g.sum(0), r @ g) for g, r in zip(gradients, parts, strict=True)]
        return np.array([[weighted @ score, score @ score] for score, weighted in sums])

    return scores


@pytest.mark.parametrize("seed", range(5))
def test_the_optimal_constant_against_its_formula(seed: int) -> None:
    """E[R |g|^2] / E[|g|^2] over the other trajectories, where credit is the outcome."""
    observations, rewards = some_group(seed)
    rng = np.random.default_rng(seed)
    gradients = [rng.normal(size=(len(r), 4)) for r in rewards]
    ours = estimate(
        (observations, rewards),
        credit="outcome",
        baseline="optimal",
        scores=scores_of(gradients),
    )
    totals = np.array([r.sum() for r in rewards])
    squares = np.array([np.square(g.sum(0)).sum() for g in gradients])
    for n, advantages in enumerate(ours):
        others = np.arange(len(rewards)) != n
        best = (totals * squares)[others].sum() / squares[others].sum()
        np.testing.assert_allclose(advantages, totals[n] - best, rtol=1e-9)


def test_the_optimal_constant_lowers_the_variance_of_the_gradient() -> None:
    """Two actions, one step: the rare action has the large gradient, and the return to match."""
    rng = np.random.default_rng(0)
    probability, reward = np.array([0.9, 0.1]), np.array([1.0, 3.0])
    score = (np.eye(2) - probability)[:, :1]  # d log pi(a) / d logit 0
    found: dict[str, list[float]] = {"bins": [], "optimal": []}
    for _ in range(1000):
        actions = rng.choice(2, p=probability, size=64)
        group = [np.zeros((1, 1))] * 64, [reward[[a]] for a in actions]
        gradients = [score[[a]] for a in actions]
        for name, of in found.items():
            ours = estimate(
                group, baseline=name, leave_one_out=name == "bins", scores=scores_of(gradients)
            )
            products = [a[0] * g[0, 0] for a, g in zip(ours, gradients, strict=True)]
            of.append(float(np.mean(products)))
    exact = float(probability @ (reward * score[:, 0]))
    for of in found.values():
        assert np.mean(of) == pytest.approx(exact, abs=4 * np.std(of) / 1000**0.5)
    assert np.var(found["optimal"]) < 0.3 * np.var(found["bins"])


def test_the_optimal_constant_leaves_out_the_whole_episode() -> None:
    """Agents of one episode share its luck."""
    rewards = [np.array([1.0]), np.array([10.0]), np.array([4.0])]
    group = [np.zeros((1, 1))] * 3, rewards
    ours = estimate(
        group,
        baseline="optimal",
        episodes=["a", "a", "b"],
        scores=scores_of([np.ones((1, 1))] * 3),
    )
    np.testing.assert_allclose(np.concatenate(ours), [1.0 - 4.0, 10.0 - 4.0, 4.0 - 5.5])


def test_alone_there_is_no_constant_but_0() -> None:
    group = [np.zeros((2, 1))], [np.array([1.0, 2.0])]
    (ours,) = estimate(group, gamma=1.0, baseline="optimal", scores=scores_of([np.ones((2, 1))]))
    np.testing.assert_array_equal(ours, [3.0, 2.0])


def test_an_outcome_is_remembered_apart_from_returns() -> None:
    """Bins carried over groups of another credit would be of another quantity."""
    group = some_group(0)
    settings: dict[str, Any] = {"gamma": 0.9, "binning": "time", "baseline": BinBaseline(decay=0.5)}
    returns = estimate_group(*group, **settings)
    fresh = estimate_group(*group, **settings, credit="outcome")
    switched = estimate_group(*group, **settings, credit="outcome", memory=returns.memory)
    assert_equal(switched.advantages, fresh.advantages)
    again = estimate_group(*group, **settings, credit="outcome", memory=fresh.memory)
    assert not np.allclose(np.concatenate(again.advantages), np.concatenate(fresh.advantages))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"credit": "outcomes"}, "nearest is 'outcome'"),
        ({"credit": "outcome", "baseline": RidgeBaseline(), "lambda_": 0.9}, "credit='returns'"),
        ({"baseline": "optimal"}, "give `scores`"),
        ({"baseline": "optimal", "normalize": True}, r"takes the mean.*normalize_advantages=False"),
        (
            {"baseline": "optimal", "starts": range(len(some_group(0)[1]))},
            r"one for all starts.*baseline='bins'",
        ),
        ({"baseline": "none", "lambda_": 0.9}, "don't see the state"),
        ({"normalize": "bin"}, "True, False or 'bins'"),
        (
            {
                "baseline": RidgeBaseline(),
                "second_level": Level("time"),
                "final_observations": [None] * len(some_group(0)[1]),
            },
            "doesn't complete",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        estimate(some_group(0), **settings)


def test_levels_refuse_what_cannot_be_meant() -> None:
    for wrong in ({"credit": "x"}, {"normalize": "y"}, {"normalize": 1}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=r"must be"):
            Level("state", **wrong)
    with pytest.raises(ValueError, match="Unknown binning"):
        Level("stat")


def test_outcomes_are_sums_without_discount() -> None:
    returns = credited_returns(np.array([1.0, 2.0, 4.0]), np.array([2, 1]), 0.5, "outcome")
    np.testing.assert_array_equal(returns, [3.0, 3.0, 4.0])

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rllib_gpg.advantages import (
    Baseline,
    BinBaseline,
    BinnedGroup,
    RidgeBaseline,
    Valuation,
    estimate_group,
)
from rllib_gpg.advantages.baselines import resolve_baseline
from rllib_gpg.diagnosis.explained import Explained, _ridge, explained_by_each

Group = tuple[list[np.ndarray], list[np.ndarray]]


def group_of(seed: int, num_episodes: int, num_states: int = 3) -> Group:
    """Episodes of 1 to 9 steps; observations are integers."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, num_episodes)
    return (
        [rng.integers(0, num_states, (length, 1)) for length in lengths],
        [rng.normal(size=length) for length in lengths],
    )


def explained(
    group: Group, baseline: str | Baseline = "bins", binning: Any = "time", **settings: Any
) -> dict[str, Explained]:
    baseline = resolve_baseline(baseline)
    estimate = estimate_group(*group, gamma=0.9, binning=binning, baseline=baseline, **settings)
    starts = settings.get("starts")
    rows = explained_by_each(estimate.comparison, baseline=baseline, starts=starts)
    assert rows[0].name == "in force"
    return {row.name: row for row in rows}


def by_loop(
    group: Group, key_of: Any, episodes: list[int] | None = None, starts: list[int] | None = None
) -> float:
    """1 - Var(R - v) / Var(R), v the mean of other episodes' first visits, else of their steps."""
    observations, rewards = group
    returns, values, entered = [], [], {}
    for n, reward in enumerate(rewards):
        visited = set()
        for t in range(len(reward)):
            ret = sum(0.9**j * r for j, r in enumerate(reward[t:]))
            key = (starts and starts[n], key_of(observations[n][t], t))
            if key not in visited:
                entered.setdefault(key, []).append((episodes[n] if episodes else n, ret))
            visited.add(key)
            returns.append((n, key, ret))
    all_returns = np.array([ret for *_, ret in returns])
    for n, key, _ in returns:
        episode_of = episodes or range(len(rewards))
        others = [r for m, r in entered[key] if m != episode_of[n]]
        others = others or [r for m, _, r in returns if episode_of[m] != episode_of[n]]
        values.append(np.mean(others) if others else all_returns.mean())
    return 1.0 - np.var(all_returns - values) / np.var(all_returns)


KEYS = {
    "universal bins": lambda s, t: 0,
    "time bins": lambda s, t: t,
    "state bins": lambda s, t: int(s[0]),
    "state and time bins": lambda s, t: (int(s[0]), t),
}


@pytest.mark.parametrize("seed", range(5))
def test_each_leaves_the_own_trajectory_out_as_a_plain_loop_does(seed: int) -> None:
    group = group_of(seed, num_episodes=2 + seed)
    shares = explained(group)
    for name, key_of in KEYS.items():
        assert shares[name].share == pytest.approx(by_loop(group, key_of)), name
    assert shares["in force"].share == pytest.approx(shares["time bins"].share)


def test_what_is_left_out_is_the_whole_episode() -> None:
    group, episodes = group_of(0, 8), [0, 0, 1, 1, 2, 2, 3, 3]
    shares = explained(group, episodes=episodes)
    for name, key_of in KEYS.items():
        assert shares[name].share == pytest.approx(by_loop(group, key_of, episodes)), name


def test_only_episodes_of_one_start_are_compared() -> None:
    group, starts = group_of(0, 8), [0, 0, 0, 0, 1, 1, 1, 1]
    shares = explained(group, starts=starts)
    for name, key_of in KEYS.items():
        assert shares[name].share == pytest.approx(by_loop(group, key_of, starts=starts)), name
    assert shares["carried bins"].share is None and "don't last" in shares["carried bins"].note


def test_why_nothing_is_carried_is_said() -> None:
    group = group_of(0, 4)
    assert explained(group)["carried bins"].note == "needs `baseline_decay` or the ridge in force"
    for baseline in ("ridge", BinBaseline(decay=0.5)):
        assert explained(group, baseline)["carried bins"].note == "nothing is carried over yet"


def test_finer_is_not_better() -> None:
    """Each state is seen once: bins of its own foresee what all steps of the others do, no more."""
    group = ([np.arange(20)[:, None] + 100 * n for n in range(6)], group_of(0, 6)[1])
    group = ([o[: len(r)] for o, r in zip(*group, strict=True)], group[1])
    state = explained(group, binning="state")["state bins"]
    assert state.share == pytest.approx(by_loop(group, KEYS["state bins"]))
    assert state.share < 0.0
    assert state.note == "100% of steps alone"


def test_states_that_hardly_come_again_are_put_on_a_grid() -> None:
    rng = np.random.default_rng(0)
    lengths = [200] * 4
    observations = [rng.normal(size=(length, 2)) * [1.0, 100.0] for length in lengths]
    # What comes depends on where the state lies, in either number.
    rewards = [o[:, 0] + o[:, 1] / 100.0 for o in observations]
    estimate = estimate_group(observations, rewards, gamma=0.0, binning="time")
    rows = explained_by_each(estimate.comparison, baseline=BinBaseline())
    grid = next(row for row in rows if row.name == "grid (1 std) bins")
    assert grid.share > 0.7
    assert grid.setting.startswith("binning=SpatialBinning(epsilon=(0.9")
    # One-hot states of float type come again.
    observations = [np.eye(3, dtype=np.float32)[rng.integers(0, 3, 200)] for _ in lengths]
    estimate = estimate_group(observations, rewards, gamma=0.0, binning="time")
    rows = explained_by_each(estimate.comparison, baseline=BinBaseline())
    assert "state bins" in [row.name for row in rows]


def linear(seed: int, num_episodes: int = 8) -> Group:
    """The reward is the state, so that a regression on it foresees what bins can't."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(size=num_episodes)
    observations = [level + 0.1 * rng.normal(size=(20, 1)) for level in levels]
    return observations, [o[:, 0] for o in observations]


@pytest.mark.parametrize("episodes", [None, [n // 2 for n in range(16)]])
def test_a_ridge_that_isnt_in_force_is_taught_by_the_others(episodes: list[int] | None) -> None:
    group = linear(0, num_episodes=16)
    shares = explained(group, episodes=episodes)
    assert shares["time bins"].share < 0.2
    assert shares["ridge"].share > 0.6
    # Of noise it learns nothing: what it is taught are others' returns.
    rng = np.random.default_rng(1)
    noise = (group[0], [rng.normal(size=20) for _ in range(16)])
    assert explained(noise, episodes=episodes)["ridge"].share < 0.1


def test_a_trajectorys_own_return_is_not_in_what_the_ridge_says_of_it() -> None:
    """Another return of one trajectory changes the values of all others, and not its own."""
    observations, rewards = linear(0, num_episodes=4)

    def values(group: Group) -> list[np.ndarray]:
        found = estimate_group(*group, gamma=0.9, binning="time").comparison
        return np.split(_ridge(found, BinBaseline()).values, 4)

    changed = [rewards[0] + 5.0, *rewards[1:]]
    before, after = values((observations, rewards)), values((observations, changed))
    np.testing.assert_allclose(before[0], after[0])
    assert not np.allclose(before[1], after[1])


def test_what_a_ridge_remembers_is_what_is_shown() -> None:
    ridge, memory = RidgeBaseline(), None
    for seed in range(4):
        memory = estimate_group(
            *linear(seed), gamma=0.9, binning="time", baseline=ridge, memory=memory
        ).memory
    last = estimate_group(*linear(9), gamma=0.9, binning="time", baseline=ridge, memory=memory)
    shares = explained(linear(9), ridge, memory=memory)
    assert shares["ridge"].share == pytest.approx(last.baseline_explained_variance)
    assert shares["ridge"].share > 0.8
    # It carries bins, too: those of `BinBaseline` with the same decay.
    bins, of_bins = BinBaseline(decay=ridge.decay), None
    for seed in range(4):
        of_bins = estimate_group(
            *linear(seed), gamma=0.9, binning="time", baseline=bins, memory=of_bins
        ).memory
    in_force = explained(linear(9), bins, memory=of_bins)
    assert in_force["carried bins"].share == pytest.approx(in_force["in force"].share)
    assert shares["carried bins"].share == pytest.approx(in_force["carried bins"].share)
    assert explained(linear(9), bins)["carried bins"].share is None


def test_what_cant_be_done_is_said() -> None:
    group = linear(0)
    nested = ([{"x": o} for o in group[0]], group[1])
    assert explained(nested)["state bins"].note == "observations aren't one array of numbers"
    large = ([np.zeros((20, 2000)) for _ in group[0]], group[1])
    shares = explained(large)
    assert shares["state bins"].note == "observations have more than 1024 numbers"
    assert shares["ridge"].share is None and "at most 1024 numbers" in shares["ridge"].note
    assert "3 episodes" in explained(linear(0, 2))["ridge"].note
    shares = explained(group, binning=lambda observations, timesteps: timesteps // 2)
    assert "bins that last" in shares["ridge"].note


@dataclass(frozen=True)
class Remembering(Baseline):
    """One of a user's own, whose memory is an array; it knows the returns that it is shown."""

    remembers: bool = True
    keeps_own: bool = True

    def values(self, group: BinnedGroup, returns: Any, memory: Any) -> Valuation:
        return Valuation(returns.copy(), memory=np.zeros(3))


def test_a_baseline_of_ones_own_may_remember_anything() -> None:
    group = group_of(3, num_episodes=6)
    settings = {"gamma": 0.9, "binning": "time", "baseline": Remembering()}
    memory = estimate_group(*group, **settings).memory
    rows = explained(group, Remembering(), memory=memory)
    assert rows["carried bins"].note == "needs `baseline_decay` or the ridge in force"


def test_a_baseline_of_ones_own_is_shown_and_not_the_bins() -> None:
    group = group_of(3, num_episodes=6)
    assert explained(group, Remembering())["in force"].share == 1.0
    estimate = estimate_group(*group, gamma=0.9, binning="time", baseline=Remembering())
    assert estimate.baseline_explained_variance == 1.0 > estimate.bins_explained_variance

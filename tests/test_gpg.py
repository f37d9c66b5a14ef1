"""GPG as an RLlib algorithm: it trains, reports and learns, through RLlib's real pipeline."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import SpatialTimeBinning
from tests.envs import Identity, ShortOrLong
from tests.helpers import (
    GROUP_METRICS,
    built,
    fingerprint,
    module_results,
    same,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_metrics_are_there_from_the_first_iteration(num_env_runners: int) -> None:
    config = small_config(ShortOrLong, group_size=7)
    # Shares of 3, 3 and 1: means of means are other numbers.
    config.env_runners(num_env_runners=num_env_runners, episodes_per_share=3)
    with built(config) as algo:
        result = algo.train()
        metrics = module_results(result)
        assert metrics.keys() >= GROUP_METRICS
        assert all(math.isfinite(metrics[name]) for name in GROUP_METRICS)
        assert metrics["group_num_episodes"] == 7
        # One reward per step: the returns add up to the steps.
        assert metrics["group_num_env_steps"] == pytest.approx(metrics["group_return_mean"] * 7)
        runners = result["env_runners"]
        assert runners["num_episodes_lifetime"] == 7
        assert runners["num_env_steps_sampled_lifetime"] == metrics["group_num_env_steps"]
        assert runners["episode_return_mean"] == pytest.approx(metrics["group_return_mean"])


def test_lifetime_counters_go_on_counting() -> None:
    with built(small_config(Identity, group_size=5)) as algo:
        for iteration in range(1, 4):
            runners = algo.train()["env_runners"]
            assert runners["num_episodes_lifetime"] == 5 * iteration
            assert runners["num_env_steps_sampled_lifetime"] == 50 * iteration


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_policy_that_samples_is_one_update_behind_the_learner(num_env_runners: int) -> None:
    with built(small_config(Identity).env_runners(num_env_runners=num_env_runners)) as algo:
        before = algo.get_module().get_state()
        for _ in range(3):
            metrics = module_results(algo.train())
            assert metrics["diff_num_grad_updates_vs_sampler_policy"] == 1.0
        after = algo.get_module().get_state()
        learner = snapshot(algo)["rl_module"][DEFAULT_MODULE_ID]
    # And `get_module` shows what was learned.
    assert any((before[name] != after[name]).any() for name in before)
    assert same(after, learner)


def test_a_seeded_run_repeats_itself_and_iterations_differ() -> None:
    runs = []
    for _ in range(2):
        groups: list[Any] = []
        with built(small_config(ShortOrLong)) as algo:
            algo._estimate_advantages = spy_on_groups(algo, groups)
            for _ in range(3):
                algo.train()
            runs.append((groups, snapshot(algo)))
    (groups, state), (groups_again, state_again) = runs
    assert [*map(fingerprint, groups)] == [*map(fingerprint, groups_again)]
    assert same(state, state_again)
    assert len(set(start_states(groups))) == 3 * 8


def test_several_training_steps_per_iteration_sample_different_groups() -> None:
    config = small_config(ShortOrLong, group_size=3)
    config.reporting(min_sample_timesteps_per_iteration=1000)
    groups: list[Any] = []
    with built(config) as algo:
        algo._estimate_advantages = spy_on_groups(algo, groups)
        algo.train()
    starts = start_states(groups)
    assert len(starts) > 3
    assert len(set(starts)) == len(starts)


def start_states(groups: list[Any]) -> list[float]:
    """The number that each episode of `ShortOrLong` draws as it begins."""
    return [float(episode.get_observations(0)[0]) for group in groups for episode in group]


def spy_on_groups(algo: GPG, groups: list[Any]) -> Any:
    """In place of the estimation of advantages: keeps the group, and does what it did."""
    estimate = algo._estimate_advantages

    def estimate_and_keep(episodes: Any) -> Any:
        groups.append(episodes)
        return estimate(episodes)

    return estimate_and_keep


@pytest.mark.parametrize(
    ("binning", "num_bins"),
    [
        ("time", 10),
        ("universal", 1),
        ("state", 2),
        (SpatialTimeBinning(0.5), 2 * 10),
        (lambda obs, t: t // 3, 4),
    ],
    ids=["time", "universal", "state", "spatial-time", "custom"],
)
@pytest.mark.filterwarnings("ignore:StateBinning.* on float32:UserWarning:rllib_gpg")
def test_every_binning_trains(binning: Any, num_bins: int) -> None:
    """Episodes of `Identity` show one of two bits in each of 10 steps."""
    config = small_config(Identity, binning=binning, leave_one_out=True, group_size=16)
    with built(config) as algo:
        before = snapshot(algo)["rl_module"]
        assert module_results(algo.train())["group_num_bins"] == num_bins
        assert not same(snapshot(algo)["rl_module"], before)


@pytest.mark.parametrize("num_eval_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_evaluation_runs_exactly_the_episodes_asked_for(num_eval_runners: int) -> None:
    config = small_config(ShortOrLong, group_size=2).evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=num_eval_runners,
        evaluation_duration=7,
        evaluation_duration_unit="episodes",
    )
    with built(config) as algo:
        evaluation = algo.train()["evaluation"]["env_runners"]
        assert evaluation["num_episodes"] == 7


def test_identity_is_learned() -> None:
    """A second of training: the action must repeat the observed bit (chance 5, best 10)."""
    config = small_config(Identity, group_size=16, lr=0.02)
    config.env_runners(num_envs_per_env_runner=16)
    with built(config) as algo:
        returns = [module_results(algo.train())["group_return_mean"] for _ in range(20)]
    assert returns[0] < 7.0
    assert max(returns) > 9.5


@pytest.mark.learning
@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_cartpole_is_learned_with_the_defaults(num_env_runners: int) -> None:
    config = GPGConfig().environment("CartPole-v1").debugging(seed=0)
    config.env_runners(
        num_env_runners=num_env_runners, num_envs_per_env_runner=32 // max(1, num_env_runners)
    )
    with built(config) as algo:
        for _ in range(100):
            best = module_results(algo.train())["group_return_mean"]
            if best >= 475.0:
                break
    assert best >= 475.0

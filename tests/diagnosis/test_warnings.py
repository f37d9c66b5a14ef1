from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.multi_agent_env import make_multi_agent

from rllib_gpg import GPGConfig, presets
from rllib_gpg.advantages import (
    Baseline,
    BinnedGroup,
    Level,
    SpatialBinning,
    SpatialTimeBinning,
    Valuation,
)
from rllib_gpg.diagnosis.warnings import TrainingWarnings
from tests.envs import Identity, StartDecides
from tests.helpers import built, logged_warnings, module_results, small_config

SPACES = {
    "policy": (gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(4)),
    "other": (gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (3,))),
}
HEALTHY = {
    "group_num_episodes": 8,
    "group_num_env_steps": 800,
    "group_singleton_fraction": 0.1,
    "group_advantage_std": 1.0,
    "group_truncated_fraction": 0.0,
    "group_return_mean": 10.0,
    "group_return_std": 1.0,
    "baseline_explained_variance": 0.3,
    "clip_fraction": 0.2,
    "entropy": 1.0,
    "mean_kl_loss": 0.01,
}
TIMERS = {"env_runner_sampling_timer": 2.0, "learner_update_timer": 1.5}


class Run:
    """A run whose iterations are made up."""

    def __init__(self, config: AlgorithmConfig | None = None, **training: Any):
        self._config = config or GPGConfig().training(**training)
        self._warnings = TrainingWarnings(self._config)

    def says(
        self, iterations: int = 1, module_id: str = "policy", *, timers: Any = None, **learned: Any
    ) -> list[str]:
        """What is said in so many iterations with these results."""
        result = {
            "learners": {module_id: HEALTHY | learned, "__all_modules__": {}},
            "timers": TIMERS | (timers or {}),
        }
        return [s for _ in range(iterations) for s in self._warnings.of(result, SPACES)]


@dataclass(frozen=True)
class Constant(Baseline):
    """One of a user's own."""

    def values(self, group: BinnedGroup, returns: Any, memory: Any) -> Valuation:
        return Valuation(0.0 * returns)


CLIP = {"clip_fraction": 0.6}
EQUAL = {"group_advantage_std": 0.0, "group_return_std": 0.0, "group_return_mean": 1.0}
ALONE = {"group_singleton_fraction": 1.0, "group_advantage_std": 0.0}
CUT = {"group_truncated_fraction": 1.0}
# Worse than the iteration before, whose return is the default.
UNFORESEEN = {"baseline_explained_variance": -0.2, "group_return_mean": 1.0}
GRID = {"binning": SpatialBinning(epsilon=1.0)}
KL = {"use_kl_loss": True, "kl_target": 0.01}
SYMPTOMS: dict[str, tuple[dict[str, Any], dict[str, Any], int, list[str]]] = {
    "all alone": ({}, ALONE, 1, ["All first visits", "`group_size`"]),
    "most alone": ({}, {"group_singleton_fraction": 0.6}, 5, ["60% of the first", "`epsilon`"]),
    "equal": ({}, EQUAL, 10, ["nothing to compare", "8 episodes", "`entropy_coeff`"]),
    "explained": ({}, UNFORESEEN, 10, ["-0.20", "larger group", "baseline='ridge'"]),
    "ridge": ({"baseline": "ridge"}, UNFORESEEN, 10, ["-0.20", "baseline='bins'"]),
    "own": ({"baseline": Constant()}, UNFORESEEN, 10, ["-0.20", "the values of Constant()"]),
    "entropy": ({}, {"entropy": 1e-3}, 5, ["entropy is 0.001", "`entropy_coeff`"]),
    "clipped": ({}, CLIP, 5, ["60% of the steps", "smaller `lr`"]),
    "kl": (KL, {"mean_kl_loss": 0.2}, 3, ["0.2, 20 times `kl_target`", "`kl_coeff`"]),
    "cut": (GRID, CUT, 10, ["after 100 steps", "binning='time'"]),
}


@pytest.mark.parametrize("name", SYMPTOMS)
def test_each_is_said_once_with_the_mend_after_some_iterations(name: str) -> None:
    training, learned, patience, words = SYMPTOMS[name]
    run = Run(**training)
    assert run.says() == []
    assert run.says(patience - 1, **learned) == []
    (sentence,) = run.says(1, **learned)
    assert sentence.startswith("Module 'policy': ")
    assert all(word in sentence for word in words), sentence
    assert run.says(20, **learned) == []


@pytest.mark.parametrize("name", [name for name, row in SYMPTOMS.items() if row[2] > 1])
def test_one_good_iteration_in_between_and_it_is_noise(name: str) -> None:
    training, learned, patience, _ = SYMPTOMS[name]
    run = Run(**training)
    for _ in range(3):
        assert run.says(patience - 1, **learned) == []
        assert run.says() == []


def test_nothing_has_to_be_explained_while_the_return_is_at_its_best() -> None:
    run = Run()
    for iteration in range(20):
        learned = {"baseline_explained_variance": -5.0, "group_return_mean": float(iteration)}
        assert run.says(1, **learned) == []


def test_each_module_is_warned_of_by_itself() -> None:
    run = Run()
    assert len(run.says(5, **CLIP)) == 1
    (sentence,) = run.says(5, module_id="other", **CLIP)
    assert sentence.startswith("Module 'other'")


def test_modules_are_judged_by_their_own_settings() -> None:
    config = GPGConfig().training(baseline="ridge")
    config.multi_agent(policies={"policy", "other"}, policy_mapping_fn=lambda *_, **__: "policy")
    config.rl_module(algorithm_config_overrides_per_module={"other": {"baseline": "bins"}})
    run = Run(config)
    assert run.says(1, **ALONE) == []
    assert len(run.says(1, module_id="other", **ALONE)) == 1


def test_an_update_that_takes_longer_than_sampling() -> None:
    run = Run(GPGConfig().env_runners(num_env_runners=2))
    long = {"learner_update_timer": 2.5}
    assert run.says(4, timers=long) == []
    (sentence,) = run.says(4, timers=long)
    assert sentence.startswith("An update takes 2.5 s, sampling its group 2.0 s.")
    assert sentence.endswith("or `sample_ahead=1`, which samples meanwhile.")
    # Which takes remote env runners.
    (sentence,) = Run().says(5, timers=long)
    assert sentence.endswith(
        "or `sample_ahead=1` and `num_env_runners` above 0: they sample meanwhile."
    )
    # Where a second would be saved in an hour, and where sampling is hidden behind the update.
    short = {"learner_update_timer": 0.5, "env_runner_sampling_timer": 0.1}
    assert Run().says(20, timers=short) == []
    assert Run(sample_ahead=1).says(20, timers=long) == []


@pytest.mark.parametrize(
    ("training", "learned"),
    [
        ({"baseline": "ridge", "group_size": 1}, {"group_singleton_fraction": 1.0}),
        ({"baseline_decay": 0.8, "group_size": 1}, {"group_singleton_fraction": 1.0}),
        (presets.REINFORCE, {"group_singleton_fraction": 1.0}),
        (presets.REINFORCE, {"baseline_explained_variance": -0.1}),
        (presets.REINFORCE_BASELINE, {"baseline_explained_variance": -0.1}),
        # What others got of one constant foresees less than nothing, whatever the group.
        (presets.GRPO, {"baseline_explained_variance": -0.3}),
        (presets.GRPO, CUT),
        (presets.GSPO, CLIP),
        (presets.TRPO, {"mean_kl_loss": 0.2}),
        ({"second_level": Level("state")}, EQUAL | {"group_singleton_fraction": 1.0}),
        # All returns are 1, and every action is made likelier.
        (presets.REINFORCE, EQUAL),
        ({}, CUT),
        ({"binning": SpatialTimeBinning(epsilon=1.0)}, CUT),
        ({**GRID, "baseline": "ridge"}, CUT),
        ({"binning": lambda observations, timesteps: timesteps}, CUT),
    ],
)
def test_no_false_alarm(training: dict[str, Any], learned: dict[str, Any]) -> None:
    assert Run(**training).says(20, **learned) == []


def test_one_episode_that_comes_back_to_its_bins_learns_something() -> None:
    run = Run(binning="state", group_size=1)
    (sentence,) = run.says(20, group_singleton_fraction=1.0)
    assert "100% of the first visits are alone in their bin, and nothing is learned from them" in (
        sentence
    )


def test_agents_of_one_episode_are_compared_with_one_another() -> None:
    """They count as one where entries that are alone are counted."""
    alone = {"group_singleton_fraction": 0.9}
    config = GPGConfig().training(group_size=4)
    config.multi_agent(policies={"policy"}, policy_mapping_fn=lambda *_, **__: "policy")
    assert Run(config.copy()).says(20, group_num_episodes=8, **alone) == []
    # But for a module of one agent, and for plain bins that leave the whole episode out.
    assert len(Run(config.copy()).says(20, group_num_episodes=4, **alone)) == 1
    config.training(leave_one_out=True)
    assert len(Run(config).says(20, group_num_episodes=8, **alone)) == 1


def test_returns_of_zero_teach_nothing_without_a_baseline() -> None:
    (sentence,) = Run(**presets.REINFORCE).says(10, **{**EQUAL, "group_return_mean": 0.0})
    assert "There is nothing to compare" in sentence


def test_rollouts_are_cut_and_that_is_no_time_limit() -> None:
    config = GPGConfig().training(**GRID).env_runners(batch_mode="truncate_episodes")
    assert Run(config).says(20, **CUT) == []


def test_nobody_is_warned_of_having_solved_it() -> None:
    run = Run()
    assert run.says(5, group_return_mean=499.0) == []
    assert run.says(20, **{**EQUAL, "group_return_mean": 500.0}) == []
    # The same at the bottom: once it was better.
    assert len(run.says(20, **{**EQUAL, "group_return_mean": 9.0})) == 1


def test_where_all_are_cut_alike_the_limit_is_named() -> None:
    """Nobody has come to the end so far: a longer limit may change that."""
    (sentence,) = Run().says(10, **EQUAL, **CUT)
    assert "all episodes are cut, after 100 steps: a longer limit" in sentence


def test_actions_that_are_numbers_have_another_entropy() -> None:
    """A normal distribution with a standard deviation of 0.1 per number is no collapse."""
    entropy = 3 * (np.log(0.1) + 0.5 * np.log(2 * np.pi * np.e))
    assert entropy < 0
    assert Run().says(20, module_id="other", entropy=entropy) == []
    assert len(Run().says(20, module_id="other", entropy=entropy + 3 * np.log(0.05))) == 1


def test_a_module_that_isnt_trained_has_nothing_to_say() -> None:
    result = {"learners": {"policy": {}, "of_a_piece": np.float64(1.0)}, "timers": {}}
    assert [*TrainingWarnings(GPGConfig()).of(result, SPACES)] == []
    assert [*TrainingWarnings(GPGConfig()).of({}, SPACES)] == []


def test_a_module_without_a_group_has_nothing_to_say() -> None:
    """Of one that was removed, or that no agent was mapped to, RLlib reports nan."""
    assert Run().says(20, **dict.fromkeys(HEALTHY, np.nan)) == []


class Constant(Identity):
    """Rewards nothing."""

    def step(self, action: int) -> Any:
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


TOO_FINE = {"binning": SpatialBinning(epsilon=1e-6)}
MultiConstant = make_multi_agent(Constant)


@pytest.mark.usefixtures("ray_session")
def test_bins_that_are_too_fine_are_warned_of_in_the_first_iteration() -> None:
    with built(small_config(StartDecides, **TOO_FINE)) as algo, logged_warnings() as messages:
        for _ in range(3):
            result = algo.train()
    # It reads like nothing, and no longer like success.
    assert module_results(result)["baseline_explained_variance"] == 0.0
    (sentence,) = messages
    assert sentence.startswith("Module 'default_policy': All first visits are alone")


@pytest.mark.usefixtures("ray_session")
def test_equal_returns_are_warned_of_for_each_module() -> None:
    config = small_config(MultiConstant, group_size=2)
    config.environment(env_config={"num_agents": 2}).multi_agent(
        policies={"a", "b"}, policy_mapping_fn=lambda agent, episode, **_: "ab"[int(agent)]
    )
    with built(config) as algo, logged_warnings() as messages:
        for _ in range(12):
            algo.train()
    assert sorted(message[:11] for message in messages) == ["Module 'a':", "Module 'b':"]
    assert all("there is nothing to compare" in message.lower() for message in messages)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    "training",
    [{}, {"group_size": 1, "baseline": "ridge", "lambda_": 0.98}, presets.REINFORCE, presets.GRPO],
    ids=["default", "ridge", "reinforce", "grpo"],
)
def test_a_healthy_run_is_silent(training: dict[str, Any]) -> None:
    with built(small_config(Identity, **training)) as algo, logged_warnings() as messages:
        for _ in range(12):
            algo.train()
    assert messages == []


@pytest.mark.usefixtures("ray_session")
def test_the_loggers_level_turns_them_off() -> None:
    logger = logging.getLogger("ray.rllib.diagnosis")
    logger.setLevel(logging.ERROR)
    try:
        with built(small_config(StartDecides, **TOO_FINE)) as algo, logged_warnings() as messages:
            algo.train()
    finally:
        logger.setLevel(logging.NOTSET)
    assert messages == []


def test_a_module_that_is_added_is_judged_by_its_own_settings() -> None:
    """Every step is alone in its bin, which a ridge minds less than bins do."""
    run = Run(baseline="bins")
    assert any("compared with itself" in said for said in run.says(**ALONE))
    run._warnings.add_module("policy", {"baseline": "ridge"})
    assert not run.says(**ALONE)
    run._warnings.add_module("policy", {})
    assert any("compared with itself" in said for said in run.says(**ALONE))

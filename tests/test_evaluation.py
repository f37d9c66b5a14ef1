"""Evaluation: by episodes it is exact and unbiased; a checkpoint alone gives single actions."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID, Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from scipy.stats import binomtest

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling import SamplingError
from tests.envs import Broken, ComingAndGoing, HangsOnce, Identity, ShortOrLong
from tests.helpers import SMALL_NET, built, fingerprint, sample_group, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


class Witness(RLlibCallback):
    """Logs, of each finished episode, what tells policies and episodes apart."""

    def on_episode_end(
        self, *, episode: Any, env_runner: Any, metrics_logger: Any, **kwargs: Any
    ) -> None:
        observations = episode.get_observations()
        policy = sum_of(env_runner.module.get_state())
        with torch.no_grad():
            logits = env_runner.module({Columns.OBS: torch.tensor(np.array(observations[:-1]))})
        best = logits[Columns.ACTION_DIST_INPUTS].argmax(-1).numpy()
        greedy = float((best == np.array(episode.get_actions())).all())
        metrics_logger.log_value("first_policy", policy, reduce="min")
        metrics_logger.log_value("last_policy", policy, reduce="max")
        metrics_logger.log_value("all_greedy", greedy, reduce="min")
        metrics_logger.log_value("episodes_seen", float(observations[0][0]), reduce="sum")
        metrics_logger.log_value("steps_of_episodes", len(episode), reduce="sum")


def evaluating(
    env: Any, num_runners: int, num_envs: int = 4, *, duration: int = 7, **settings: Any
) -> GPGConfig:
    """A config that evaluates in every iteration, with `num_runners` env runners of its own."""
    config = small_config(env, group_size=4, lr=0.01).callbacks(Witness)
    return config.evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=num_runners,
        evaluation_duration=duration,
        **{"evaluation_config": {"num_envs_per_env_runner": num_envs}, **settings},
    )


def sum_of(state: dict[str, Any]) -> float:
    """One number that stands for a policy."""
    return float(sum(np.sum(array, dtype=np.float64) for array in state.values()))


def policy_of(algo: GPG) -> float:
    return sum_of(algo.learner_group.get_weights()[DEFAULT_MODULE_ID])


def evaluated_policy(results: dict[str, Any]) -> float:
    """The one policy of all evaluated episodes."""
    seen = results["env_runners"]
    assert seen["first_policy"] == seen["last_policy"]
    return float(seen["first_policy"])


# Exact and unbiased.


@pytest.mark.parametrize(
    ("num_runners", "parallel"),
    [(0, False), pytest.param(2, False, marks=pytest.mark.slow), (2, True)],
)
def test_exact_and_unbiased(num_runners: int, parallel: bool) -> None:
    """Exactly the whole episodes asked for, and the long ones as frequent as in the env.

    Neither env runners nor envs divide the duration. One half of the episodes lasts 5 steps, the
    others 200; the first to finish would be the short ones. Of all seeds, one in 10,000 misses the
    bound of a fair coin; these are fixed.
    """
    duration, short, long = 101, ShortOrLong.SHORT, ShortOrLong.LONG
    config = evaluating(ShortOrLong, num_runners, num_envs=3, duration=duration)
    config.evaluation(evaluation_parallel_to_training=parallel)
    with built(config) as algo:
        for _ in range(2):
            runners = algo.train()["evaluation"]["env_runners"]
            assert runners["num_episodes"] == duration
            # No step of any other episode was taken.
            steps = int(runners["num_env_steps_sampled"])
            assert steps == runners["steps_of_episodes"]
            num_long, remainder = divmod(steps - duration * short, long - short)
            assert remainder == 0
            assert binomtest(num_long, duration, 0.5).pvalue > 1e-4
        lifetime = algo.metrics.peek(("evaluation", "env_runners", "num_episodes_lifetime"))
        assert lifetime == 2 * duration


@pytest.mark.slow
def test_an_env_runner_that_takes_too_long_is_replaced(tmp_path: Path) -> None:
    """RLlib leaves out what takes longer than `evaluation_sample_timeout_s`, and says nothing."""
    (training := tmp_path / "training").touch()
    config = evaluating(HangsOnce, 2, evaluation_sample_timeout_s=10.0)
    config.environment(env_config={"path": str(training)})
    config.evaluation(evaluation_config={"env_config": {"path": str(tmp_path / "evaluation")}})
    with built(config) as algo:
        runners = algo.train()["evaluation"]["env_runners"]
    assert runners["num_episodes"] == 7
    assert runners["num_episodes_redispatched"] > 0


@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_env_that_fails_in_evaluation_ends_the_run_after_a_checkpoint(parallel: bool) -> None:
    config = evaluating(Broken, int(parallel), evaluation_parallel_to_training=parallel)
    config.environment(env_config={"how": "not at all"})
    config.evaluation(evaluation_config={"env_config": {"how": "raises"}})
    with (
        built(config) as algo,
        pytest.raises(SamplingError, match="the simulator is gone") as error,
    ):
        algo.train()
    message = str(error.value)
    assert "of evaluation 0 failed 5 times" in message
    with built(config) as algo:
        algo.restore_from_path(re.search(r"The run as it was: (\S+)", message)[1])
        # The group of the iteration in which the evaluation failed isn't lost.
        assert algo._groups.number == 1


# As in RLlib's PPO otherwise.


class Hooks(Witness):
    """Keeps, in the algorithm's process, what it was told about evaluations."""

    def on_evaluate_start(self, *, algorithm: Any, **kwargs: Any) -> None:
        algorithm.told = ["start"]

    def on_evaluate_end(self, *, algorithm: Any, evaluation_metrics: Any, **kwargs: Any) -> None:
        algorithm.told.append(evaluation_metrics["env_runners"]["num_episodes"])


@pytest.mark.parametrize("num_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_metrics_and_callbacks_of_ppo_are_there(num_runners: int) -> None:
    config = evaluating(Identity, num_runners).callbacks(Hooks)
    reference = (
        PPOConfig()
        .environment(Identity)
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=100, minibatch_size=50)
        .rl_module(model_config=SMALL_NET)
        .callbacks(Hooks)
        .evaluation(
            evaluation_interval=1, evaluation_num_env_runners=num_runners, evaluation_duration=7
        )
        .debugging(log_sys_usage=False)
    )
    with built(config) as algo, built(reference) as ppo:
        result, expected = algo.train(), ppo.train()
    assert result["evaluation"].keys() >= expected["evaluation"].keys()
    missing = expected["evaluation"]["env_runners"].keys() - result["evaluation"]["env_runners"]
    # What times the steps of RLlib's connector pipelines, which sampling in columns hasn't.
    assert all(name.split("_")[0] in ("env", "module", "rlmodule") for name in missing)
    assert result["evaluation"]["num_healthy_workers"] == num_runners
    assert algo.told == ppo.told == ["start", 7]


@pytest.mark.slow
def test_auto_evaluates_for_as_long_as_the_training_takes() -> None:
    config = evaluating(Identity, 1, duration="auto", evaluation_parallel_to_training=True)
    config.reporting(min_time_s_per_iteration=1)
    with built(config) as algo:
        # RLlib drops what comes back after the training's end, as all may on a busy machine.
        results = (algo.train()["evaluation"] for _ in range(60))
        runners = next(result["env_runners"] for result in results if "env_runners" in result)
    assert runners["num_env_steps_sampled"] >= 100
    assert runners["num_episodes"] >= 1


def test_a_custom_evaluation_function_stays() -> None:
    calls = []

    def evaluate(algorithm: GPG, env_runner_group: Any) -> Any:
        calls.append(env_runner_group is algorithm.eval_env_runner_group)
        return {}, 0, 0

    with built(evaluating(Identity, 0, custom_evaluation_function=evaluate)) as algo:
        algo.evaluate()
    assert calls == [True]


def test_evaluation_by_timesteps_is_rllibs() -> None:
    with built(evaluating(Identity, 0, evaluation_duration_unit="timesteps")) as algo:
        runners = algo.train()["evaluation"]["env_runners"]
    # Seven steps of 4 envs, rounded up.
    assert runners["num_env_steps_sampled"] == 8


@pytest.mark.parametrize("num_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_greedy_actions_in_evaluation_alone(num_runners: int) -> None:
    config = evaluating(Identity, num_runners, evaluation_config={"explore": False})
    with built(config) as algo:
        result = algo.train()
    assert result["evaluation"]["env_runners"]["all_greedy"] == 1.0
    assert result["env_runners"]["all_greedy"] == 0.0


# Which policy, which episodes.


@pytest.mark.parametrize("num_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_policy_after_the_update_is_evaluated(num_runners: int) -> None:
    with built(evaluating(Identity, num_runners)) as algo:
        for _ in range(2):
            before = policy_of(algo)
            results = algo.train()["evaluation"]
            assert evaluated_policy(results) == policy_of(algo) != before


class Slowly(Witness):
    """Begins an evaluation long after the training beside it has ended."""

    def on_evaluate_start(self, **kwargs: Any) -> None:
        time.sleep(3.0)


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", [Witness, Slowly])
def test_in_parallel_the_policy_before_the_update_is_evaluated(callbacks: Any) -> None:
    """One policy for all episodes, though the learner moves on meanwhile."""
    config = evaluating(Identity, 1, evaluation_parallel_to_training=True).callbacks(callbacks)
    with built(config) as algo:
        for _ in range(3):
            before = policy_of(algo)
            results = algo.train()["evaluation"]
            assert evaluated_policy(results) == before != policy_of(algo)


@pytest.mark.parametrize(
    ("unit", "num_runners"),
    [
        ("episodes", 0),
        ("timesteps", 0),
        pytest.param("episodes", 1, marks=pytest.mark.slow),
        pytest.param("timesteps", 1, marks=pytest.mark.slow),
    ],
)
def test_evaluation_after_going_back_to_an_older_checkpoint(
    unit: str, num_runners: int, tmp_path: Path
) -> None:
    config = evaluating(Identity, num_runners, duration=40, evaluation_duration_unit=unit)
    with built(config) as algo:
        algo.train()
        old, path = policy_of(algo), algo.save_to_path(tmp_path)
        for _ in range(2):
            algo.train()
        assert policy_of(algo) != old
        algo.restore_from_path(path)
        assert evaluated_policy(algo.evaluate()) == old


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluate_without_env_runners_of_its_own(num_env_runners: int) -> None:
    """The env runners for training do it, and the next group is what it would have been."""
    config = small_config(ShortOrLong, group_size=6).callbacks(Witness)
    config.env_runners(num_env_runners=num_env_runners).evaluation(evaluation_duration=5)
    groups = []
    for evaluate in (False, True):
        with built(config) as algo:
            algo.train()
            if evaluate:
                results = algo.evaluate()
                assert results["env_runners"]["num_episodes"] == 5
                assert evaluated_policy(results) == policy_of(algo)
            groups.append(fingerprint(sample_group(algo)))
            lifetime = algo.metrics.peek(("env_runners", "num_episodes_lifetime"))
            assert lifetime == 12
    assert groups[0] == groups[1]


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_greedy_actions_without_env_runners_of_its_own(num_env_runners: int) -> None:
    config = small_config(Identity).callbacks(Witness)
    config.env_runners(num_env_runners=num_env_runners)
    config.evaluation(evaluation_duration=5, evaluation_config={"explore": False})
    with built(config) as algo:
        assert algo.evaluate()["env_runners"]["all_greedy"] == 1.0
        assert algo.train()["env_runners"]["all_greedy"] == 0.0


@pytest.mark.parametrize(
    ("unit", "settings"),
    [
        ("episodes", {"env_config": {"how": "otherwise"}}),
        ("episodes", {"explore": False, "num_envs_per_env_runner": 7}),
        ("timesteps", {"explore": False}),
    ],
)
def test_what_env_runners_for_training_cant_take_is_refused(
    unit: str, settings: dict[str, Any]
) -> None:
    config = small_config(Identity)
    config.evaluation(evaluation_duration_unit=unit, evaluation_config=settings)
    refused = list(settings)[-1]
    with (
        pytest.warns(UserWarning, match=f"sets `{refused}`, but there are no env runners"),
        built(config) as algo,
    ):
        with pytest.raises(ValueError, match=f"sets `{refused}`, but .*evaluation_interval="):
            algo.evaluate()
        algo.train()


def test_a_config_object_is_refused_without_env_runners_for_evaluation() -> None:
    config = small_config(Identity)
    config.evaluation(evaluation_config=small_config(Identity).env_runners(explore=False))
    with (
        pytest.warns(UserWarning, match="a config of its own"),
        built(config) as algo,
        pytest.raises(ValueError, match="a config of its own"),
    ):
        algo.evaluate()


def test_what_is_as_in_training_is_not_refused() -> None:
    config = small_config(Identity)
    config.evaluation(
        evaluation_duration=3, evaluation_config={"num_envs_per_env_runner": 4, "explore": False}
    )
    with built(config) as algo:
        assert algo.evaluate()["env_runners"]["num_episodes"] == 3


def test_weights_that_are_set_by_hand_are_in_force() -> None:
    def halve(learner: Any) -> None:
        for parameter in learner.module[DEFAULT_MODULE_ID].parameters():
            parameter.data *= 0.5

    with built(evaluating(Identity, 0)) as algo:
        algo.train()
        algo.learner_group.foreach_learner(halve)
        halved = policy_of(algo)
        assert evaluated_policy(algo.evaluate()) == halved
        algo.learner_group.foreach_learner(halve)
        halved = policy_of(algo)
        result = algo.train()
        # The weights of the group, before the update.
        assert evaluated_policy(result) == halved


# Means over the episodes themselves.


@pytest.mark.parametrize(
    ("num_runners", "duration"),
    [
        # Shares of 4 and 3 episodes.
        pytest.param(2, 7, id="unequal shares", marks=pytest.mark.slow),
        # More than RLlib's window.
        pytest.param(0, 300, id="many episodes"),
    ],
)
def test_an_evaluation_reports_the_mean_over_its_episodes(num_runners: int, duration: int) -> None:
    """The reward is 1 per step, so that lengths are returns."""
    with built(evaluating(ShortOrLong, num_runners, duration=duration)) as algo:
        for _ in range(2):
            results = algo.evaluate()["env_runners"]
            mean = results["steps_of_episodes"] / duration
            assert ShortOrLong.SHORT < mean < ShortOrLong.LONG
            assert results["episode_return_mean"] == pytest.approx(mean)
            assert results["episode_len_mean"] == pytest.approx(mean)
            assert results["episode_return_min"] == results["episode_len_min"] == ShortOrLong.SHORT
            assert results["episode_return_max"] == results["episode_len_max"] == ShortOrLong.LONG
            assert results["agent_episode_return_mean"]["default_agent"] == pytest.approx(mean)
            assert results["module_episode_return_mean"][DEFAULT_MODULE_ID] == pytest.approx(mean)


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_training_reports_the_mean_over_the_group(num_env_runners: int) -> None:
    """In shares of 3, 3 and 1; of more episodes than RLlib's window."""
    config = small_config(ShortOrLong, group_size=7).reporting(metrics_num_episodes_for_smoothing=2)
    config.env_runners(num_env_runners=num_env_runners, episodes_per_share=3)
    with built(config) as algo:
        for _ in range(2):
            result = algo.train()
            group, results = result["learners"][DEFAULT_MODULE_ID], result["env_runners"]
            mean = group["group_return_mean"]
            assert mean == pytest.approx(group["group_num_env_steps"] / 7)
            assert results["episode_return_mean"] == pytest.approx(mean)
            assert results["episode_len_mean"] == pytest.approx(mean)
            assert results["episode_return_min"] == results["episode_len_min"] == ShortOrLong.SHORT
            assert results["episode_return_max"] == results["episode_len_max"] == ShortOrLong.LONG


def test_means_of_agents_and_modules_are_over_the_episodes_they_were_in() -> None:
    """Shares of 3, 3 and 1 episodes of 8 env steps, with rewards times 1 to 5."""
    config = small_config(ComingAndGoing, group_size=7).env_runners(episodes_per_share=3)
    config.multi_agent(
        policies={"first", "others"},
        policy_mapping_fn=lambda agent_id, episode, **kwargs: (
            "first" if agent_id == "a" else "others"
        ),
    )
    with built(config) as algo:
        factors = [episode.get_observations(0)["a"][0] for episode in sample_group(algo)]
        results = algo.metrics.peek("env_runners")
    mean = sum(factors) / 7
    returns = {agent: sum(rewards) for agent, rewards in ComingAndGoing.REWARDS.items()}
    expected = {agent: pytest.approx(mean * value) for agent, value in returns.items()}
    assert results["agent_episode_returns_mean"] == expected
    assert results["agent_steps"] == {"a": 8, "b": 2, "c": 3}
    assert results["module_episode_returns_mean"] == {
        "first": expected["a"],
        "others": pytest.approx(mean * (returns["b"] + returns["c"])),
    }
    assert results["episode_len_mean"] == 8
    total = sum(returns.values())
    assert results["episode_return_mean"] == pytest.approx(mean * total)
    assert results["episode_return_min"] == pytest.approx(min(factors) * total)
    assert results["episode_return_max"] == pytest.approx(max(factors) * total)


@pytest.mark.slow
def test_evaluations_are_seeded_and_differ() -> None:
    """The same on any number of env runners; each with episodes of its own; none of a group's."""

    def episodes_seen(num_runners: int, seed: int | None = None) -> list[float]:
        config = evaluating(ShortOrLong, num_runners).env_runners(episodes_per_share=2)
        if seed is not None:
            config.evaluation(evaluation_config={"seed": seed})
        with built(config) as algo:
            evaluations = [algo.evaluate() for _ in range(3)]
        return [float(results["env_runners"]["episodes_seen"]) for results in evaluations]

    seen = episodes_seen(0)
    assert len(set(seen)) == 3
    assert episodes_seen(1) == pytest.approx(seen, rel=1e-12)
    assert not set(episodes_seen(0, seed=5)) & set(seen)


def test_a_restored_run_goes_on_with_the_next_evaluation(tmp_path: Path) -> None:
    seen = []
    for cut in (False, True):
        with built(evaluating(ShortOrLong, 0)) as algo:
            algo.train()
            if not cut:
                seen.append(algo.train()["evaluation"]["env_runners"]["episodes_seen"])
                continue
            path = algo.save_to_path(tmp_path)
        with built(evaluating(ShortOrLong, 0)) as algo:
            algo.restore_from_path(path)
            seen.append(algo.train()["evaluation"]["env_runners"]["episodes_seen"])
    assert seen[0] == seen[1]


# Single actions.


@pytest.mark.parametrize(
    "model_config",
    [
        {},
        {"normalize_observations": True},
        {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5},
    ],
    ids=["plain", "normalized", "lstm"],
)
def test_single_actions_from_a_checkpoint(model_config: dict[str, Any], tmp_path: Path) -> None:
    """An episode by hand, with the module alone, returns what the algorithm's evaluation does."""
    config = small_config(Identity).rl_module(model_config={**SMALL_NET, **model_config})
    config.evaluation(evaluation_duration=1).env_runners(explore=False)
    with built(config) as algo:
        algo.train()
        expected = algo.get_module()
        algo.save_to_path(tmp_path)
    path = tmp_path / "learner_group" / "learner" / "rl_module" / DEFAULT_MODULE_ID
    module = RLModule.from_checkpoint(path)

    env = Identity()
    observation, _ = env.reset(seed=3)
    states = [m.get_initial_state() for m in (module, expected)]
    done, num_steps = False, 0
    while not done:
        logits = []
        for which, policy in enumerate((module, expected)):
            batch: dict[str, Any] = {Columns.OBS: torch.tensor(observation)[None]}
            if policy.is_stateful():
                # [B, T, ..] observations, and the state of one sequence.
                batch[Columns.OBS] = batch[Columns.OBS][None]
                batch[Columns.STATE_IN] = {
                    name: torch.as_tensor(value)[None] if num_steps == 0 else value
                    for name, value in states[which].items()
                }
            outputs = policy.forward_inference(batch)
            states[which] = outputs.get(Columns.STATE_OUT, {})
            logits.append(outputs[Columns.ACTION_DIST_INPUTS].flatten())
        assert torch.equal(*logits)
        observation, _, terminated, truncated, _ = env.step(int(logits[0].argmax()))
        num_steps += 1
        done = terminated or truncated
    assert num_steps == Identity.LENGTH

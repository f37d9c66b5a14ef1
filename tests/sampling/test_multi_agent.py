"""Several agents: exact, seeded groups of env episodes, and a group of its own per module."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import SpatialBinning
from rllib_gpg.sampling import GroupEnvRunner, MultiAgentGroupEnvRunner
from rllib_gpg.sampling.messages import ModuleChanges
from rllib_gpg.validation import check_spaces
from tests.advantages.naive import naive_advantages
from tests.envs import (
    ComingAndGoing,
    MultiShortOrLong,
    MultiUnreliable,
    ShortOrLong,
    TwoRoles,
)
from tests.helpers import (
    GROUP_METRICS,
    built,
    guarded,
    same,
    sample_group,
    small_config,
    snapshot,
    whole_group,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def to_role(agent_id: Any, episode: MultiAgentEpisode, **kwargs: Any) -> str:
    return "first" if agent_id in ("a", 0) else "others"


def multi_config(env: Any, num_agents: int = 2, **training: Any) -> GPGConfig:
    """Agent "a" or 0 has a policy of its own; the others share one."""
    return (
        small_config(env, **training)
        .environment(env_config={"num_agents": num_agents} if env is not ComingAndGoing else {})
        .multi_agent(policies={"first", "others"}, policy_mapping_fn=to_role)
    )


def two_roles_config() -> GPGConfig:
    """Two agents with spaces of their own, and a policy each."""
    return (
        small_config(TwoRoles)
        .env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(
                multi_agent=True
            )
        )
        .multi_agent(
            policies={"reader", "pointer"},
            policy_mapping_fn=lambda agent_id, episode, **kwargs: agent_id,
        )
    )


def runner_of(config: GPGConfig) -> MultiAgentGroupEnvRunner:
    return MultiAgentGroupEnvRunner(config=config, worker_index=0)


def traces(episodes: list[MultiAgentEpisode]) -> list[Any]:
    """What makes two episodes the same, agent by agent."""
    return [
        [
            (
                agent.agent_id,
                agent.module_id,
                np.asarray(agent.get_observations()).tobytes(),
                np.asarray(agent.get_actions()).tobytes(),
                np.asarray(agent.get_rewards()).tobytes(),
                agent.is_terminated,
                agent.is_truncated,
            )
            for agent in sorted(episode.agent_episodes.values(), key=lambda a: str(a.agent_id))
        ]
        for episode in episodes
    ]


# Exact groups


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_group_has_exactly_n_whole_episodes(num_env_runners: int) -> None:
    config = multi_config(ComingAndGoing, group_size=13).env_runners(
        num_env_runners=num_env_runners
    )
    with built(config) as algo:
        for _ in range(2):
            group = sample_group(algo)
            assert len(group) == len({episode.id_ for episode in group}) == 13
            assert all(episode.is_done and episode.env_t_started == 0 for episode in group)


class SameInfos(MultiShortOrLong):
    """Fills the same dicts at every step."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.infos: dict[Any, Any] = {agent: {"t": 0} for agent in self.possible_agents}

    def reset(self, **kwargs: Any) -> Any:
        observations, _ = super().reset(**kwargs)
        for info in self.infos.values():
            info["t"] = 0
        return observations, self.infos

    def step(self, actions: Any) -> Any:
        *step, _ = super().step(actions)
        for info in self.infos.values():
            info["t"] += 1
        return *step, self.infos


def test_infos_are_those_of_their_steps_also_of_envs_that_reuse_them() -> None:
    for episode in runner_of(multi_config(SameInfos)).sample(num_episodes=4):
        for agent in episode.agent_episodes.values():
            assert [info["t"] for info in agent.get_infos()] == list(range(len(agent) + 1))


class JoiningLate(ComingAndGoing):
    """Nobody is there for two steps; of every other episode, nobody comes at all."""

    num_episodes = 0

    def reset(self, **kwargs: Any) -> Any:
        observations, infos = super().reset(**kwargs)
        self.waiting, self.first = 2, observations
        self.num_episodes += 1
        return {}, infos

    def step(self, actions: dict[str, int]) -> Any:
        self.waiting -= 1
        if self.waiting > 0 or self.num_episodes % 2:
            assert not actions
            ends = {"__all__": self.waiting < -3}
            return {}, {}, ends, {"__all__": False}, {}
        if self.waiting == 0:
            return self.first, {}, {"__all__": False}, {"__all__": False}, {}
        return super().step(actions)


@pytest.mark.parametrize("limit", [None, 5])
def test_episodes_begin_when_their_first_agents_come(limit: int | None) -> None:
    """Two steps late; episodes that nobody comes to have no steps, and are cut as any other."""
    config = multi_config(JoiningLate, group_size=8).environment(env_config={})
    config.env_runners(num_envs_per_env_runner=2, max_episode_steps=limit)
    with built(config) as algo:
        group = sample_group(algo)
        learned = algo.train()["learners"]
    lengths = [{name: len(agent) for name, agent in e.agent_episodes.items()} for e in group]
    assert all(episode.is_done for episode in group)
    whole = {"a": 8, "b": 2, "c": 3} if limit is None else {"a": 3, "b": 1}
    assert sorted(lengths, key=len) == [{}] * 4 + [whole] * 4
    assert learned["first"]["group_num_env_steps"] == 4 * whole["a"]


def test_long_episodes_are_half_of_all_episodes() -> None:
    with built(multi_config(MultiShortOrLong, group_size=24)) as algo:
        lengths = np.array([len(episode) for _ in range(4) for episode in sample_group(algo)])
    assert set(lengths.tolist()) == {ShortOrLong.SHORT, ShortOrLong.LONG}
    # 4 standard deviations of the mean of 96 draws with probability one half.
    assert abs((lengths == ShortOrLong.LONG).mean() - 0.5) < 4 * 0.5 / 96**0.5


@pytest.mark.parametrize("num_episodes", [0, 1, 4, 9])
def test_sample_returns_exactly_the_episodes_asked_for(num_episodes: int) -> None:
    runner = runner_of(multi_config(MultiShortOrLong))
    for _ in range(2):
        assert len(runner.sample(num_episodes=num_episodes)) == num_episodes
        # Sampling by timesteps (evaluation with a duration of "auto") is RLlib's own.
        assert 20 <= sum(map(len, runner.sample(num_timesteps=20))) < 24


@pytest.mark.slow
def test_training_is_the_same_on_0_and_2_env_runners() -> None:
    groups = []
    for num_env_runners in (0, 2):
        config = multi_config(ComingAndGoing, group_size=10).env_runners(
            num_env_runners=num_env_runners, episodes_per_share=3
        )
        with built(config) as algo:
            algo.train()
            groups.append(traces(sample_group(algo)))
    assert groups[0] == groups[1]


HASH_SEED_SCRIPT = """
import torch
from tests.sampling.test_multi_agent import *
config = multi_config(ComingAndGoing).multi_agent(policies={"first"}, policy_mapping_fn=all_first)
torch.manual_seed(0)
print(set("abc"))
print(traces(runner_of(config).sample(num_episodes=6)))
"""


def test_no_action_depends_on_pythons_hash_seed() -> None:
    """RLlib keeps agents in sets, and the order of a set of names is another in each process."""

    def run(hash_seed: int) -> list[str]:
        finished = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", HASH_SEED_SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
            capture_output=True,
            check=True,
            text=True,
        )
        return finished.stdout.splitlines()

    with ThreadPoolExecutor() as pool:
        (order, sampled), (other_order, sampled_again) = pool.map(run, (1, 2))
    assert order != other_order
    assert sampled.count("'c'") == 6
    assert sampled_again == sampled


def at_random(agent_id: Any, episode: MultiAgentEpisode, **kwargs: Any) -> str:
    return random.choice(["first", "others"])


def test_a_share_maps_the_same_agents_again_also_at_random() -> None:
    config = multi_config(ComingAndGoing).multi_agent(policy_mapping_fn=at_random)
    state = random.getstate()
    with built(config) as algo:
        group = traces(sample_group(algo))
        algo._groups.number = 0
        assert traces(sample_group(algo)) == group
        assert traces(sample_group(algo)) != group
    assert {trace[1] for episode in group for trace in episode} == {"first", "others"}
    # Whoever else draws random numbers in this process is left alone.
    assert random.getstate() == state


@pytest.mark.slow
def test_a_share_that_failed_is_sampled_again_as_it_was() -> None:
    groups = []
    for probability in (0.0, 0.004):
        config = multi_config(MultiUnreliable, group_size=12).fault_tolerance(max_share_failures=50)
        config.environment(
            env_config={"num_agents": 2, "probability": probability},
            disable_env_checking=True,  # it would try every env once
        )
        config.env_runners(episodes_per_share=1)
        with built(config) as algo:
            result = algo.train()
            groups.append(traces(sample_group(algo)))
    # 12 episodes of 103 steps on average, 2 agents: chance of no failure in 1,230 * 2 calls 5e-5.
    assert result["env_runners"]["num_episodes_redispatched_lifetime"] > 0
    assert groups[0] == groups[1]


# What RLlib's own env runner does


class Watching(RLlibCallback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_episode_created(self, **kwargs: Any) -> None:
        self.seen.append(("created", kwargs["env_index"]))

    def on_episode_start(self, *, episode: MultiAgentEpisode, **kwargs: Any) -> None:
        assert episode.is_reset and len(episode) == 0
        self.seen.append(("start", kwargs["env_index"]))

    def on_episode_step(self, *, episode: MultiAgentEpisode, **kwargs: Any) -> None:
        self.seen.append(("step", kwargs["env_index"], episode.env_t))

    def on_episode_end(self, *, episode: MultiAgentEpisode, **kwargs: Any) -> None:
        assert episode.is_done and kwargs["prev_episode_chunks"] == []
        self.seen.append(("end", kwargs["env_index"], len(episode), episode.get_return()))

    def on_sample_end(self, *, samples: list[MultiAgentEpisode], **kwargs: Any) -> None:
        self.seen.append(("sample end", len(samples)))


@pytest.mark.parametrize("model_config", [{"fcnet_hiddens": [8]}, {"use_lstm": True}])
def test_episodes_callbacks_and_metrics_are_those_of_rllibs_env_runner(
    model_config: dict[str, Any],
) -> None:
    """Three episodes, one after the other, of an env without randomness, on the likeliest actions.

    RLlib begins a fourth episode (and drops it).
    """
    config = multi_config(ComingAndGoing).callbacks(Watching).rl_module(model_config=model_config)
    config.environment(env_config={"factor": 2}).env_runners(num_envs_per_env_runner=1)
    ours, theirs = runner_of(config), MultiAgentEnvRunner(config=config, worker_index=0)
    theirs.module.set_state(ours.module.get_state())
    episodes = [runner.sample(num_episodes=3, explore=False) for runner in (ours, theirs)]
    assert traces(episodes[0]) == traces(episodes[1])
    for one, other in zip(*episodes, strict=True):
        for agent_id, agent in one.agent_episodes.items():
            outputs, expected = agent.extra_model_outputs, other.agent_episodes[agent_id]
            assert outputs.keys() == expected.extra_model_outputs.keys()
            assert one.is_numpy and other.is_numpy
            np.testing.assert_array_equal(
                agent.get_extra_model_outputs("action_dist_inputs"),
                expected.get_extra_model_outputs("action_dist_inputs"),
            )
    seen, expected_seen = ours._callbacks[0].seen, theirs._callbacks[0].seen
    assert expected_seen.pop(-2) == ("created", 0)
    assert seen == expected_seen
    metrics, expected_metrics = (runner.get_metrics() for runner in (ours, theirs))
    counted = ("num_", "agent_", "module_steps", "module_episode", "episode_len", "episode_return")
    names = {name for name in expected_metrics if name.startswith(counted)}
    assert names == {name for name in metrics if name.startswith(counted)}
    for name in names:
        if not name.endswith("throughput"):
            assert peeked(metrics[name]) == peeked(expected_metrics[name]), name


def peeked(stats: Any) -> Any:
    return {k: v.peek() for k, v in stats.items()} if isinstance(stats, dict) else stats.peek()


def test_unseeded_calls_draw_actions_of_their_own() -> None:
    config = multi_config(MultiShortOrLong).debugging(seed=None)
    runner = MultiAgentGroupEnvRunner(config=config, worker_index=0)
    torch.manual_seed(0)
    draws = []
    for _ in range(2):
        agents = [a for e in runner.sample(num_episodes=8) for a in e.agent_episodes.values()]
        draws.append([action for agent in agents for action in agent.get_actions()[:5]])
    assert draws[0] != draws[1]


def test_random_actions_need_no_module_and_are_seeded() -> None:
    config = two_roles_config()
    drawn = []
    for _ in range(2):
        runner = runner_of(config)
        runner.module = None
        drawn.append(traces(runner.sample(num_episodes=3, random_actions=True)))
    assert drawn[0] == drawn[1]


def test_a_non_finite_observation_is_named_with_its_agent() -> None:
    config = multi_config(ComingAndGoing).environment(env_config={"factor": np.nan})
    with pytest.raises(ValueError, match=r"agent 'a' of episode \w+: the observation at step 0"):
        runner_of(config).sample(num_episodes=1)


# Cut episodes

A, B, C = (ComingAndGoing.REWARDS[agent] for agent in "abc")


@pytest.mark.parametrize(
    ("limit", "rewards", "last_seen"),
    [
        (1, {"a": A[:1]}, {"a": 1}),
        # "b" is shown something for the first time when it is too late to act.
        (2, {"a": A[:2]}, {"a": 2}),
        # "b" has acted and waits: it is shown again what it saw last.
        (3, {"a": A[:3], "b": [2]}, {"a": 3, "b": 2}),
        (4, {"a": A[:4], "b": [2 + 4]}, {"a": 4, "b": 4}),
        (5, {"a": A[:5], "b": [2 + 4, 8], "c": [16]}, {"a": 5, "b": 4, "c": 5}),
        # "b" leaves at this step by itself.
        (6, {"a": A[:6], "b": B, "c": [16, 64]}, {"a": 6, "b": 4, "c": 5}),
        (7, {"a": A[:7], "b": B, "c": [16, 64 + 128]}, {"a": 7, "b": 4, "c": 7}),
    ],
)
def test_max_episode_steps_cuts_all_agents_that_are_there(
    limit: int, rewards: dict[str, list[int]], last_seen: dict[str, int]
) -> None:
    """What an agent has been given by then is its own, also if it waits."""
    config = multi_config(ComingAndGoing).environment(env_config={"factor": 2})
    runner = runner_of(config.env_runners(max_episode_steps=limit))
    episodes = runner.sample(num_episodes=5)
    assert [len(episode) for episode in episodes] == [limit] * 5
    for episode in episodes:
        assert episode.is_truncated and not episode.is_terminated
        agents = episode.agent_episodes
        assert {a: (e.get_rewards() / 2).tolist() for a, e in agents.items()} == rewards
        assert {a: e.get_observations(-1)[1] for a, e in agents.items()} == last_seen
        ends = {a: "terminated" if e.is_terminated else "cut" for a, e in agents.items()}
        assert ends == {a: "terminated" if a == "b" and limit >= 6 else "cut" for a in agents}
        assert all(e.is_truncated or e.is_terminated for e in agents.values())


@pytest.mark.parametrize("limit", [8, 9])
def test_max_episode_steps_leaves_alone_what_the_env_ends_itself(limit: int) -> None:
    config = multi_config(ComingAndGoing).environment(env_config={"factor": 2})
    uncut = runner_of(config)
    cut = runner_of(config.copy(copy_frozen=False).env_runners(max_episode_steps=limit))
    cut.module.set_state(uncut.module.get_state())
    groups = [traces(runner.sample(num_episodes=5, explore=False)) for runner in (uncut, cut)]
    assert groups[0] == groups[1]


class Forever(ComingAndGoing):
    """Never ends by itself. Each agent sees the same array, filled anew at each step."""

    SCRIPT = (("ab", {"a": 1, "b": 10}), ("a", {"a": 1, "b": 20})) * 50

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.shown = np.zeros(2, np.float32)

    def step(self, actions: dict[str, int]) -> Any:
        observations, rewards, *_, infos = super().step(actions)
        return observations, rewards, {"__all__": False}, {"__all__": False}, infos

    def _observe(self, who: str) -> dict[str, np.ndarray]:
        self.shown[:] = self.factor, self.t
        return dict.fromkeys(who, self.shown)


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_agents_that_never_end_are_trained_and_evaluated_on_cut_episodes(
    num_env_runners: int,
) -> None:
    config = multi_config(Forever).environment(env_config={"factor": 1})
    config.env_runners(num_env_runners=num_env_runners, max_episode_steps=6)
    config.evaluation(evaluation_interval=1, evaluation_duration=3)
    with built(config) as algo:
        group = sample_group(algo)
        for episode in group:
            waiting = episode.agent_episodes["b"]
            # It first sees something at step 1, then at 3 and 5, acts then and waits for step 7.
            assert waiting.get_observations()[:, 1].tolist() == [1, 3, 5, 5]
            assert waiting.get_rewards().tolist() == [30, 30, 20]
        results = algo.train()
        others = results["learners"]["others"]
        assert others["group_return_mean"] == 80 and others["group_num_env_steps"] == 3 * 8
        evaluated = results["evaluation"]["env_runners"]
        assert (evaluated["num_episodes"], evaluated["episode_len_max"]) == (3, 6)


def test_max_episode_steps_holds_for_sampling_by_timesteps() -> None:
    config = multi_config(Forever).env_runners(max_episode_steps=6)
    episodes = runner_of(config).sample(num_timesteps=40)
    assert max(map(len, episodes)) == 6


# A module's group


def rewards_of(group: list[MultiAgentEpisode], agents: str) -> list[list[float]]:
    """The rewards of some agents' steps, by the env's own account, in the order of the batch."""
    factors = [episode.agent_episodes["a"].get_observations(0)[0] for episode in group]
    return [
        [factor * reward for reward in ComingAndGoing.REWARDS[agent]]
        for factor in factors
        for agent in agents
    ]


def test_a_modules_group_is_all_trajectories_of_its_agents_in_their_own_steps() -> None:
    config = multi_config(ComingAndGoing, gamma=0.5, normalize_advantages=False)
    with built(config) as algo:
        group = sample_group(algo)
        batch = whole_group(algo, group)
    for module_id, agents in (("first", "a"), ("others", "bc")):
        rewards = rewards_of(group, agents)
        expected = naive_advantages(
            rewards, rewards, gamma=0.5, binning=lambda observations, timesteps: timesteps
        )
        np.testing.assert_allclose(
            batch[module_id][Columns.ADVANTAGES], np.concatenate(expected), rtol=1e-5, atol=1e-4
        )


def test_gamma_binning_clip_and_entropy_may_differ_from_module_to_module() -> None:
    config = multi_config(ComingAndGoing, gamma=0.5, normalize_advantages=False, lr=0.03)
    config.multi_agent(
        algorithm_config_overrides_per_module={
            "others": {
                "gamma": 0.9,
                "binning": "universal",
                "clip_param": 1e6,
                "entropy_coeff": 0.25,
            }
        }
    )
    with built(config) as algo:
        group = sample_group(algo)
        batch = whole_group(algo, group)
        results = algo.train()["learners"]
    rewards = rewards_of(group, "bc")
    expected = naive_advantages(
        rewards, rewards, gamma=0.9, binning=lambda observations, timesteps: 0 * timesteps
    )
    np.testing.assert_allclose(
        batch["others"][Columns.ADVANTAGES], np.concatenate(expected), rtol=1e-5, atol=1e-3
    )
    rewards = rewards_of(group, "a")
    expected = naive_advantages(
        rewards, rewards, gamma=0.5, binning=lambda observations, timesteps: timesteps
    )
    np.testing.assert_allclose(
        batch["first"][Columns.ADVANTAGES], np.concatenate(expected), rtol=1e-5, atol=1e-4
    )
    assert results["others"]["curr_entropy_coeff"] == 0.25
    assert results["first"]["curr_entropy_coeff"] == 0.0
    assert results["others"]["clip_fraction"] == 0.0 < results["first"]["clip_fraction"]
    for module_id in ("first", "others"):
        assert results[module_id].keys() >= GROUP_METRICS


# Learning


def module_state(algo: GPG, module_id: str) -> dict[str, Any]:
    return snapshot(algo)["rl_module"][module_id]


@pytest.mark.parametrize(
    ("num_learners", "to_train", "trained"),
    [
        (0, None, {"first", "others"}),
        (0, ["first"], {"first"}),
        pytest.param(2, ["others"], {"others"}, marks=pytest.mark.slow),
        (0, lambda module_id, batch: module_id == "others", {"others"}),
        # What has more than 60 steps in the group; it has fewer in the shard of each learner.
        pytest.param(
            2,
            lambda module_id, batch: batch[module_id].count > 60,
            {"first"},
            marks=pytest.mark.slow,
        ),
        (0, lambda module_id, batch: False, set()),
        pytest.param(2, lambda module_id, batch: False, set(), marks=pytest.mark.slow),
    ],
)
def test_policies_to_train(num_learners: int, to_train: Any, trained: set[str]) -> None:
    """Weights and observation statistics of the others stay what they are, to the last bit."""
    config = multi_config(ComingAndGoing).multi_agent(policies_to_train=to_train)
    config.rl_module(model_config={"fcnet_hiddens": [8], "normalize_observations": True})
    config.learners(num_learners=num_learners)
    with built(config) as algo:
        before = {module_id: module_state(algo, module_id) for module_id in ("first", "others")}
        for _ in range(2):
            results = algo.train()["learners"]
        for module_id, state in before.items():
            assert same(module_state(algo, module_id), state) == (module_id not in trained)
            assert ("policy_loss" in results[module_id]) == (module_id in trained)


def all_first(agent_id: Any, episode: MultiAgentEpisode, **kwargs: Any) -> str:
    return "first"


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_module_without_a_step_in_the_group_stays_as_it_is(num_learners: int) -> None:
    config = multi_config(ComingAndGoing).multi_agent(policy_mapping_fn=all_first)
    with guarded(config.learners(num_learners=num_learners)) as algo:
        before = {module_id: module_state(algo, module_id) for module_id in ("first", "others")}
        for _ in range(2):
            results = algo.train()["learners"]
        assert "others" not in results or "policy_loss" not in results["others"]
        assert not same(module_state(algo, "first"), before["first"])
        assert same(module_state(algo, "others"), before["others"])


@pytest.mark.slow
def test_advantages_are_equal_with_0_1_and_2_learners() -> None:
    batches = []
    for num_learners in (0, 1, 2):
        config = multi_config(ComingAndGoing)
        with guarded(config.learners(num_learners=num_learners)) as algo:
            batches.append(whole_group(algo, sample_group(algo)))
    for batch in batches[1:]:
        for module_id in ("first", "others"):
            np.testing.assert_array_equal(
                batch[module_id][Columns.ADVANTAGES], batches[0][module_id][Columns.ADVANTAGES]
            )


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_modules_may_be_added_and_removed_between_groups(num_learners: int) -> None:
    config = multi_config(ComingAndGoing).learners(num_learners=num_learners)
    with built(config) as algo:
        algo.train()
        algo.add_module(
            "late",
            RLModuleSpec.from_module(algo.get_module("others")),
            config_overrides={"gamma": 0.5, "normalize_advantages": False},
            new_agent_to_module_mapping_fn=lambda agent_id, episode, **kwargs: (
                "late" if agent_id == "c" else "first"
            ),
        )
        group = sample_group(algo)
        batch = whole_group(algo, group)
        assert batch.keys() == {"first", "late"}
        rewards = rewards_of(group, "c")
        expected = naive_advantages(
            rewards, rewards, gamma=0.5, binning=lambda observations, timesteps: timesteps
        )
        np.testing.assert_allclose(
            batch["late"][Columns.ADVANTAGES], np.concatenate(expected), rtol=1e-5, atol=1e-4
        )
        before = module_state(algo, "late")
        assert "policy_loss" in algo.train()["learners"]["late"]
        assert not same(module_state(algo, "late"), before)
        algo.remove_module("late", new_agent_to_module_mapping_fn=to_role)
        assert whole_group(algo, sample_group(algo)).keys() == {"first", "others"}
        algo.train()


def wider(module: Any, size: int) -> RLModuleSpec:
    """The spec of a module as this one, but for a layer of that size."""
    spec = RLModuleSpec.from_module(module)
    spec.model_config = {**spec.model_config, "fcnet_hiddens": [size]}
    return spec


def sizes_of_others(modules: Any) -> list[int]:
    return list(modules["others"].model_config["fcnet_hiddens"])


def test_an_env_runner_has_the_module_that_was_added_last_under_an_id() -> None:
    runner = runner_of(multi_config(ComingAndGoing))
    first, changes = runner.module["first"], ModuleChanges()
    for size in (16, 32):
        spec = wider(runner.module["others"], size)
        changes = changes.remove("others", {}).add("others", spec, {})
        runner.make_changes(changes)
        assert sizes_of_others(runner.module) == [size]
        made = runner.module["others"]
        runner.make_changes(changes)
        assert runner.module["others"] is made
    # Those that RLlib has put there itself in the meantime are in place already.
    added = wider(made, 64).build()
    runner.module.add_module("others", added, override=True)
    changes = changes.remove("others", {}).add("others", wider(made, 64), {})
    for _ in range(2):
        runner.make_changes(changes)
        assert runner.module["others"] is added
    # It is told of one more, which it has missed.
    changes = changes.remove("others", {}).add("others", wider(made, 8), {})
    runner.make_changes(changes)
    assert sizes_of_others(runner.module) == [8]
    assert runner.module["first"] is first


def test_a_module_may_be_added_again_with_another_spec() -> None:
    with built(multi_config(ComingAndGoing)) as algo:
        algo.train()
        spec = wider(algo.get_module("others"), 16)
        algo.remove_module("others", new_agent_to_module_mapping_fn=all_first)
        algo.add_module("others", spec, new_agent_to_module_mapping_fn=to_role)
        added = algo.get_module("others")
        assert "policy_loss" in algo.train()["learners"]["others"]
        assert algo.get_module("others") is added
        assert sizes_of_others(algo.env_runner.module) == [16]


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_recurrent_modules_take_each_agents_steps_as_a_sequence(num_learners: int) -> None:
    config = multi_config(ComingAndGoing, minibatch_size=None)
    config.rl_module(model_config={"use_lstm": True, "max_seq_len": 3, "lstm_cell_size": 8})
    with guarded(config.learners(num_learners=num_learners)) as algo:
        batch = whole_group(algo, sample_group(algo))
        # 8 episodes: of 8 steps of "a", 2 of "b" and 3 of "c".
        assert batch["first"][Columns.SEQ_LENS].tolist() == [3, 3, 2] * 8
        assert batch["others"][Columns.SEQ_LENS].tolist() == [2, 3] * 8
        for _ in range(2):
            results = algo.train()["learners"]
        for module_id in ("first", "others"):
            assert np.isfinite(results[module_id]["policy_loss"])


# Checkpoints and evaluation


def test_a_restored_run_samples_the_next_group_with_the_same_policies(tmp_path: Any) -> None:
    with built(multi_config(ComingAndGoing)) as algo:
        algo.train()
        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
        state, group = snapshot(algo), traces(sample_group(algo))
        algo.train()
        algo.restore_from_path(checkpoint)
        assert traces(sample_group(algo)) == group
    restored = GPG.from_checkpoint(checkpoint)
    try:
        assert same(snapshot(restored), state)
        assert traces(sample_group(restored)) == group
        assert restored.config.env_runner_cls is MultiAgentGroupEnvRunner
    finally:
        restored.stop()


@pytest.mark.parametrize("num_env_runners", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_by_episodes_is_exact(num_env_runners: int) -> None:
    config = multi_config(MultiShortOrLong).evaluation(
        evaluation_interval=1,
        evaluation_duration=7,
        evaluation_duration_unit="episodes",
        evaluation_num_env_runners=num_env_runners,
    )
    with built(config) as algo:
        for _ in range(2):
            assert algo.evaluate()["env_runners"]["num_episodes"] == 7


# Configs


def test_the_default_env_runner_follows_from_the_policies() -> None:
    config = small_config("CartPole-v1")
    assert config.env_runner_cls is GroupEnvRunner
    config = multi_config(ComingAndGoing)
    assert config.env_runner_cls is MultiAgentGroupEnvRunner
    again = GPGConfig().update_from_dict(config.to_dict())
    assert again.env_runner_cls is MultiAgentGroupEnvRunner

    class Mine(MultiAgentGroupEnvRunner):
        pass

    config.env_runners(env_runner_cls=Mine).validate()
    assert config.env_runner_cls is Mine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_runner_cls": GroupEnvRunner}, "must be MultiAgentGroupEnvRunner"),
        ({"gym_env_vectorize_mode": "async"}, "`gym_env_vectorize_mode='async'` is for single"),
    ],
)
def test_what_multi_agent_envs_cannot_do_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_config(ComingAndGoing).env_runners(**settings).validate()


def test_state_bins_of_an_agent_with_one_hot_states_do_not_warn() -> None:
    config = two_roles_config().multi_agent(
        algorithm_config_overrides_per_module={"reader": {"binning": "state"}}
    )
    with warnings.catch_warnings(), built(config) as algo:
        warnings.simplefilter("error", UserWarning)
        check_spaces(algo.config, algo.spaces)


def test_a_bad_binning_of_one_module_is_refused() -> None:
    config = multi_config(ComingAndGoing).multi_agent(
        algorithm_config_overrides_per_module={"others": {"binning": SpatialBinning((1.0,) * 3)}}
    )
    with pytest.raises(ValueError, match="epsilon has 3 entries"), built(config):
        pass


class HardToMake(ComingAndGoing):
    """Raises once, and then can't be made once, as if its port were still in use."""

    troubles: ClassVar[list[str]] = []

    def __init__(self, config: dict[str, Any] | None = None):
        if HardToMake.troubles == ["make"]:
            HardToMake.troubles.pop()
            raise OSError("the port is still in use")
        super().__init__(config)

    def step(self, actions: dict[str, int]) -> Any:
        if HardToMake.troubles == ["make", "step"]:
            HardToMake.troubles.pop()
            raise OSError("the simulator is gone")
        return super().step(actions)


def test_an_env_that_cannot_be_made_at_once_is_made_later() -> None:
    with built(multi_config(HardToMake)) as algo:
        HardToMake.troubles += ["make", "step"]
        assert len(sample_group(algo)) == algo.config.group_size
        assert HardToMake.troubles == []


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_who_is_trained_may_be_changed_at_the_learners(num_learners: int, tmp_path: Path) -> None:
    """As RLlib's callbacks for leagues do; a run that goes on from a checkpoint goes on with it."""

    def train_others(learner: Any) -> None:
        learner.config.multi_agent(policies_to_train=["others"])

    def moved(algo: GPG) -> set[str]:
        before = {module_id: module_state(algo, module_id) for module_id in ("first", "others")}
        algo.train()
        return {mid for mid, state in before.items() if not same(module_state(algo, mid), state)}

    config = multi_config(ComingAndGoing).multi_agent(policies_to_train=["first"])
    config.learners(num_learners=num_learners)
    with built(config.copy()) as algo:
        assert moved(algo) == {"first"}
        plain = algo.save_to_path(tmp_path / "plain")
        algo.learner_group.foreach_learner(train_others)
        assert moved(algo) == {"others"}
        changed = algo.save_to_path(tmp_path / "changed")
    with built(config.copy()) as algo:
        algo.restore_from_path(changed)
        assert moved(algo) == {"others"}
    # What the config says is in force where nobody has changed it.
    with built(config.multi_agent(policies_to_train=None)) as algo:
        algo.restore_from_path(plain)
        assert moved(algo) == {"first", "others"}


def test_a_mapping_that_is_set_on_env_runners_stays() -> None:
    """Until a module is added or removed with another one, as in a league."""
    with built(multi_config(ComingAndGoing)) as algo:
        spec = RLModuleSpec.from_module(algo.get_module("first"))
        algo.add_module("third", spec, new_agent_to_module_mapping_fn=all_first)
        algo.train()
        algo.env_runner_group.foreach_env_runner(
            lambda runner: runner.config.multi_agent(policy_mapping_fn=all_third)
        )
        for _ in range(2):
            algo.train()
            group = sample_group(algo)
            modules = {a.module_id for e in group for a in e.agent_episodes.values()}
            assert modules == {"third"}
        algo.remove_module("third", new_agent_to_module_mapping_fn=all_first)
        algo.train()
        group = sample_group(algo)
        assert {a.module_id for e in group for a in e.agent_episodes.values()} == {"first"}


def all_third(agent_id: Any, episode: MultiAgentEpisode, **kwargs: Any) -> str:
    return "third"

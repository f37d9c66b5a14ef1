"""Sampling in columns and step by step: one loop, the same episodes, the same callbacks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import tree
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.tune import register_env

from rllib_gpg import GPGConfig
from rllib_gpg.learning import DefaultGPGTorchRLModule
from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.rollout import episode_columns
from tests.envs import NativeVector, ShortOrLong
from tests.helpers import LinearPolicy, logged_warnings, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


class NestedActions(ShortOrLong):
    def __init__(self, config: Any = None):
        super().__init__()
        self.action_space = gym.spaces.Dict(
            {"turn": gym.spaces.Discrete(3), "push": gym.spaces.Box(-3.0, 1.0, (2,))}
        )

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(0)


class Watching(RLlibCallback):
    """Writes into the episode at its start, and checks at its end that it survived."""

    seen: list[tuple[Any, ...]]

    def __init__(self) -> None:
        self.seen = []

    def on_episode_created(self, *, episode: SingleAgentEpisode, **kwargs: Any) -> None:
        episode.custom_data["created"] = True

    def on_episode_start(
        self, *, episode: SingleAgentEpisode, env_index: int, **kwargs: Any
    ) -> None:
        assert episode.custom_data["created"]
        episode.custom_data["start"] = float(episode.get_observations(-1)[0])
        self.seen.append(("start", env_index))

    def on_episode_end(self, *, episode: SingleAgentEpisode, env_index: int, **kwargs: Any) -> None:
        assert episode.is_done
        assert episode.custom_data["start"] == float(episode.get_observations(0)[0])
        self.seen.append(("end", env_index, len(episode), episode.get_return()))

    def on_sample_end(self, *, samples: list[SingleAgentEpisode], **kwargs: Any) -> None:
        self.seen.append(("sample end", len(samples)))


def one_hot_config() -> GPGConfig:
    config = small_config("CliffWalking-v1")
    return config.env_runners(
        max_episode_steps=30,
        env_to_module_connector=lambda env, spaces, device: FlattenObservations(),
    )


CONFIGS = {
    "discrete actions": lambda: small_config("CartPole-v1"),
    "squashed continuous actions": lambda: small_config("Pendulum-v1"),
    "clipped continuous actions": lambda: small_config("Pendulum-v1").environment(
        normalize_actions=False, clip_actions=True
    ),
    "nested actions": lambda: small_config(NestedActions),
    "one-hot observations": one_hot_config,
}


def runner_pair(config: GPGConfig) -> tuple[GroupEnvRunner, GroupEnvRunner]:
    """Two runners with the same weights: one in columns, one step by step."""
    columns, pipeline = (GroupEnvRunner(config=config, worker_index=0) for _ in range(2))
    pipeline.module.set_state(columns.module.get_state())
    pipeline._in_columns = False
    return columns, pipeline


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("explore", [True, False])
def test_both_paths_give_the_same_episodes(name: str, explore: bool) -> None:
    columns, pipeline = runner_pair(CONFIGS[name]())
    for num_episodes in (3, 9):  # fewer than envs, more than envs
        fast = columns.sample(num_episodes=num_episodes, explore=explore)
        slow = pipeline.sample(num_episodes=num_episodes, explore=explore)
        for a, b in zip(fast, slow, strict=True):
            assert_same_episode(a, b)
    assert columns._in_columns


@pytest.mark.parametrize("num_envs", [1, 4])
def test_episodes_longer_than_a_block_of_columns(
    num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 8 steps: episodes of 200 begin, go on and end anywhere in them."""
    monkeypatch.setattr(episode_columns, "_BLOCK_BYTES", 1)
    config = small_config(ShortOrLong).env_runners(num_envs_per_env_runner=num_envs)
    columns, pipeline = runner_pair(config)
    fast, slow = (runner.sample(num_episodes=9) for runner in (columns, pipeline))
    assert {len(episode) for episode in fast} == {ShortOrLong.SHORT, ShortOrLong.LONG}
    for a, b in zip(fast, slow, strict=True):
        assert_same_episode(a, b)


class Straggler(gym.Env):
    """Images of 42 x 42 bytes; 1 episode of 1,500 steps among 31 of 30."""

    num_episodes = 0

    def __init__(self, config: Any = None):
        self.observation_space = gym.spaces.Box(0, 255, (42, 42), np.uint8)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        Straggler.num_episodes += 1
        self.length = 1500 if Straggler.num_episodes % 32 == 5 else 30
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        return self._observation(), 1.0, self.t >= self.length, False, {}

    def _observation(self) -> np.ndarray:
        return np.full((42, 42), self.t % 256, np.uint8)


def test_memory_follows_the_data_whatever_the_lengths() -> None:
    config = small_config(Straggler).env_runners(num_envs_per_env_runner=32)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=LinearPolicy))
    runner = GroupEnvRunner(config=config, worker_index=0)
    runner.sample(num_episodes=1)
    Straggler.num_episodes = 0
    tracemalloc.start()
    try:
        episodes = runner.sample(num_episodes=32)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert runner._in_columns
    assert sorted(map(len, episodes)) == [30] * 31 + [1500]
    data = sum(episode.get_observations().nbytes for episode in episodes)
    assert peak < 3 * data


def assert_same_episode(a: SingleAgentEpisode, b: SingleAgentEpisode) -> None:
    a.validate()
    assert (a.is_terminated, a.is_truncated, a.t) == (b.is_terminated, b.is_truncated, b.t)
    assert a.is_numpy and b.is_numpy
    assert a.observation_space == b.observation_space
    assert a.action_space == b.action_space
    assert a.get_infos() == b.get_infos()
    columns_a, columns_b = (
        {
            "observations": e.get_observations(),
            "actions": e.get_actions(),
            "rewards": e.get_rewards(),
            **{name: e.get_extra_model_outputs(name) for name in e.extra_model_outputs},
        }
        for e in (a, b)
    )

    def assert_equal(x: np.ndarray, y: np.ndarray) -> None:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)

    tree.map_structure(assert_equal, columns_a, columns_b)


def test_callbacks_and_metrics_are_the_same_on_both_paths() -> None:
    columns, pipeline = runner_pair(small_config(ShortOrLong).callbacks(Watching))
    metrics = []
    for runner in (columns, pipeline):
        runner.sample(num_episodes=7)
        metrics.append({name: stat.peek() for name, stat in flat(runner.get_metrics()).items()})
    assert columns._in_columns
    assert columns._callbacks[0].seen == pipeline._callbacks[0].seen
    assert len(columns._callbacks[0].seen) == 7 + 7 + 1
    counted = ("num_", "episode_return", "episode_len", "agent_", "module_")
    for name, value in metrics[1].items():
        if name.startswith(counted) and "throughput" not in name and "timer" not in name:
            assert metrics[0][name] == value, name


def flat(metrics: dict[str, Any]) -> dict[str, Any]:
    return {"/".join(map(str, path)): stat for path, stat in tree.flatten_with_path(metrics)}


class Stepping(RLlibCallback):
    def on_episode_step(self, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.callbacks(Stepping),
        lambda config: config.callbacks(on_episode_step=lambda **kwargs: None),
        lambda config: config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations()
        ),
        lambda config: config.rl_module(model_config={"use_lstm": True, "max_seq_len": 5}),
        lambda config: config.env_runners(episodes_to_numpy=False),
    ],
    ids=["callback class", "callback function", "connector", "recurrent module", "lists"],
)
def test_what_needs_every_step_is_sampled_step_by_step(change: Any) -> None:
    runner = GroupEnvRunner(config=change(small_config("CartPole-v1")), worker_index=0)
    assert len(runner.sample(num_episodes=2)) == 2
    assert runner._in_columns is False


def test_random_actions_need_no_module() -> None:
    runner = GroupEnvRunner(config=small_config("Pendulum-v1"), worker_index=0)
    runner.module = None
    episodes = runner.sample(num_episodes=2, random_actions=True)
    assert [len(episode) for episode in episodes] == [200, 200]
    assert np.abs(episodes[0].get_actions()).max() > 1.0


class NewInRLlib(ConnectorV2):
    """A piece that a later version of RLlib might have in its defaults."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return batch


@pytest.mark.parametrize(
    ("build", "change", "warns"),
    [
        ("build_env_to_module_connector", lambda config: config, True),
        ("build_module_to_env_connector", lambda config: config, True),
        ("build_env_to_module_connector", lambda config: one_hot_config(), True),
        (None, lambda config: config.callbacks(Stepping), False),
        (
            None,
            lambda config: config.env_runners(
                env_to_module_connector=lambda env, spaces, device: NewInRLlib()
            ),
            False,
        ),
    ],
    ids=["env-to-module", "module-to-env", "one-hot", "callback", "connector"],
)
def test_slow_sampling_that_nobody_asked_for_is_a_warning(
    build: str | None, change: Any, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build is not None:
        of_rllib = getattr(AlgorithmConfig, build)

        def with_a_new_piece(*args: Any, **kwargs: Any) -> Any:
            pipeline = of_rllib(*args, **kwargs)
            pipeline.append(NewInRLlib())
            return pipeline

        monkeypatch.setattr(AlgorithmConfig, build, with_a_new_piece)
    runner = GroupEnvRunner(config=change(small_config("CartPole-v1")), worker_index=0)
    with logged_warnings() as warnings:
        for _ in range(2):
            assert len(runner.sample(num_episodes=2)) == 2
    assert runner._in_columns is False
    assert len(warnings) == int(warns)
    assert all("NewInRLlib" in text for text in warnings)


class Noisy(DefaultGPGTorchRLModule):
    """Assigns a buffer of its own while it explores."""

    def setup(self) -> None:
        super().setup()
        self.register_buffer("noise", torch.zeros(2))

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        self.noise = 0.9 * self.noise + torch.randn(2)
        return super()._forward_exploration(batch, **kwargs)


def test_a_buffer_that_exploring_assigns_can_be_loaded_afterwards() -> None:
    config = small_config(ShortOrLong)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=Noisy))
    for runner in runner_pair(config):
        state = runner.get_state()
        runner.sample(num_episodes=2)
        assert runner.module.noise.abs().sum() > 0
        runner.set_state(state)


class Rescaling(DefaultGPGTorchRLModule):
    """Writes into its input."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        batch[Columns.OBS].mul_(0.1)
        return super()._forward(batch, **kwargs)


# Fewer episodes than envs, or more: a part of the envs steps, or all of them.
@pytest.mark.parametrize("num_episodes", [3, 9])
def test_episodes_keep_what_a_module_overwrites(num_episodes: int) -> None:
    config = small_config(ShortOrLong)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=Rescaling))
    columns, pipeline = runner_pair(config)
    fast, slow = (runner.sample(num_episodes=num_episodes) for runner in (columns, pipeline))
    for a, b in zip(fast, slow, strict=True):
        assert_same_episode(a, b)
        assert a.get_observations()[:, 1].tolist() == list(range(len(a) + 1))
    assert columns._in_columns


def test_episodes_keep_what_a_native_vector_env_overwrites() -> None:
    register_env("native", lambda context: NativeVector(context["num_envs"]))
    config = small_config("native").env_runners(gym_env_vectorize_mode="vector_entry_point")
    columns, pipeline = runner_pair(config)
    fast, slow = (runner.sample(num_episodes=9) for runner in (columns, pipeline))
    for a, b in zip(fast, slow, strict=True):
        assert_same_episode(a, b)
    assert columns._in_columns


class ManyPlaces(ShortOrLong):
    LONG = 20
    NUM_PLACES = 3_000

    def __init__(self, config: Any = None):
        super().__init__()
        self.observation_space = gym.spaces.Discrete(self.NUM_PLACES)

    def _observation(self) -> Any:
        return self.t


def test_one_hot_observations_take_memory_for_themselves_alone() -> None:
    """And not for a square matrix of all places."""
    config = small_config(ManyPlaces)
    config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    runner = GroupEnvRunner(config=config, worker_index=0)
    runner.sample(num_episodes=4)
    assert runner._in_columns
    tracemalloc.start()
    episodes = runner.sample(num_episodes=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < ManyPlaces.NUM_PLACES**2 * 4 / 2
    for episode in episodes:
        assert episode.get_observations().argmax(1).tolist() == list(range(len(episode) + 1))


class WritesIntoActions(ShortOrLong):
    def __init__(self, config: Any = None):
        super().__init__()
        self.action_space = self.SPACE

    def step(self, action: Any) -> Any:
        for leaf in tree.flatten(action):
            leaf[...] = 77
        return super().step(0)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-np.inf, np.inf, (2,)),
        gym.spaces.Box(-1.0, 1.0, (2,)),
        gym.spaces.MultiDiscrete([3, 3]),
        gym.spaces.Dict(a=gym.spaces.MultiDiscrete([3, 3]), b=gym.spaces.Box(0.0, np.inf, (2,))),
    ],
    ids=["unbounded", "bounded", "multi-discrete", "nested"],
)
def test_episodes_keep_the_actions_that_an_env_writes_into(space: gym.Space) -> None:
    columns, pipeline = runner_pair(
        small_config(type("Env", (WritesIntoActions,), {"SPACE": space}))
    )
    fast, slow = (runner.sample(num_episodes=9) for runner in (columns, pipeline))
    for a, b in zip(fast, slow, strict=True):
        assert_same_episode(a, b)
        assert all(np.all(np.asarray(leaf) < 77) for leaf in tree.flatten(a.get_actions()))
    assert columns._in_columns


class Naming(RLlibCallback):
    """Writes into the first info of each episode, which the env leaves empty."""

    def on_episode_start(self, *, episode: SingleAgentEpisode, **kwargs: Any) -> None:
        episode.get_infos(0)["task"] = "a"


def test_infos_keep_what_a_callback_adds_to_the_first_one() -> None:
    for runner in runner_pair(small_config(ShortOrLong).callbacks(Naming)):
        for episode in runner.sample(num_episodes=9):
            assert episode.get_infos() == [{"task": "a"}] + [{}] * len(episode)

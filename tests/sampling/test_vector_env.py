"""What the adapters make of vector envs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.tune import register_env

from rllib_gpg.sampling import GroupEnvRunner
from rllib_gpg.sampling.rollout.vector_env import list_infos
from tests.envs import NativeVector, ShortOrLong
from tests.helpers import built, fingerprint, sample_group, small_config


@pytest.mark.parametrize(
    "infos",
    [
        {"t": np.array([3, 4]), "_t": np.array([True, False])},
        {"t": np.array([3, 4])},
        {"a": {"b": np.array([1, 2]), "_b": np.array([False, True])}, "_a": np.array([True, True])},
        {"a": {"b": np.array(["x", "y"], object)}, "_a": np.array([False, True]), "c": np.zeros(2)},
    ],
)
def test_infos_are_listed_as_gymnasium_does(infos: dict[str, Any]) -> None:
    class Infos(NativeVector):
        def reset(self, **kwargs: Any) -> Any:
            return super().reset(**kwargs)[0], infos

    _, expected = DictInfoToList(Infos(2)).reset()
    assert list_infos(infos, 2) == expected


class SharedGenerator(NativeVector):
    """All rows draw from one generator, and how much depends on the actions of all of them."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._shared = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        results = super().step(actions)
        for _ in range(int(np.sum(actions))):
            self._shared.random()
        self._buffer[:, 0] = self._shared.random()
        return results


def test_idle_rows_do_not_make_seeded_shares_differ() -> None:
    """Two fresh runners, one of them used before: what idle rows do is part of the share."""
    register_env("shared generator", lambda context: SharedGenerator(context["num_envs"]))
    config = small_config("shared generator").env_runners(
        gym_env_vectorize_mode="vector_entry_point"
    )
    groups = []
    for earlier_calls in (0, 0, 2):
        runner = GroupEnvRunner(config=config, worker_index=0)
        runner.module.load_state_dict({k: v * 0 for k, v in runner.module.state_dict().items()})
        for _ in range(earlier_calls):
            runner.sample(num_episodes=6, random_actions=True)
        runner._num_sample_calls = 0
        groups.append(fingerprint(runner.sample(num_episodes=2)))
    assert groups[0] == groups[1] == groups[2]


class Points(NativeVector):
    """Counts points in integers until there is a half one, and flags ends with other than bools."""

    def __init__(self, num_envs: int, flags: Any = np.bool_, shape: tuple[int, ...] = (-1,)):
        super().__init__(num_envs)
        self._flags, self._shape = flags, shape

    def step(self, actions: Any) -> Any:
        observations, _, *ends, infos = super().step(actions)
        points = np.array([0 if env.t < 3 else 0.5 for env in self._envs])
        if not points.any():
            points = points.astype(np.int64)
        ends = [end.astype(self._flags).reshape(self._shape) for end in ends]
        return observations, points.reshape(self._shape), *ends, infos


def points_runner(**settings: Any) -> GroupEnvRunner:
    register_env("points", lambda context: Points(context["num_envs"], **settings))
    config = small_config("points").env_runners(gym_env_vectorize_mode="vector_entry_point")
    return GroupEnvRunner(config=config, worker_index=0)


@pytest.mark.parametrize("in_columns", [True, False])
@pytest.mark.parametrize("flags", [np.bool_, np.uint8, np.int64])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_rewards_are_floats_and_ends_are_bools_whatever_the_env_gives(
    in_columns: bool, flags: Any, shape: tuple[int, ...]
) -> None:
    runner = points_runner(flags=flags, shape=shape)
    runner._in_columns = in_columns
    for episode in runner.sample(num_episodes=9):
        rewards = np.asarray(episode.get_rewards())
        expected = [0.0 if t < 3 else 0.5 for t in range(1, len(episode) + 1)]
        assert rewards.tolist() == expected
        assert (episode.is_terminated, episode.is_truncated) == (True, False)


def test_two_rewards_per_env_are_refused() -> None:
    runner = points_runner()
    step = Points.step
    with pytest.MonkeyPatch.context() as patch:

        def two(env: Points, actions: Any) -> Any:
            observations, rewards, *rest = step(env, actions)
            return observations, np.stack((rewards, rewards), 1), *rest

        patch.setattr(Points, "step", two)
        with pytest.raises(ValueError, match=r"rewards of 4 envs have the shape \(4, 2\)"):
            runner.sample(num_episodes=4)


class ArraysOfOne(ShortOrLong):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array([reward]), np.array([terminated]), truncated, info


def test_numbers_that_envs_give_as_arrays_of_one_are_numbers() -> None:
    plain, arrays = (
        GroupEnvRunner(config=small_config(env), worker_index=0)
        for env in (ShortOrLong, ArraysOfOne)
    )
    arrays.module.set_state(plain.module.get_state())
    groups = [fingerprint(runner.sample(num_episodes=6)) for runner in (plain, arrays)]
    assert groups[0] == groups[1]


class Shaping(SyncVectorEnv):
    """Multiplies rewards in a method of the vector env, which its sub-envs know nothing of."""

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        return observations, rewards * 100.0, *rest


def test_a_vector_env_that_steps_in_its_own_way_is_not_taken_apart() -> None:
    returns = []
    for kind in (SyncVectorEnv, Shaping):
        register_env(
            "shaping", lambda context, kind=kind: kind([ShortOrLong] * context["num_envs"])
        )
        config = small_config("shaping").env_runners(gym_env_vectorize_mode="vector_entry_point")
        runner = GroupEnvRunner(config=config, worker_index=0)
        runner.module.load_state_dict({k: v * 0 for k, v in runner.module.state_dict().items()})
        returns.append(runner.sample(num_episodes=4)[0].get_return())
    assert returns[1] % 100.0 == 0.0 and returns[1] >= 100.0 > returns[0]


class SameInfo(ShortOrLong):
    """Fills one dict, and an array in it, at every step."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.info: dict[str, Any] = {"of": {"counts": np.zeros(1)}}

    def reset(self, **kwargs: Any) -> Any:
        observation, _ = super().reset(**kwargs)
        self.info["of"]["counts"][0] = self.info["t"] = 0
        return observation, self.info

    def step(self, action: Any) -> Any:
        *step, _ = super().step(action)
        self.info["of"]["counts"][0] = self.info["t"] = self.info["t"] + 1
        return *step, self.info


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("in_columns", [True, False])
def test_infos_are_those_of_their_steps_also_of_envs_that_reuse_one(in_columns: bool) -> None:
    """RLlib's vector env copies them as well."""
    config = small_config(SameInfo)
    if not in_columns:
        config.env_runners(env_to_module_connector=lambda *_, **__: FlattenObservations())
    with built(config) as algo:
        for episode in sample_group(algo):
            infos = episode.get_infos()
            expected = list(range(len(episode) + 1))
            assert [info["t"] for info in infos] == expected
            assert [info["of"]["counts"][0] for info in infos] == expected

"""One way to step any vector env: these envs go on, those begin anew.

The classes below offer the same two methods. `reset` begins the first episode of each given env,
`step` moves the envs named in `stepping` by one action each and begins a new episode in those
named in `starting`. Envs are named in rising order. Arrays that come back have one row per named
env and are valid until the next step. Actions are a list with one action per stepping env, or the
same as one batch.

A vector env may give torch tensors. Then it gets tensors as well, on its own device, and what comes
back are tensors; only whose episode is over is brought to the host at each step.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
import tree
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers.vector import DictInfoToList
from ray.rllib.utils.spaces.space_utils import batch, unbatch
from torch import Tensor

from rllib_gpg.nested import map_leaves, on_host, row
from rllib_gpg.sampling.rollout.schedule import Seeded


@dataclass(frozen=True)
class Resets:
    """First observations; `observations` is batched as the env's observation space says.

    `infos` is None if all are empty.
    """

    observations: Any
    infos: list[dict[str, Any]] | None


@dataclass(frozen=True)
class Steps:
    """One transition per env that stepped; `infos` is None if all are empty."""

    observations: Any
    rewards: np.ndarray | Tensor
    terminateds: np.ndarray
    truncateds: np.ndarray
    infos: list[dict[str, Any]] | None


_NO_RESETS = Resets(None, None)


class SubEnvs:
    """Steps any subset of the sub-envs of gymnasium's synchronous vector env.

    No env that owes nothing is ever simulated, and every episode can be seeded by itself.
    """

    def __init__(self, env: DictInfoToList):
        """Takes the env runner's vector env apart: `env.unwrapped` is a `SyncVectorEnv`."""
        self._envs = env.unwrapped.envs
        self._observation_space = env.single_observation_space

    def reset(self, starting: Seeded) -> Resets:
        """Resets each env in `starting` with its own seed."""
        results = [self._envs[index].reset(seed=seed) for index, seed in starting.items()]
        observations = self._batch([observation for observation, _ in results])
        return Resets(observations, [kept(info) for _, info in results])

    def step(self, stepping: np.ndarray, actions: Any, starting: Seeded) -> tuple[Steps, Resets]:
        """Steps the envs `stepping` and resets those in `starting`."""
        rows = actions if isinstance(actions, (np.ndarray, list)) else unbatch(actions)
        results = [
            self._envs[index].step(action)
            for index, action in zip(stepping.tolist(), rows, strict=True)
        ]
        observations, rewards, terminateds, truncateds, infos = (
            zip(*results, strict=True) if results else ((), (), (), (), ())
        )
        steps = Steps(
            self._batch(observations),
            _one_each("rewards", np.array(rewards, np.float64)),
            _one_each("`terminated`", np.array(terminateds, np.bool_)),
            _one_each("`truncated`", np.array(truncateds, np.bool_)),
            [kept(info) for info in infos] if any(infos) else None,
        )
        return steps, self.reset(starting)

    def repeat(
        self, index: int, seed: int | None, actions: Iterable[Any]
    ) -> tuple[Any, float] | None:
        """Resets an env and steps it through some actions.

        Returns:
            What it shows then, as a step would return it, and the sum of the rewards; None if the
            episode is over before.
        """
        env, total, is_over = self._envs[index], 0.0, False
        observation, _ = env.reset(seed=seed)
        for action in actions:
            if is_over:
                return None
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            is_over = terminated or truncated
        return None if is_over else (row(self._batch([observation]), 0), total)

    def _batch(self, observations: Sequence[Any]) -> Any:
        out = create_empty_array(self._observation_space, n=len(observations))
        return concatenate(self._observation_space, observations, out) if observations else out


def kept(info: Any) -> Any:
    """An info as it is now: an env may fill the same dict at every step."""
    if isinstance(info, dict):
        return {name: kept(value) for name, value in info.items()}
    return info.copy() if isinstance(info, np.ndarray) else info


class WholeVectorEnv:
    """Steps a vector env that only moves as a whole: native, or in processes of its own.

    Envs that owe nothing are stepped along with an arbitrary valid action. A sub-env begins its
    next episode by itself (gymnasium's `NEXT_STEP` autoreset), from its own random numbers: only
    the first episode of each sub-env is seeded by the share.
    """

    def __init__(self, env: DictInfoToList):
        """Checks how `env` begins new episodes.

        Raises:
            ValueError: If the env's autoreset mode isn't `NEXT_STEP`.
        """
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if AutoresetMode(mode) != AutoresetMode.NEXT_STEP:
            raise ValueError(
                f"The vector env {env.unwrapped} has the autoreset mode {mode}. Like RLlib's own "
                "env runners, GroupEnvRunner needs gymnasium's `AutoresetMode.NEXT_STEP`: set it "
                "in the env's metadata, or wrap the env so that the step after the end of an "
                "episode returns the first observation of the next."
            )
        self._env = env
        self._has_sub_envs = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        # Rows of envs that owe nothing need a valid action too: the same in every process, since
        # what such a row does may change what the others draw.
        space = copy.deepcopy(env.action_space)
        space.seed(0)
        self._idle_actions = space.sample()
        # Of an env that gives tensors.
        self._device: torch.device | None = None

    def reset(self, starting: Seeded) -> Resets:
        """Resets all sub-envs, those in `starting` with their seeds; returns the rows of these."""
        first_seed = next(iter(starting.values()), None)
        if first_seed is None or not self._has_sub_envs:
            # A native vector env seeds all its rows from one number.
            seeds: Any = first_seed
        else:
            # Idle sub-envs get seeds too, so that nothing about the share is left to chance.
            seeds = [starting.get(index, 0) for index in range(self._env.num_envs)]
        observations, infos = self._env.env.reset(seed=seeds)
        leaf = tree.flatten(observations)[0]
        self._device = leaf.device if isinstance(leaf, Tensor) else None
        self._actions = copy.deepcopy(self._idle_actions)
        if self._device is not None:
            to_device = functools.partial(torch.as_tensor, device=self._device)
            self._actions = map_leaves(to_device, self._actions)
        return self._resets(observations, self._listed(infos), list(starting))

    def step(self, stepping: np.ndarray, actions: Any, starting: Seeded) -> tuple[Steps, Resets]:
        """Steps the envs; those in `starting` were done before, and so begin anew."""
        if isinstance(actions, list) and actions:
            actions = batch(actions)
        if len(stepping) == self._env.num_envs:
            return self._step_all(self._for_env(actions)), _NO_RESETS
        if len(stepping) > 0:
            self._fill_in(stepping, self._for_env(actions))
        all_steps, going_on, begun = self._advance(stepping, list(starting))
        infos = all_steps.infos
        steps = Steps(
            _take(all_steps.observations, going_on),
            _take(all_steps.rewards, going_on),
            all_steps.terminateds[going_on],
            all_steps.truncateds[going_on],
            None if infos is None else [infos[row] for row in going_on],
        )
        return steps, self._resets(all_steps.observations, infos, begun)

    def _for_env(self, actions: Any) -> Any:
        if self._device is None:
            return actions

        def to_device(given: Any, row: Tensor) -> Tensor:
            # Of the action space's type: on their way through RLlib integers lose half their bits.
            return torch.as_tensor(given, dtype=row.dtype, device=self._device)

        return map_leaves(to_device, actions, self._actions)

    def _fill_in(self, env_indices: np.ndarray, actions: Any) -> None:
        def fill_in(rows: Any, given: Any) -> None:
            rows[env_indices] = given

        map_leaves(fill_in, self._actions, actions)

    def _advance(self, going_on: np.ndarray, begun: list[int]) -> tuple[Steps, Any, list[int]]:
        """Steps at least the given envs; also returns in which rows of the result these are."""
        return self._step_all(self._actions), going_on, begun

    def _step_all(self, actions: Any) -> Steps:
        observations, rewards, terminateds, truncateds, infos = self._env.env.step(actions)
        return _steps(observations, rewards, terminateds, truncateds, self._listed(infos))

    def _listed(self, infos: dict[str, Any]) -> list[dict[str, Any]] | None:
        # What `DictInfoToList` does at each step, and for most envs in vain.
        return list_infos(infos, self._env.num_envs) if infos else None

    @staticmethod
    def _resets(observations: Any, infos: list[dict[str, Any]] | None, rows: list[int]) -> Resets:
        return Resets(
            _take(observations, rows) if rows else None,
            None if infos is None else [infos[row] for row in rows],
        )


def list_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Turns the infos of a vector env into one dict per env.

    Args:
        infos: Per key an array [num_envs], or a dict of such; under `_key`, if there is that, which
            envs have it.
        num_envs: The number of envs.
    """
    listed: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, values in infos.items():
        if key.startswith("_"):
            continue
        rows = list_infos(values, num_envs) if isinstance(values, dict) else on_host(values)
        has_it = infos.get(f"_{key}", itertools.repeat(True))
        for info, value, has in zip(listed, rows, has_it, strict=False):
            if has:
                info[key] = value
    return listed


@runtime_checkable
class StepsSome(Protocol):
    """A native vector env that can also step only some of its envs."""

    def step_some(self, env_indices: Sequence[int], actions: Any) -> tuple[Any, ...]:
        """Steps the given envs.

        Args:
            env_indices: Which envs to step. One whose episode is over begins the next instead,
                as in `AutoresetMode.NEXT_STEP`.
            actions: One action per given env, as one batch.

        Returns:
            What `VectorEnv.step` returns, with one row per given env in that order; infos as a
            list of dicts, or None if all are empty.
        """
        ...


class PartialVectorEnv(WholeVectorEnv):
    """Steps the envs that still run of a native vector env that can: see `StepsSome`.

    No env that owes nothing is ever simulated. Seeds are as in any native vector env.
    """

    def _advance(self, going_on: np.ndarray, begun: list[int]) -> tuple[Steps, Any, list[int]]:
        moving = np.concatenate([going_on, np.array(begun, np.int64)])
        steps = _steps(*self._env.env.step_some(moving, _take(self._actions, moving)))
        rows = np.arange(len(moving))
        return steps, rows[: len(going_on)], rows[len(going_on) :].tolist()

    def _step_all(self, actions: Any) -> Steps:
        return _steps(*self._env.env.step_some(np.arange(self._env.num_envs), actions))


def _take(arrays: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Copies the given rows: vector envs reuse their buffers."""

    def take(array: Any) -> Any:
        return array[rows] if isinstance(array, Tensor) else np.asarray(array)[rows]

    return map_leaves(take, arrays)


def _steps(observations: Any, rewards: Any, terminateds: Any, truncateds: Any, infos: Any) -> Steps:
    """Takes what a vector env returned, in whatever types: rewards as floats, ends as bools.

    Rewards that happen to be integers at one step aren't at the next.
    """
    if isinstance(terminateds, Tensor):
        # From a device in one transfer.
        terminateds, truncateds = torch.stack((terminateds.bool(), truncateds.bool())).cpu().numpy()
    else:
        terminateds = np.asarray(terminateds, np.bool_)
        truncateds = np.asarray(truncateds, np.bool_)
    if isinstance(rewards, Tensor):
        rewards = rewards if rewards.is_floating_point() else rewards.double()
    else:
        rewards = np.asarray(rewards)
        rewards = rewards if rewards.dtype.kind == "f" else rewards.astype(np.float64)
    return Steps(
        observations,
        _one_each("rewards", rewards),
        _one_each("`terminated`", terminateds),
        _one_each("`truncated`", truncateds),
        infos,
    )


def _one_each(what: str, values: Any) -> Any:
    """Returns values as [R], also those of envs that give each as an array of one.

    Raises:
        ValueError: If there is more than one per env.
    """
    if values.ndim == 1:
        return values
    if values.ndim != 2 or values.shape[1] != 1:
        raise ValueError(
            f"The {what} of {len(values)} envs have the shape {tuple(values.shape)}: each env is "
            "to give a single number. Mend the environment."
        )
    return values[:, 0]


def adapt(env: gym.vector.VectorEnv) -> SubEnvs | WholeVectorEnv:
    """Returns the cheapest of the three for an env runner's vector env."""
    # RLlib wraps what `gym.make_vec` returns into one `DictInfoToList`. Any further vector wrapper
    # must see every step, so its env moves as a whole; and so does one that steps in its own way.
    if isinstance(env, DictInfoToList) and isinstance(env.env, SyncVectorEnv):
        kind = type(env.env)
        if kind.step is SyncVectorEnv.step and kind.reset is SyncVectorEnv.reset:
            return SubEnvs(env)
    if isinstance(env, DictInfoToList) and isinstance(env.env, StepsSome):
        return PartialVectorEnv(env)
    return WholeVectorEnv(env)


def limit_episodes(env: gym.vector.VectorEnv, max_episode_steps: int) -> None:
    """Cuts the episodes of every sub-env after `max_episode_steps` steps (truncated).

    Raises:
        ValueError: If `env` isn't gymnasium's synchronous vector env: the sub-envs of any other
            can't be reached, or not be reset one by one.
    """
    if not isinstance(env.unwrapped, SyncVectorEnv):
        raise ValueError(
            f"`max_episode_steps` can't cut the episodes of {env.unwrapped}: only those of "
            "sub-envs that gymnasium steps one by one (`gym_env_vectorize_mode='sync'`). Build "
            "the limit into the env instead. For an id that gymnasium or EnvPool knows: "
            f"`environment(env_config={{'max_episode_steps': {max_episode_steps}}})`."
        )
    env.unwrapped.envs = [
        gym.wrappers.TimeLimit(sub_env, max_episode_steps) for sub_env in env.unwrapped.envs
    ]

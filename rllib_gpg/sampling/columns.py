"""Computes actions and records steps for all running envs at once, in arrays.

Array names carry their axes: T = vector steps of one `sample` call, E = envs, R = running envs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.common import (
    AddObservationsFromEpisodesToBatch,
    AddStatesFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    BatchIndividualItems,
    NumpyToTensor,
)
from ray.rllib.connectors.common.flatten_observations import FlattenObservations
from ray.rllib.connectors.module_to_env import (
    ListifyDataForVectorEnv,
    NormalizeAndClipActions,
    RemoveSingleTsTimeRankFromBatch,
    TensorToNumpy,
    UnBatchToIndividualItems,
)
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_gpg.sampling.actions import DrawActions, fit_for
from rllib_gpg.sampling.nested import map_leaves
from rllib_gpg.sampling.vector_env import Resets, Steps

if TYPE_CHECKING:
    from rllib_gpg.sampling.env_runner import GroupEnvRunner

_DEFAULT_ENV_TO_MODULE = [
    AddObservationsFromEpisodesToBatch,
    AddTimeDimToBatchAndZeroPad,
    AddStatesFromEpisodesToBatch,
    BatchIndividualItems,
    NumpyToTensor,
]
_DEFAULT_MODULE_TO_ENV = [
    DrawActions,
    TensorToNumpy,
    UnBatchToIndividualItems,
    RemoveSingleTsTimeRankFromBatch,
    NormalizeAndClipActions,
    ListifyDataForVectorEnv,
]

_IN_32_BITS = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}


def obstacle_to_columns(runner: GroupEnvRunner) -> str | None:
    """Returns why this env runner can't sample in columns, or None if it can."""
    env_to_module = [type(piece) for piece in runner.env_to_module.connectors]
    module_to_env = [type(piece) for piece in runner.module_to_env.connectors]
    space = runner.env.single_observation_space
    one_hot = _is_one_hot(runner)
    if runner.module is None or runner.module.is_stateful():
        return "the module is recurrent"
    if env_to_module[int(one_hot) :] != _DEFAULT_ENV_TO_MODULE:
        return "there are custom env-to-module connectors"
    if module_to_env != _DEFAULT_MODULE_TO_ENV:
        return "there are custom module-to-env connectors"
    if not (one_hot or isinstance(space, gym.spaces.Box)):
        return f"observations aren't one array each: {space}"
    if not runner.episodes_to_numpy:
        return "`episodes_to_numpy` is off"
    if runner.config.callbacks_on_episode_step or any(
        type(callback).on_episode_step is not RLlibCallback.on_episode_step
        for callback in runner.callbacks
    ):
        return "there is a callback `on_episode_step`"
    return None


def _is_one_hot(runner: GroupEnvRunner) -> bool:
    """Whether the only custom connector is RLlib's flattening of discrete observations."""
    pieces, space = runner.env_to_module.connectors, runner.env.single_observation_space
    return (
        bool(pieces)
        and type(pieces[0]) is FlattenObservations
        and isinstance(space, gym.spaces.Discrete)
        and space.start == 0
    )


class ColumnarRollout:
    """What `GroupEnvRunner` does at one vector step, without Python per env.

    Steps are written to [T, E, ...] arrays, from which an episode's columns are copied when it
    ends. Actions are computed as RLlib's default connectors do, for the envs that still run.
    """

    sees_every_step = False

    def __init__(self, runner: GroupEnvRunner, *, explore: bool):
        """Prepares one `sample` call.

        Args:
            runner: The env runner whose module to use; `obstacle_to_columns` found none.
            explore: Whether to call the module's `forward_exploration` or `forward_inference`.
        """
        self._runner = runner
        self._explore = explore
        self._fit = fit_for(
            runner.env.single_action_space,
            normalize=runner.config.normalize_actions,
            clip=runner.config.clip_actions,
        )
        self._draw_actions = DrawActions()
        self._num_one_hot = runner.env.single_observation_space.n if _is_one_hot(runner) else None
        self._columns = _Columns(runner.num_envs)
        # Per env, the infos of its running episode that aren't empty, by vector step.
        self._infos_E: list[dict[int, dict[str, Any]]] = [{} for _ in range(runner.num_envs)]
        self._first_E = [0] * runner.num_envs
        # The vector step whose actions come next.
        self._t = -1
        self._outputs_R: dict[str, Any] = {}

    def act(self, stepping: np.ndarray) -> Any:
        """Returns the actions of the stepping envs as one batch, unsquashed and clipped."""
        with torch.inference_mode():
            outputs = self._draw_actions(
                rl_module=self._runner.module,
                batch=self._forward(self._columns.rows(Columns.OBS, self._t, stepping)),
                episodes=self._runner.ongoing_episodes[stepping[0] : stepping[0] + 1],
                explore=self._explore,
            )
            self._outputs_R = {name: map_leaves(_to_numpy, rows) for name, rows in outputs.items()}
        # Episodes keep what the module sampled, the env gets what its action space asks for.
        for_env = self._outputs_R.pop(Columns.ACTIONS_FOR_ENV, self._outputs_R[Columns.ACTIONS])
        return self._fit(for_env)

    def _forward(self, obs_R: np.ndarray) -> dict[str, Any]:
        runner, rows = self._runner, torch.from_numpy(obs_R)
        # As RLlib's `NumpyToTensor`: floats in 32 bits.
        rows = rows.to(runner.device, torch.float32 if rows.is_floating_point() else None)
        if self._explore:
            return runner.module.forward_exploration(
                {Columns.OBS: rows}, t=runner.num_env_steps_sampled_lifetime
            )
        return runner.module.forward_inference({Columns.OBS: rows})

    def record(
        self, stepping: np.ndarray, steps: Steps | None, starting: list[int], resets: Resets
    ) -> None:
        """Writes down what the env returned; see `PipelineRollout.record`."""
        columns, now, then = self._columns, self._t, self._t + 1
        if steps is not None and len(stepping) > 0:
            columns.write(now, stepping, {**self._outputs_R, Columns.REWARDS: steps.rewards})
            columns.write(then, stepping, {Columns.OBS: self._flatten(steps.observations)})
            if steps.infos is not None:
                for index, info in zip(stepping.tolist(), steps.infos, strict=True):
                    self._infos_E[index][then] = info
            for row in (steps.terminateds | steps.truncateds).nonzero()[0].tolist():
                ends = bool(steps.terminateds[row]), bool(steps.truncateds[row])
                self._cut(int(stepping[row]), *ends)
        if starting:
            columns.write(then, starting, {Columns.OBS: self._flatten(resets.observations)})
            for index, info in zip(starting, resets.infos or [{}] * len(starting), strict=True):
                self._start(index, info)
        self._t = then

    def last_observation(self, index: int) -> tuple[int, np.ndarray]:
        """Returns the step that an env's episode has come to, and what it observes there."""
        observation = self._columns.read(Columns.OBS, index, self._t, self._t + 1)[0]
        return self._t - self._first_E[index], observation

    def finish(self, index: int) -> None:
        """Does nothing: an episode gets its columns before the callbacks see its end."""

    def _flatten(self, observations: Any) -> np.ndarray:
        if self._num_one_hot is None:
            return observations
        return np.eye(self._num_one_hot, dtype=np.float32)[observations]

    def _start(self, index: int, info: dict[str, Any]) -> None:
        self._first_E[index] = self._t + 1
        first_obs = self._columns.read(Columns.OBS, index, self._t + 1, self._t + 2)[0]
        self._runner.ongoing_episodes[index].add_env_reset(observation=first_obs, infos=info)
        self._infos_E[index] = {self._t + 1: info}

    def _cut(self, index: int, terminated: bool, truncated: bool) -> None:
        """Copies the columns of the episode that ended at this step into its object."""
        episode: SingleAgentEpisode = self._runner.ongoing_episodes[index]
        first, end = self._first_E[index], self._t + 1

        def column(name: str) -> InfiniteLookbackBuffer:
            return InfiniteLookbackBuffer(self._columns.read(name, index, first, end))

        episode.observations = InfiniteLookbackBuffer(
            # The final observation belongs to the episode too.
            self._columns.read(Columns.OBS, index, first, end + 1)
        )
        infos: list[dict[str, Any]] = [{} for _ in range(first, end + 1)]
        for t, info in self._infos_E[index].items():
            infos[t - first] = info
        episode.infos = InfiniteLookbackBuffer(infos)
        episode.actions = column(Columns.ACTIONS)
        episode.rewards = column(Columns.REWARDS)
        episode.extra_model_outputs = {
            name: column(name)
            for name in self._outputs_R
            if name not in (Columns.ACTIONS, Columns.ACTIONS_FOR_ENV)
        }
        seq_nos = np.full(end - first, self._runner.weights_seq_no)
        episode.extra_model_outputs[WEIGHTS_SEQ_NO] = InfiniteLookbackBuffer(seq_nos)
        episode.observation_space = self._runner.env_to_module.observation_space
        episode.action_space = self._runner.env.single_action_space
        episode.t = end - first
        episode.is_terminated, episode.is_truncated = terminated, truncated
        episode._last_step_time = time.perf_counter()


def _to_numpy(rows: Any) -> np.ndarray:
    """Converts as RLlib's `TensorToNumpy` does, which keeps numbers in 32 bits."""
    array = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)
    return array.astype(_IN_32_BITS.get(array.dtype, array.dtype), copy=False)


class _Columns:
    """Arrays [T, E, ...] by name, each made when first written to and grown as T goes on."""

    _FIRST_LENGTH = 256

    def __init__(self, num_envs: int):
        self._num_envs = num_envs
        self._length = self._FIRST_LENGTH
        self._arrays: dict[str, Any] = {}

    def write(self, t: int, envs: Sequence[int] | np.ndarray, rows: dict[str, Any]) -> None:
        """Writes one row per env, [R, ...] or a struct of such, under each name."""
        if t >= self._length:
            self._length *= 2
            self._arrays = {
                name: map_leaves(self._grown, array) for name, array in self._arrays.items()
            }
        index = self._index(t, envs)

        def write(array: np.ndarray, row: np.ndarray) -> None:
            array[index] = row

        for name, row in rows.items():
            if name not in self._arrays:
                self._arrays[name] = map_leaves(self._empty, row)
            map_leaves(write, self._arrays[name], row)

    def rows(self, name: str, t: int, envs: np.ndarray) -> np.ndarray:
        """Returns the rows of some envs at one step, not to be written to."""
        return self._arrays[name][self._index(t, envs)]

    def read(self, name: str, env: int, first: int, end: int) -> Any:
        """Copies the steps `first` to `end` (not included) of one env."""
        return map_leaves(lambda array: array[first:end, env].copy(), self._arrays[name])

    def _index(self, t: int, envs: Sequence[int] | np.ndarray) -> Any:
        # Envs come in order, so all of them are the whole row, which is faster to address.
        return t if len(envs) == self._num_envs else (t, envs)

    def _empty(self, row: np.ndarray) -> np.ndarray:
        return np.empty((self._length, self._num_envs, *row.shape[1:]), row.dtype)

    def _grown(self, array: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [array, np.empty_like(array, shape=(self._length - len(array), *array.shape[1:]))]
        )

"""Computes actions and records steps for all running envs at once, in arrays.

Array names carry their axes: R = the envs that step.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

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
    GetActions,
    ListifyDataForVectorEnv,
    NormalizeAndClipActions,
    RemoveSingleTsTimeRankFromBatch,
    TensorToNumpy,
    UnBatchToIndividualItems,
)
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from torch import Tensor

from rllib_gpg.nested import map_leaves, on_host
from rllib_gpg.sampling.rollout.actions import DrawActions, fit_for
from rllib_gpg.sampling.rollout.base import Rollout, RunnerParts
from rllib_gpg.sampling.rollout.episode_columns import EpisodeColumns
from rllib_gpg.sampling.rollout.sparse_infos import SparseInfos
from rllib_gpg.sampling.rollout.vector_env import Resets, Steps
from rllib_gpg.sampling.sending import what_can_be_sent

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
_TENSORS_IN_32_BITS = {torch.float64: torch.float32, torch.int64: torch.int32}


def obstacle_to_columns(parts: RunnerParts) -> str | None:
    """Returns why these parts can't sample in columns, or None if they can."""
    env_to_module = [type(piece) for piece in parts.env_to_module.connectors]
    module_to_env = [type(piece) for piece in parts.module_to_env.connectors]
    space = parts.env.single_observation_space
    one_hot = _is_one_hot(parts)
    if parts.module is None or parts.module.is_stateful():
        return "the module is recurrent"
    if env_to_module[int(one_hot) :] != _DEFAULT_ENV_TO_MODULE:
        return "there are custom env-to-module connectors"
    if module_to_env != _DEFAULT_MODULE_TO_ENV:
        return "there are custom module-to-env connectors"
    if not (one_hot or isinstance(space, gym.spaces.Box)):
        return f"observations aren't one array each: {space}"
    if not parts.episodes_to_numpy:
        return "`episodes_to_numpy` is off"
    if parts.config.callbacks_on_episode_step or any(
        type(callback).on_episode_step is not RLlibCallback.on_episode_step
        for callback in parts.callbacks
    ):
        return "there is a callback `on_episode_step`"
    return None


def changed_defaults(parts: RunnerParts) -> str | None:
    """Returns the default connectors if they aren't those that columns know, or None if they are.

    Whatever connectors the config adds to them.
    """
    plain = parts.config.copy(copy_frozen=False)
    plain.env_runners(
        env_to_module_connector=None,
        module_to_env_connector=None,
        add_default_connectors_to_env_to_module_pipeline=True,
        add_default_connectors_to_module_to_env_pipeline=True,
    )
    pipelines = (
        plain.build_env_to_module_connector(parts.env),
        plain.build_module_to_env_connector(parts.env),
    )
    pieces = [type(piece) for pipeline in pipelines for piece in pipeline.connectors]
    if pieces[0] is FlattenObservations:
        # Of observations that the default module can't take as they are.
        del pieces[0]
    known = [*_DEFAULT_ENV_TO_MODULE, GetActions, *_DEFAULT_MODULE_TO_ENV[1:]]
    return None if pieces == known else ", ".join(piece.__name__ for piece in pieces)


def _is_one_hot(parts: RunnerParts) -> bool:
    """Whether the only custom connector is RLlib's flattening of discrete observations."""
    pieces, space = parts.env_to_module.connectors, parts.env.single_observation_space
    return (
        bool(pieces)
        and type(pieces[0]) is FlattenObservations
        and isinstance(space, gym.spaces.Discrete)
        and space.start == 0
    )


class ColumnarRollout(Rollout):
    """What `GroupEnvRunner` does at one vector step, without Python per env.

    Actions are computed as RLlib's default connectors do, for the envs that still run.
    """

    sees_every_step = False

    def __init__(self, parts: RunnerParts):
        """Prepares one `sample` call; `obstacle_to_columns` found none."""
        super().__init__(parts)
        # Of envs that give tensors.
        self._device: torch.device | None = None
        self._draw_actions = DrawActions()
        self._num_one_hot = parts.env.single_observation_space.n if _is_one_hot(parts) else None
        self._columns = EpisodeColumns(len(parts.episodes))
        # Per env, the infos of its running episode that aren't empty, by vector step.
        self._infos: list[dict[int, dict[str, Any]]] = [{} for _ in parts.episodes]
        self._first = [0] * len(parts.episodes)
        # The vector step whose actions come next.
        self._t = -1
        self._outputs_R: dict[str, Any] = {}

    @functools.cached_property
    def _fit(self) -> Callable[[Any], Any]:
        return fit_for(
            self._parts.env.single_action_space,
            normalize=self._parts.config.normalize_actions,
            clip=self._parts.config.clip_actions,
            device=self._device,
        )

    @override(Rollout)
    def act(self, stepping: np.ndarray) -> Any:
        """Returns the actions of the stepping envs as one batch, unsquashed and clipped."""
        parts = self._parts
        # Not `inference_mode`: what a module assigns to its buffers in there could never be loaded.
        with torch.no_grad():
            outputs = self._draw_actions(
                rl_module=parts.module,
                batch=self._forward(self._columns.observations(stepping)),
                episodes=parts.episodes[stepping[0] : stepping[0] + 1],
                explore=parts.explore,
            )
        # Episodes keep what the module sampled, the env gets what its action space asks for.
        if self._device is not None:
            outputs = {name: map_leaves(self._to_env, rows) for name, rows in outputs.items()}
            for_env = outputs.pop(Columns.ACTIONS_FOR_ENV, outputs[Columns.ACTIONS])
            self._outputs_R = {n: map_leaves(_in_32_bits, rows) for n, rows in outputs.items()}
        else:
            self._outputs_R = {n: map_leaves(_to_numpy, rows) for n, rows in outputs.items()}
            for_env = self._outputs_R.pop(Columns.ACTIONS_FOR_ENV, self._outputs_R[Columns.ACTIONS])
        return self._fit(for_env)

    def _forward(self, obs_R: np.ndarray | Tensor) -> dict[str, Any]:
        parts, rows = self._parts, torch.as_tensor(obs_R)
        # As RLlib's `NumpyToTensor`: floats in 32 bits. Copied, since a module may write into it.
        dtype = torch.float32 if rows.is_floating_point() else None
        rows = rows.to(parts.device, dtype, copy=True)
        if parts.explore:
            return parts.module.forward_exploration(
                {Columns.OBS: rows}, t=parts.num_env_steps_lifetime
            )
        return parts.module.forward_inference({Columns.OBS: rows})

    def _to_env(self, rows: Tensor) -> Tensor:
        return rows.to(self._device)

    @override(Rollout)
    def begin(self, starting: list[int], resets: Resets, going_on: list[int]) -> None:
        """Begins episodes, and takes up those that go on."""
        if starting:
            self._begin(starting, resets)
        if going_on:
            self._go_on(going_on)
        self._advance()

    @override(Rollout)
    def record(
        self,
        stepping: np.ndarray,
        steps: Steps,
        starting: list[int],
        resets: Resets,
        last: np.ndarray,
    ) -> np.ndarray:
        """Writes down what the envs returned, and puts together the episodes that are over."""
        then = self._t + 1
        done = np.zeros(len(stepping), np.bool_)
        if len(stepping) > 0:
            columns = {**self._outputs_R, Columns.REWARDS: steps.rewards}
            self._columns.add(stepping, columns, self._flatten(steps.observations))
            if steps.infos is not None:
                for index, info in zip(stepping.tolist(), steps.infos, strict=True):
                    self._infos[index][then] = info
            done = steps.terminateds | steps.truncateds
            for row in (done | last).nonzero()[0].tolist():
                ends = bool(steps.terminateds[row]), bool(steps.truncateds[row])
                self._end(int(stepping[row]), *ends)
        if starting:
            self._begin(starting, resets)
        self._advance()
        return done

    def _advance(self) -> None:
        self._t += 1
        self._columns.advance()

    @override(Rollout)
    def cut(self, index: int, observation: Any) -> SingleAgentEpisode:
        """Returns the rest of an episode; nothing looks back here."""
        episode = self._parts.episodes[index]
        rest = SingleAgentEpisode(
            episode.id_,
            observations=[observation],
            infos=[what_can_be_sent(episode.get_infos(-1))],
            observation_space=self._parts.env.single_observation_space,
            action_space=episode.action_space,
            t_started=episode.t,
            len_lookback_buffer=0,
        )
        rest.custom_data.update(copy.deepcopy(episode.custom_data))
        return rest

    @override(Rollout)
    def finish(self, index: int) -> None:
        """Does nothing: an episode gets its columns before the callbacks see its end."""

    @override(Rollout)
    def observed(self, index: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yields what the module sees next of an env."""
        name = f"episode {self._parts.episodes[index].id_}"
        yield name, self._t - self._first[index], on_host(self._columns.observations([index]))[0]

    def _flatten(self, observations: Any) -> Any:
        if self._num_one_hot is None:
            return observations
        if isinstance(observations, Tensor):
            return torch.nn.functional.one_hot(observations.long(), self._num_one_hot).float()
        one_hot_R = np.zeros((len(observations), self._num_one_hot), np.float32)
        one_hot_R[np.arange(len(observations)), observations] = 1.0
        return one_hot_R

    def _begin(self, starting: list[int], resets: Resets) -> None:
        obs_R = self._flatten(resets.observations)
        self._device = obs_R.device if isinstance(obs_R, Tensor) else None
        self._columns.begin(starting, obs_R)
        infos = resets.infos or [{} for _ in starting]
        for index, observation, info in zip(starting, on_host(obs_R), infos, strict=True):
            episode = self._parts.episodes[index]
            # A copy: vector envs reuse their buffers.
            episode.add_env_reset(observation=observation.copy(), infos=info)
            self._first[index] = self._t + 1
            # The dict that the episode holds, which is another if `info` is empty: callbacks may
            # write into it.
            self._infos[index] = {self._t + 1: episode.get_infos(0)}

    def _go_on(self, going_on: list[int]) -> None:
        """Takes up episodes that have an observation, seen by connectors, but no step as yet."""
        episodes = [self._parts.episodes[index] for index in going_on]
        observations = np.stack([episode.get_observations(-1) for episode in episodes])
        self._columns.begin(going_on, self._flatten(observations))
        for index, episode in zip(going_on, episodes, strict=True):
            self._first[index] = self._t + 1
            self._infos[index] = {self._t + 1: episode.get_infos(-1)}

    def _end(self, index: int, terminated: bool, truncated: bool) -> None:
        """Puts the columns of the episode that ended at this step into its object."""
        episode = self._parts.episodes[index]
        columns = self._columns.end(index)
        first, end = self._first[index], self._t + 1
        infos = {t - first: info for t, info in self._infos[index].items() if info}
        # Says that it is over, and when; the step that this adds is replaced by the columns.
        last = columns[Columns.OBS][-1]
        ends = {"terminated": terminated, "truncated": truncated}
        episode.add_env_step(last, None, 0.0, infos.get(end - first), **ends)
        episode.infos = SparseInfos(infos, end - first + 1)
        _fill(episode.observations, columns.pop(Columns.OBS))
        _fill(episode.actions, columns.pop(Columns.ACTIONS))
        _fill(episode.rewards, columns.pop(Columns.REWARDS))
        columns[WEIGHTS_SEQ_NO] = np.full(end - first, self._parts.weights_seq_no)
        episode.extra_model_outputs = {
            name: InfiniteLookbackBuffer(column) for name, column in columns.items()
        }
        if self._num_one_hot is not None:
            episode.observation_space = self._parts.env_to_module.observation_space
        episode.t = episode.t_started + end - first


def _fill(buffer: InfiniteLookbackBuffer, column: Any) -> None:
    # The buffer that the episode has, with its space: to make one takes longer than to copy.
    # What may be there to look back at is left out: in columns nothing does.
    buffer.data, buffer.lookback, buffer.finalized = column, 0, True


def _to_numpy(rows: Any) -> np.ndarray:
    """Converts as RLlib's `TensorToNumpy` does, which keeps numbers in 32 bits."""
    array = rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
    return array.astype(_IN_32_BITS.get(array.dtype, array.dtype), copy=False)


def _in_32_bits(rows: Tensor) -> Tensor:
    return rows.to(_TENSORS_IN_32_BITS.get(rows.dtype, rows.dtype))

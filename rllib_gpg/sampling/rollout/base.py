"""What the ways of rolling out have in common: the parts of an env runner that they work with."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.utils.metrics import (
    ENV_TO_MODULE_CONNECTOR,
    MODULE_TO_ENV_CONNECTOR,
    RLMODULE_INFERENCE_TIMER,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import EpisodeType


@dataclass(frozen=True)
class RunnerParts:
    """The parts of an env runner that one `sample` call works with.

    Attributes:
        config: The env runner's config.
        env: Its vector env.
        module: The policy; None if actions can only be drawn at random.
        env_to_module: The connector pipeline from episodes to the module's input.
        module_to_env: The connector pipeline from the module's output to the env's actions.
        callbacks: The user's callback objects.
        metrics: What users' callbacks and connectors log to.
        device: Where the module computes.
        explore: Whether to call the module's `forward_exploration` or `forward_inference`.
        weights_seq_no: The learner's sequence number of the weights in place.
        num_env_steps_lifetime: The env steps sampled before this call, for `forward_exploration`.
        episodes_to_numpy: Whether finished episodes hold arrays instead of lists.
        episodes: The running episode of each env, or None. Callbacks and connectors see this list.
    """

    config: AlgorithmConfig
    env: Any
    module: Any
    env_to_module: ConnectorPipelineV2
    module_to_env: ConnectorPipelineV2
    callbacks: list[RLlibCallback]
    metrics: MetricsLogger
    device: Any
    explore: bool
    weights_seq_no: int
    num_env_steps_lifetime: int
    episodes_to_numpy: bool
    episodes: list[Any]


class Rollout(abc.ABC):
    """What happens at one vector step: compute actions, record what came of them.

    Which envs step, and which begin anew, is decided by a schedule (see loop.py). Envs are named by
    their indices, in rising order; R is the number of envs that step.
    """

    # Whether `on_episode_step` is called.
    sees_every_step = True

    def __init__(self, parts: RunnerParts):
        """Prepares one `sample` call."""
        self._parts = parts

    @abc.abstractmethod
    def act(self, stepping: np.ndarray) -> Any:
        """Returns one action per stepping env, in the form in which the env takes it."""

    @abc.abstractmethod
    def begin(self, starting: list[int], resets: Any, going_on: list[int]) -> None:
        """Takes in what there is before the first step.

        Args:
            starting: The envs in which an episode begins.
            resets: Their first observations, row by row.
            going_on: The envs whose episodes go on from an earlier call.
        """

    @abc.abstractmethod
    def record(
        self,
        stepping: np.ndarray,
        steps: Any,
        starting: list[int],
        resets: Any,
        last: np.ndarray,
    ) -> np.ndarray:
        """Adds what the envs returned to the episodes.

        Args:
            stepping: [R] the envs that `act` computed actions for.
            steps: What came of these actions, row by row.
            starting: The envs in which an episode begins now.
            resets: Their first observations, row by row.
            last: [R] bool: who makes no further step, episode over or not.

        Returns:
            [R] bool: whose episodes are over.
        """

    def cut(self, index: int, observation: Any) -> EpisodeType:
        """Returns an episode without steps, with which one that is not over can go on later.

        Args:
            index: The env.
            observation: What it shows, before any connector has seen it.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def finish(self, index: int) -> None:
        """Brings the env's episode, which goes no further, into the form that is handed on."""

    @abc.abstractmethod
    def observed(self, index: int) -> Iterator[tuple[str, int, Any]]:
        """Yields what the module sees next of an env: whose, at which step, the observation."""


class PipelineRollout(Rollout):
    """Base of those that go through the connector pipelines, for any module and any connectors."""

    def __init__(self, parts: RunnerParts, *, random_actions: bool = False):
        """Prepares one `sample` call.

        Args:
            parts: The parts of the env runner to work with.
            random_actions: Whether to draw actions from the action space instead of the policy.
        """
        super().__init__(parts)
        self._random_actions = random_actions
        # What the last `act` computed, waiting for the steps it led to: per env, in their order.
        self._actions: list[Any] = []
        self._outputs: dict[str, Any] = {}
        self._shared_data: dict[str, Any] = {}

    def _episodes(self, env_indices: Any) -> list[Any]:
        return [self._parts.episodes[index] for index in env_indices]

    def _env_to_module(self, episodes: list[EpisodeType]) -> Any:
        parts = self._parts
        if parts.module is None or not episodes:
            return None
        return parts.env_to_module(
            episodes=episodes,
            batch={},
            explore=parts.explore,
            rl_module=parts.module,
            shared_data=self._shared_data,
            metrics=parts.metrics,
            metrics_prefix_key=(ENV_TO_MODULE_CONNECTOR,),
        )

    def _forward(self, to_module: Any) -> dict[str, Any]:
        parts = self._parts
        with parts.metrics.log_time(RLMODULE_INFERENCE_TIMER):
            if parts.explore:
                return parts.module.forward_exploration(to_module, t=parts.num_env_steps_lifetime)
            return parts.module.forward_inference(to_module)

    def _module_to_env(
        self, outputs: dict[str, Any], episodes: list[EpisodeType]
    ) -> dict[str, Any]:
        parts = self._parts
        return parts.module_to_env(
            rl_module=parts.module,
            batch=outputs,
            episodes=episodes,
            explore=parts.explore,
            shared_data=self._shared_data,
            metrics=parts.metrics,
            metrics_prefix_key=(MODULE_TO_ENV_CONNECTOR,),
        )

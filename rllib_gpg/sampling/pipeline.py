"""Computes actions and records steps through RLlib's own connector pipelines, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.spaces.space_utils import unbatch

from rllib_gpg.sampling.module_pipeline import ModulePipeline
from rllib_gpg.sampling.vector_env import Resets, Steps

if TYPE_CHECKING:
    from rllib_gpg.sampling.env_runner import GroupEnvRunner


class PipelineRollout(ModulePipeline):
    """What `GroupEnvRunner` does at one vector step, for any module and any connectors.

    It does what RLlib's `SingleAgentEnvRunner` does, in its order, for the envs that still run:
    nothing is computed for an env whose episode is over.
    """

    # Whether `on_episode_step` is called.
    sees_every_step = True

    def __init__(self, runner: GroupEnvRunner, *, explore: bool, random_actions: bool):
        """Prepares one `sample` call.

        Args:
            runner: The env runner whose module and connectors to use.
            explore: Whether to call the module's `forward_exploration` or `forward_inference`.
            random_actions: Whether to draw actions from the action space instead.
        """
        super().__init__(runner, explore=explore)
        self._random_actions = random_actions
        self._to_module: Any = None
        # What the last `act` computed, waiting for the steps it led to.
        self._actions: list[Any] = []
        self._outputs: dict[str, Any] = {}

    def act(self, stepping: np.ndarray) -> Any:
        """Returns one action per stepping env, unsquashed and clipped."""
        episodes = self._episodes(stepping)
        if self._random_actions:
            space = self._runner.env.single_action_space
            outputs: dict[str, Any] = {Columns.ACTIONS: [space.sample() for _ in episodes]}
        else:
            outputs = self._module_to_env(self._forward(self._to_module), episodes)
        actions = outputs.pop(Columns.ACTIONS)
        for_env = outputs.pop(Columns.ACTIONS_FOR_ENV, actions)
        self._actions = actions if isinstance(actions, list) else unbatch(actions)
        self._outputs = outputs
        return for_env

    def record(
        self, stepping: np.ndarray, steps: Steps | None, starting: list[int], resets: Resets
    ) -> None:
        """Adds what the env returned to the episodes, and keeps the module's next input.

        Args:
            stepping: [R] the envs that `act` computed actions for, in rising order.
            steps: What came of these actions, row by row; None if nothing has stepped yet.
            starting: The envs in which an episode begins now.
            resets: Their first observations, row by row.
        """
        stepped, started = self._episodes(stepping), self._episodes(starting)
        if steps is not None:
            self._add_steps(stepped, steps)
        for row, (episode, observation) in enumerate(_rows(started, resets.observations)):
            episode.add_env_reset(
                observation=observation, infos=resets.infos[row] if resets.infos else {}
            )

        # Connectors may write into the episode: final observations must pass them as well.
        self._env_to_module([episode for episode in stepped if episode.is_done])
        running = self._episodes(sorted([*stepping, *starting]))
        self._to_module = self._env_to_module(
            [episode for episode in running if not episode.is_done]
        )

    def last_observation(self, index: int) -> tuple[int, Any]:
        """Returns the step that an env's episode has come to, and what it observes there."""
        episode = self._runner.ongoing_episodes[index]
        return episode.t, episode.get_observations(-1)

    def finish(self, index: int) -> None:
        """Brings the env's episode, which is done, into the form in which it is handed on."""
        if self._runner.episodes_to_numpy:
            self._runner.ongoing_episodes[index].to_numpy()

    def _episodes(self, env_indices: Sequence[int] | np.ndarray) -> list[SingleAgentEpisode]:
        return [self._runner.ongoing_episodes[index] for index in env_indices]

    def _add_steps(self, stepped: list[SingleAgentEpisode], steps: Steps) -> None:
        for row, (episode, observation) in enumerate(_rows(stepped, steps.observations)):
            outputs = {column: values[row] for column, values in self._outputs.items()}
            outputs[WEIGHTS_SEQ_NO] = self._runner.weights_seq_no
            episode.add_env_step(
                observation=observation,
                action=self._actions[row],
                reward=float(steps.rewards[row]),
                infos=steps.infos[row] if steps.infos else {},
                terminated=bool(steps.terminateds[row]),
                truncated=bool(steps.truncateds[row]),
                extra_model_outputs=outputs,
            )


def _rows(
    episodes: Sequence[SingleAgentEpisode], observations: Any
) -> list[tuple[SingleAgentEpisode, Any]]:
    """Pairs every episode with its row of a batch of observations."""
    return list(zip(episodes, unbatch(observations), strict=True)) if episodes else []

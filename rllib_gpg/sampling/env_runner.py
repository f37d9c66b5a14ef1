"""`GroupEnvRunner`: exactly k started episodes, all of them finished."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.connectors.module_to_env import GetActions
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_gpg.sampling.rollout.actions import DrawActions
from rllib_gpg.sampling.rollout.base import Rollout, RunnerParts
from rllib_gpg.sampling.rollout.columnar import (
    ColumnarRollout,
    changed_defaults,
    obstacle_to_columns,
)
from rllib_gpg.sampling.rollout.schedule import Schedule
from rllib_gpg.sampling.rollout.stepwise import StepwiseRollout
from rllib_gpg.sampling.rollout.vector_env import SubEnvs, adapt, limit_episodes
from rllib_gpg.sampling.seeds import Seeds
from rllib_gpg.sampling.share_runner import ShareSamplingEnvRunner

logger = logging.getLogger("ray.rllib")


class GroupEnvRunner(ShareSamplingEnvRunner, SingleAgentEnvRunner):
    """RLlib's env runner for single agents, with unbiased sampling of whole episodes.

    `sample(num_episodes=k)` of RLlib's own env runner returns the first k episodes to *finish*
    among its parallel envs and drops the rest, so short episodes are over-represented. This one
    fixes which episodes are *started*, exactly k, and finishes every one of them.

    It also serves other algorithms. For RLlib's PPO, for instance:

        config.env_runners(env_runner_cls=GroupEnvRunner, batch_mode="complete_episodes")

    With `AlgorithmConfig.debugging(seed=..)`, each call begins its episodes from seeds of its own,
    drawn independently for any two calls and runners; the actions drawn are seeded as well.

    Sampling by timesteps (`sample(num_timesteps=..)`, for evaluation with a duration of "auto")
    is RLlib's own.
    """

    @override(SingleAgentEnvRunner)
    def __init__(self, **kwargs: Any):
        """Takes the arguments of `SingleAgentEnvRunner`."""
        super().__init__(**kwargs)
        pieces = self._module_to_env.connectors
        pieces[:] = [DrawActions() if type(piece) is GetActions else piece for piece in pieces]
        # Whether to sample in columns; decided at the first call.
        self._in_columns: bool | None = None

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Makes the vector env, its episodes cut after `config.max_episode_steps` steps."""
        super().make_env()
        max_episode_steps = self.config.get("max_episode_steps")
        if max_episode_steps is not None:
            limit_episodes(self.env, max_episode_steps)
        self._envs = adapt(self.env)
        # Evaluation samples no groups, and the config may be another algorithm's.
        per_start = self.config.get("episodes_per_start", 1)
        if per_start > 1 and not self.config.in_evaluation and not isinstance(self._envs, SubEnvs):
            raise ValueError(
                f"`episodes_per_start` = {per_start} needs envs that gymnasium steps one by one, "
                f"without a vector wrapper around them; got {type(self.env.env).__name__}."
            )

    @override(ShareSamplingEnvRunner)
    def _sample_by(
        self, schedule: Schedule, seeds: Seeds | None, parts: RunnerParts, random_actions: bool
    ) -> tuple[list[SingleAgentEpisode], dict[int, SingleAgentEpisode]]:
        rollout = self._rollout(parts, random_actions, seeds)
        episodes, cut = self._run(rollout, self._envs, schedule, parts)
        num_ended = sum(episode.is_done for episode in episodes)
        self._increase_sampled_metrics(sum(map(len, episodes)), num_ended)
        return episodes, cut

    def _rollout(self, parts: RunnerParts, random_actions: bool, seeds: Seeds | None) -> Rollout:
        if self._in_columns is None:
            obstacle = obstacle_to_columns(parts)
            self._in_columns = obstacle is None
            self._say_how(parts, obstacle)
        if self._in_columns and not random_actions:
            return ColumnarRollout(parts)
        rollout = StepwiseRollout(parts, random_actions=random_actions)
        if random_actions and seeds is not None:
            rollout.seed_random_actions(seeds.actions)
        return rollout

    def _say_how(self, parts: RunnerParts, obstacle: str | None) -> None:
        name = type(self).__name__
        if obstacle is None:
            logger.info(f"{name} samples in columns.")
        elif changed := changed_defaults(parts):
            # Nobody asked for it.
            logger.warning(
                f"{name} samples step by step, several times slower than in columns: RLlib's "
                f"default connectors aren't those that this version of rllib_gpg knows: {changed}."
            )
        else:
            logger.info(f"{name} samples step by step, because {obstacle}.")

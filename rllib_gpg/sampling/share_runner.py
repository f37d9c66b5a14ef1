"""What env runners for one agent and for several have in common: shares, weights and seeds."""

from __future__ import annotations

import abc
import copy
import dataclasses
import logging
import traceback
from collections.abc import Collection, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core import (
    COMPONENT_ENV_TO_MODULE_CONNECTOR,
    COMPONENT_MODULE_TO_ENV_CONNECTOR,
    COMPONENT_RL_MODULE,
)
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import EpisodeType, StateDict

from rllib_gpg.sampling.connector_states import Connectors, ConnectorStates
from rllib_gpg.sampling.episode_metrics import in_columns, summarize
from rllib_gpg.sampling.messages import Share, ShareFailure, ShareResult, Weights
from rllib_gpg.sampling.progress import Progress
from rllib_gpg.sampling.rollout.base import Rollout, RunnerParts
from rllib_gpg.sampling.rollout.loop import Envs, run
from rllib_gpg.sampling.rollout.schedule import Schedule, WholeEpisodes
from rllib_gpg.sampling.seeds import Seeds
from rllib_gpg.sampling.sending import pack_to_send
from rllib_gpg.sampling.standing import Standing, standing_after, take_up
from rllib_gpg.seeding import seeded_globally

logger = logging.getLogger("ray.rllib")

# In the state of an env runner: how many seeded calls of `sample` there have been.
_NUM_SAMPLE_CALLS = "num_sample_calls"


class ShareSamplingEnvRunner(EnvRunner):
    """Samples shares of groups: exactly k started episodes, all of them finished, and seeded.

    To be placed in front of one of RLlib's env runners in the list of base classes, whose
    `sample(num_episodes=k)` it changes. Sampling by timesteps is left as it is.
    """

    # How the envs are stepped; see rollout/vector_env.py. None: only as a whole.
    _envs: Any = None

    @override(EnvRunner)
    def __init__(self, **kwargs: Any):
        """Takes the arguments of RLlib's env runner.

        Raises:
            ValueError: If the config says to begin another episode where an env has failed.
        """
        config = kwargs["config"]
        # An evaluation by timesteps is RLlib's.
        if config.restart_failed_sub_environments and not config.in_evaluation:
            raise ValueError(
                f"`restart_failed_sub_environments` begins another episode where an env fails, and "
                f"{type(self).__name__} finishes those that were begun. Remove the setting: an env "
                "runner that fails is made anew."
            )
        super().__init__(**kwargs)
        self._weights_version: int | None = None
        # The buffers of modules as they were loaded: of which part, by which name.
        self._buffers: list[tuple[torch.nn.Module, str, torch.Tensor]] = []
        self._seeds: Seeds | None = None
        self._progress: Progress | None = None
        self._num_sample_calls = 0
        # Whether the env raised; it is made anew then, in whatever state it is.
        self._is_env_broken = False
        # The share of rollouts to be sampled next.
        self._rollouts: Share | None = None

    def sample_share(
        self, share: Share, weights: Weights, progress: Progress | None = None
    ) -> ShareResult | ShareFailure:
        """Samples one share of a group with the given weights.

        Args:
            share: Which episodes to sample.
            weights: The weights to sample them with, loaded unless they are in place already, and
                what the connectors remember at the beginning of the share, and after it again.
            progress: Is told how far the share has come. Default None: nobody is.

        Returns:
            The share's episodes, metrics, and what its connectors remember at its end; or what
            went wrong.
        """
        logged = copy.deepcopy(self.metrics.stats)
        try:
            if self._is_env_broken:
                self.make_env()
                self._is_env_broken = False
                if self.worker_index:
                    # What was set on the one before by hand is to be set on this one first.
                    return ShareFailure(share, "the env was made anew", "", has_new_env=True)
            self.load(weights)
            self._seeds = share.seeds()
            self._rollouts = share if share.num_steps else None
            self._progress = progress
            with self.connectors.beginning_with(weights.connectors):
                episodes = self.sample(num_episodes=share.num_episodes, explore=share.explore)
                # What an evaluation adds is used by nobody, as with RLlib's PPO.
                connectors = {} if share.in_evaluation else self.connectors.get_states()
            # An evaluation's episodes are as large as a group's, and nobody asks for them.
            sent: Any = [] if share.in_evaluation else episodes
            if self.worker_index:
                sent = pack_to_send(sent, infos=weights.infos)
            # Nothing of it counts unless all of it can be said.
            return self._result_of(share, episodes, sent, connectors)
        except BaseException as error:  # Also an interrupt, if the env runner is the driver's own.
            self._is_env_broken = True
            # Episodes that don't count aren't logged either.
            self.metrics.stats = logged
            self._done_episodes_for_metrics.clear()
            if not isinstance(error, Exception):
                raise
            # Reported by the caller; see `ShareFailure`. It may be a callback's, or a connector's.
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}, in `{where.name}`"
            words = f"{error!r} at {at}, with env {self.config.env!r}"
            raised = traceback.format_exc()
            # At once, so that what was set on it by hand can be set again before the next share.
            return ShareFailure(share, words, raised, has_new_env=self._has_new_env())

    def _has_new_env(self) -> bool:
        """Makes the env anew, or says that it can't be made now; the next share tries again."""
        try:
            self.make_env()
        except Exception:
            logger.exception("The env can't be made anew")
            return False
        self._is_env_broken = False
        return True

    def _result_of(
        self, share: Share, episodes: list[EpisodeType], sent: Any, connectors: ConnectorStates
    ) -> ShareResult:
        # The algorithm logs them, over all shares.
        self._done_episodes_for_metrics.clear()
        earlier = {s.episode.id_: s.earlier_return for s in share.standing if s is not None}
        return ShareResult(
            # Where it began is known where it came from.
            dataclasses.replace(share, standing=()),
            sent,
            in_columns(summarize(e, earlier.get(e.id_, 0.0)) for e in episodes if e.is_done),
            self.get_metrics(),
            connectors,
            [self._stands.get(index) for index in share.envs],
        )

    def make_env(self) -> None:
        """Makes the envs, of which it is known nowhere yet where they stand."""
        super().make_env()
        # By env, where the rollouts sampled last have come to.
        self._stands: dict[int, Standing] = {}

    @property
    def connectors(self) -> Connectors:
        """The pieces of the two connector pipelines, and what they remember."""
        return Connectors(self._env_to_module, self._module_to_env)

    def load(self, weights: Weights) -> None:
        """Puts weights in place, unless they are; also those of an older checkpoint.

        Args:
            weights: The weights that the next episodes are to be sampled with.
        """
        # What exploring has changed since, such as the state of a noise, isn't the next share's.
        for part, name, value in self._buffers:
            part._buffers[name] = value.clone()
        if self._weights_version == weights.version:
            return
        state = weights.state
        if isinstance(state, ray.ObjectRef):
            state = ray.get(state)
        self.set_state(state)
        self._weights_version = weights.version
        self._buffers = [
            (part, name, buffer.clone())
            for module in self._torch_modules()
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]

    def _torch_modules(self) -> list[torch.nn.Module]:
        multi = isinstance(self.module, MultiRLModule)
        modules = self.module.values() if multi else [self.module]
        return [module for module in modules if isinstance(module, torch.nn.Module)]

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> StateDict:
        """Returns the state; of a remote env runner that samples groups, without the connectors'.

        What its connectors gather is in the results of its shares. RLlib, which asks for it after
        each iteration and while it restores a checkpoint, would merge it once more.
        """
        state: StateDict = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(_NUM_SAMPLE_CALLS, components, not_components):
            state[_NUM_SAMPLE_CALLS] = self._num_sample_calls
        if self.worker_index and self.config.get("group_size") is not None:
            state.pop(COMPONENT_ENV_TO_MODULE_CONNECTOR, None)
            state.pop(COMPONENT_MODULE_TO_ENV_CONNECTOR, None)
        return state

    def set_state(self, state: StateDict) -> None:
        """Puts a state in place, with weights also of an older checkpoint."""
        if COMPONENT_RL_MODULE in state:
            # RLlib ignores weights older than those in place, and would so after going back.
            self._weights_seq_no = 0
            # From elsewhere than `load`, such as RLlib's own evaluation: of no known version.
            self._weights_version = None
        # Never back: RLlib also hands the state of one env runner to others, whose draws would
        # repeat.
        self._num_sample_calls = max(self._num_sample_calls, state.get(_NUM_SAMPLE_CALLS, 0))
        super().set_state(state)

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[EpisodeType]:
        if num_episodes is None:
            self._stands.clear()
            return super()._sample(
                num_timesteps=num_timesteps,
                explore=explore,
                random_actions=random_actions,
                force_reset=force_reset,
            )
        # The envs are left in the middle of nowhere: sampling by timesteps must reset them.
        self._needs_initial_reset = True
        self._ongoing_episodes_for_metrics.clear()
        self._ongoing_episodes: list[Any] = [None] * self.num_envs
        seeds = self._next_seeds(num_episodes)
        share, self._rollouts = self._rollouts, None
        # What moves now is nowhere known until the end.
        moving = self._stands.keys() if share is None else share.envs
        stands = {index: self._stands.pop(index) for index in [*moving] if index in self._stands}
        for module in self._torch_modules():
            module.eval()
        parts = self._parts(explore)
        schedule: Any
        if share is None:
            schedule = WholeEpisodes(seeds.episodes if seeds else [None] * num_episodes)
        else:
            # Before the generators are seeded: an env that is brought somewhere may draw from them.
            schedule = take_up(share, self._envs, stands, parts.episodes)
        seeded = seeded_globally(seeds.actions, self._device) if seeds else nullcontext()
        with seeded:
            episodes, cut = self._sample_by(schedule, seeds, parts, random_actions)
        if share is not None:
            self._stands |= standing_after(share, schedule, cut, parts.episodes)
        # None goes on; they would stay alive during the update.
        self._ongoing_episodes = [None] * self.num_envs
        self._done_episodes_for_metrics.extend(episode for episode in episodes if episode.is_done)
        if episodes:
            # What Ray's dashboard shows.
            self._metrics_num_env_steps_sampled.inc(sum(map(len, episodes)))
        return episodes

    @abc.abstractmethod
    def _sample_by(
        self, schedule: Schedule, seeds: Seeds | None, parts: RunnerParts, random_actions: bool
    ) -> tuple[list[EpisodeType], dict[int, Any]]:
        """Steps the envs as a schedule says; returns what `run` does (see rollout/loop.py).

        The global random generators are seeded already, if there are seeds.
        """

    def _parts(self, explore: bool) -> RunnerParts:
        return RunnerParts(
            config=self.config,
            env=self.env,
            module=self.module,
            env_to_module=self._env_to_module,
            module_to_env=self._module_to_env,
            callbacks=self._callbacks,
            metrics=self.metrics,
            device=self._device,
            explore=explore,
            weights_seq_no=self._weights_seq_no,
            num_env_steps_lifetime=self.num_env_steps_sampled_lifetime,
            episodes_to_numpy=self.episodes_to_numpy,
            episodes=self._ongoing_episodes,
        )

    def _run(
        self, rollout: Rollout, envs: Envs, schedule: Schedule, parts: RunnerParts
    ) -> tuple[list[EpisodeType], dict[int, Any]]:
        def call_back(which: str, env_indices: Iterable[int]) -> None:
            for index in env_indices:
                self._make_on_episode_callback(which, index, parts.episodes)

        progress, self._progress = self._progress, None
        return run(
            rollout,
            envs,
            schedule,
            parts=parts,
            new_episode=lambda index: self._new_episode(index, parts.episodes),
            call_back=call_back,
            report=progress.share_is_at if progress else None,
        )

    def _next_seeds(self, num_episodes: int) -> Seeds | None:
        """Returns the seeds of the share, or of this plain `sample` call, if it is seeded."""
        seeds, self._seeds = self._seeds, None
        if seeds is None and self.config.seed is not None:
            call = (int(self.config.in_evaluation), self.worker_index or 0, self._num_sample_calls)
            seeds = Seeds.for_sample_call(num_episodes, self.config.seed, *call)
            self._num_sample_calls += 1
        return seeds

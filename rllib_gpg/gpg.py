"""Group Policy Gradient (GPG): PPO's update with a group's own returns in place of a critic.

Paper: https://arxiv.org/abs/2510.03679
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    TIMERS,
)
from ray.rllib.utils.typing import EpisodeType, ModuleID, ResultDict

from rllib_gpg.advantages.connector import GROUP_NUMBER, STARTS
from rllib_gpg.config import GPGConfig
from rllib_gpg.diagnosis import DiagnosisCallback, GroupReport, describe_group
from rllib_gpg.group_algorithm import GroupAlgorithm
from rllib_gpg.learning.batch import shuffle_generator
from rllib_gpg.learning.learners import update_learners
from rllib_gpg.learning.pipeline import REPORT, PreparedGroup, prepare_group
from rllib_gpg.learning.torch_learner import GPGTorchLearner
from rllib_gpg.sampling.starts import starts_of
from rllib_gpg.validation import check_attributes

GROUP_ADVANTAGE_ESTIMATION_TIMER = "group_advantage_estimation_timer"


class GPG(GroupAlgorithm):
    """Group Policy Gradient: PPO without a critic (Algorithm 1 of the paper).

    Built by `GPGConfig.build_algo`, by Ray Tune, or by `GPG.from_checkpoint`.

    Attributes:
        group_reports: What the last group was like, per module, if a `DiagnosisCallback` asked for
            it; else empty.
    """

    # See learning/infos.py.
    reads_infos = False
    # What Tune prints of each result by default: RLlib's own, and these.
    _progress_metrics = (
        *Algorithm._progress_metrics,
        *(
            f"{LEARNER_RESULTS}/{DEFAULT_MODULE_ID}/{metric}"
            for metric in (
                "group_return_mean",
                "group_return_p10",
                "group_return_p90",
                "group_singleton_fraction",
                "baseline_explained_variance",
                "clip_fraction",
                "entropy",
            )
        ),
    )

    group_reports: Mapping[ModuleID, GroupReport] = MappingProxyType({})

    def __init__(self, config: Any = None, *args: Any, **kwargs: Any):
        """Initializes a GPG instance; see RLlib's `Algorithm`.

        Raises:
            ValueError: Names the settings that GPG can't run with, and the mends.
        """
        # Of the copy that RLlib is about to make of it, nobody can tell whether what is no setting
        # was set by the user or by another version of RLlib.
        if isinstance(config, GPGConfig) and config._validate_config:
            check_attributes(config)
        super().__init__(config, *args, **kwargs)

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> GPGConfig:
        """Returns the config that a dict config of Ray Tune updates."""
        return GPGConfig()

    @override(GroupAlgorithm)
    def step(self) -> ResultDict:
        """Runs one iteration of training, and of evaluation if it is due.

        Raises:
            ValueError: If there is no checkpoint where the config's `reference` should be.
        """
        if self.config.reference is not None:
            for answer in self.learner_group.foreach_learner(GPGTorchLearner.missing_reference):
                if error := answer.get():
                    raise error
        return super().step()

    @override(Algorithm)
    def training_step(self) -> None:
        """Runs one iteration of Algorithm 1."""
        # theta_old <- theta
        weights = self._policy.weights
        # Collect a group of trajectories tau_1:N under pi_theta_old, and estimate the advantages
        # (Algorithm 2). Nothing here holds on to the episodes: during the update they are gone.
        group = self._estimate_advantages(self._sample_group(weights))
        if self.config.sample_ahead:
            # The next group is under pi_theta_old as well, and comes while the policy moves.
            self._begin_next_group(weights)
        # Several epochs of minibatches on PPO's clipped loss.
        self._update(group)
        self._group_is_done()

    def report_next_group(self) -> Mapping[ModuleID, GroupReport]:
        """Samples the next group and reports on it, without learning from it.

        Metrics count it as if it had been learned from: to train on, take another algorithm.

        Returns:
            What the group is like, per module; `rllib_gpg.diagnosis.draw` makes a picture of it.
        """
        episodes = self._sample_group(self._policy.weights)
        return self._estimate_advantages(episodes, report=True).reports

    def _estimate_advantages(
        self, episodes: Sequence[EpisodeType], *, report: bool = False
    ) -> PreparedGroup:
        """Has the learner connector pipeline run, once, over the whole group.

        Args:
            episodes: The group.
            report: Whether to report on it even if no callback is due to show it.
        """
        report = report or any(
            isinstance(callback, DiagnosisCallback) and callback.is_due(self.iteration)
            for callback in force_list(self.callbacks)
        )
        timer = (TIMERS, GROUP_ADVANTAGE_ESTIMATION_TIMER)
        with self.metrics.log_time(timer, reduce="sum"):
            group = prepare_group(
                self.learner_group,
                episodes,
                shared_data={
                    GROUP_NUMBER: self._groups.number,
                    STARTS: starts_of(episodes, self.config),
                    REPORT: describe_group if report else None,
                },
                generator=shuffle_generator(self._run_seed.value, self._groups.number),
            )
        self.metrics.aggregate([group.metrics], key=LEARNER_RESULTS)
        self.group_reports = group.reports
        return group

    def _update(self, group: PreparedGroup) -> None:
        if not group.shards:
            return
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER), reduce="sum"):
            learner_results = update_learners(
                self.learner_group,
                group.shards,
                timesteps=self._timesteps(),
                num_epochs=self.config.num_epochs,
                minibatch_size=group.plan.minibatch_size,
                num_total_minibatches=group.plan.num_total_minibatches,
                shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
                order=group.order,
                seed=group.seed,
                observation_moments=group.moments,
            )
        self.metrics.aggregate(learner_results, key=LEARNER_RESULTS)

    def _timesteps(self) -> dict[str, int]:
        return {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(
                (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME)
            ),
            NUM_MODULE_STEPS_TRAINED_LIFETIME: self.metrics.peek(
                (LEARNER_RESULTS, ALL_MODULES, NUM_MODULE_STEPS_TRAINED_LIFETIME), default=0
            ),
        }

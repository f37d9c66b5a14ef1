"""What an algorithm that learns from groups does besides its training step."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EVALUATION_RESULTS,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.rllib.utils.typing import EpisodeType, ModuleID, ResultDict, StateDict
from ray.tune import Checkpoint

from rllib_gpg.checkpoints import check_checkpoint, check_saved, modules_in, saved_whole
from rllib_gpg.cluster import why_it_waits
from rllib_gpg.diagnosis.warnings import TrainingWarnings
from rllib_gpg.evaluation import (
    evaluate_episodes,
    evaluation_shares,
    refuse_if_out_of_reach,
    warn_if_out_of_reach,
)
from rllib_gpg.learning.pipeline import recurrent_modules, run_together
from rllib_gpg.patches import msgpack_as_it_is
from rllib_gpg.policy import PolicyInForce
from rllib_gpg.sampling.connector_states import ConnectorStates
from rllib_gpg.sampling.group import SamplingError, gather
from rllib_gpg.sampling.group_sampler import GroupSampler
from rllib_gpg.sampling.messages import Weights
from rllib_gpg.sampling.recording import EpisodeRecorder
from rllib_gpg.sampling.standing import Standing
from rllib_gpg.sampling.starts import NUM_EXTRA_STARTS
from rllib_gpg.seeding import RunSeed
from rllib_gpg.threads import threads_of_main_process
from rllib_gpg.validation import (
    check_new_module,
    check_overrides,
    check_spaces,
    warn_of_unknown_modules,
    why_none_starts,
)

logger = logging.getLogger("ray.rllib")
# Of its own, so that what it says can be turned off alone.
diagnosis_logger = logging.getLogger("ray.rllib.diagnosis")

# The seconds of this iteration's evaluation. RLlib's own timer is a mean over hundreds of them, and
# comes with the next iteration.
EVALUATION_TIMER = "evaluation_timer"

_RUN_SEED = "run_seed"
_NUM_GROUPS = "num_groups"
_NUM_EVALUATIONS = "num_evaluations"
_CONNECTOR_STATES = "connector_states"
_STANDING = "standing"
_SAMPLED_AHEAD_WITH = "sampled_ahead_with"


class GroupAlgorithm(Algorithm):
    """Samples groups and evaluates, saves and restores, brings back what is lost.

    What a group is good for, `training_step` of a subclass says: it calls `_sample_group`, learns,
    and calls `_group_is_done`.
    """

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        """Builds env runners and learners, and checks the binning against the spaces.

        Raises:
            ValueError: If the binning can't take the observations.
            Exception: What remote env runners raise as they are made, if all of them do.
        """
        # Before RLlib's own: the user's `on_algorithm_init` may restore a checkpoint.
        # RLlib loses Tune's trial id on the way; the trial's folder is as good.
        trial = self._storage.trial_dir_name if self._storage else None
        self._run_seed = RunSeed.draw(self.config.seed, trial)
        self._num_evaluations = 0
        # Two threads may find that env runners are to be brought back.
        self._restoring = threading.RLock()
        self._policy = PolicyInForce(self)
        self._groups = GroupSampler(self, self._restore, self._tell_of_new)
        # Those at the beginning of the iteration, and those of the last evaluation.
        self._weights_of_step: Weights
        self._evaluated_weights: Weights
        self._evaluation_s: float | None = None
        # What connectors remember once the group that was sampled last has been learned from.
        self._connectors_after_group: ConnectorStates = {}
        # What they remembered in the state that was restored last.
        self._restored_connectors: ConnectorStates = {}
        self._recorder = EpisodeRecorder(self.config)
        self._warnings = TrainingWarnings(self.config)
        if sentence := why_it_waits(self.config):
            logger.warning(sentence)
        try:
            super().setup(config)
        except IndexError:
            # RLlib asks the first env runner there is for the spaces.
            if self.env_runner_group is not None or not self.config.num_env_runners:
                raise
            raise why_none_starts(self.config) from None
        check_spaces(
            self.config,
            self.spaces,
            recurrent_modules(self.learner_group),
            together=run_together(self.learner_group),
        )
        warn_of_unknown_modules(self.config, self.spaces)
        if self.eval_env_runner_group is None:
            warn_if_out_of_reach(self.config, self.evaluation_config)

    def __repr__(self) -> str:
        """Names the algorithm and its env, also while it is being built.

        Ray shows this in the errors of a Tune trial; RLlib's own raises before there is a config,
        and so hides what was wrong with it.
        """
        return f"{type(self).__name__}(env={getattr(self.config, 'env', None)!r})"

    @override(Algorithm)
    def step(self) -> ResultDict:
        """Runs one iteration of training, and of evaluation if it is due."""
        with threads_of_main_process(self.config):
            # Here, because training and evaluation may run in parallel from now on; and anew,
            # because the last iteration may have been interrupted, or somebody has changed what
            # the learners hold.
            self._weights_of_step = self._sync_weights()
            self._evaluation_s = None
            result = super().step()
        if self._evaluation_s is not None:
            result[TIMERS][EVALUATION_TIMER] = self._evaluation_s
        for sentence in self._warnings.of(result, self.spaces):
            diagnosis_logger.warning(sentence)
        return result

    def _begin_next_group(self, weights: Weights) -> None:
        with_connectors = dataclasses.replace(weights, connectors=self._connectors_after_group)
        self._groups.begin_ahead(self._run_seed.value, with_connectors)

    def _group_is_done(self) -> None:
        """Takes note of it, and takes the weights for the next one."""
        # At once: whatever interrupts what follows, the group has been trained on.
        self._groups.take_note()
        self._policy.connectors.set_states(self._connectors_after_group)
        self._recorder.commit()
        self._sync_weights()
        self._recorder.write()

    def _sync_weights(self) -> Weights:
        """Takes the learners' weights, for the next group and for the local env runner."""
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            return self._policy.take()

    @override(Algorithm)
    def get_module(self, module_id: ModuleID = DEFAULT_MODULE_ID) -> RLModule | None:
        """Returns the policy after the last update, or None if there is no such module."""
        if self.env_runner is not None:
            return super().get_module(module_id)
        # RLlib would ask a remote env runner, which has the weights of its last share.
        return self._policy.build_module(module_id)

    def _sample_group(self, weights: Weights) -> Sequence[EpisodeType]:
        # The seconds of this iteration; RLlib's default is a mean over hundreds of them.
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER), reduce="sum"):
            try:
                group = self._groups.next(self._run_seed.value, weights)
            except SamplingError as error:
                raise self._with_checkpoint(error) from error
            connectors, before = self._policy.connectors, group.weights.connectors
            # Of all that was sampled: a share may hold episodes that stay and others. In place once
            # it has been learned from: until then the same group may be sampled again.
            self._connectors_after_group = (
                connectors.merged(before, group.connectors)
                if self.config.merge_env_runner_states
                else connectors.get_states()
            )
        self.metrics.aggregate(group.metrics, key=(ENV_RUNNER_RESULTS,))
        if self.config.max_extra_starts:
            key = (ENV_RUNNER_RESULTS, NUM_EXTRA_STARTS)
            self.metrics.log_value(key, group.num_extra_starts, reduce="sum")
        self._recorder.take(group.episodes)
        return group.episodes

    @override(Algorithm)
    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Brings lost env runners back, with the modules and the mapping that are in force."""
        manager = env_runner_group._worker_manager
        with self._restoring:
            lost = [index for index in manager.actor_ids() if not manager.is_actor_healthy(index)]
            # First in the line of what RLlib asks them, such as to take weights, which may not fit
            # the modules that they are made with. Not waited for: they may still be gone.
            self._policy.make_changes(env_runner_group, lost, timeout_seconds=0.0)
            restored: list[int] = super().restore_env_runners(env_runner_group)
            # RLlib has given them all modules of the local env runner.
            timeout_seconds = self.config.env_runner_restore_timeout_s
            self._policy.make_changes(env_runner_group, restored, timeout_seconds)
        return restored

    def _restore(self, env_runner_group: EnvRunnerGroup) -> None:
        """Brings lost env runners back and tells callbacks, as RLlib does between iterations."""
        restored = self.restore_env_runners(env_runner_group)
        if restored:
            self._tell_of_new(env_runner_group, restored)

    def _tell_of_new(self, env_runner_group: EnvRunnerGroup, indices: list[int]) -> None:
        for_training = env_runner_group is self.env_runner_group
        self._make_on_env_runners_recreated_callbacks(
            config=self.config if for_training else self.evaluation_config,
            env_runner_group=env_runner_group,
            restored_env_runner_indices=indices,
        )

    def _with_checkpoint(self, error: SamplingError) -> SamplingError:
        checkpoint = self.save_to_path(pathlib.Path(self.logdir) / "before_sampling_error")
        return SamplingError(f"{error}\nThe run as it was: {checkpoint}")

    @override(Algorithm)
    def evaluate(
        self, parallel_train_future: concurrent.futures.Future[Any] | None = None
    ) -> ResultDict:
        """Evaluates the current policy, as `GPGConfig.evaluation` says.

        Args:
            parallel_train_future: The training iteration that runs in parallel, if there is one.

        Raises:
            SamplingError: If the episodes asked for couldn't be completed; after a checkpoint.
            ValueError: If the env runners for training are to do it, but can't do it as the
                evaluation config says.
        """
        begun = time.monotonic()
        if self.eval_env_runner_group is None:
            refuse_if_out_of_reach(self.config, self.evaluation_config)
        # Beside training it is the policy of the step's beginning, however far training has come.
        if parallel_train_future is not None:
            self._evaluated_weights = self._weights_of_step
        else:
            with threads_of_main_process(self.config):
                self._evaluated_weights = self._sync_weights()
        by_shares = self.config.custom_evaluation_function is evaluate_episodes
        if self.config.is_multi_agent and self.eval_env_runner_group and not by_shares:
            # With shares, the changes travel.
            changes = self._policy.evaluation_changes
            self.eval_env_runner_group.foreach_env_runner(
                lambda runner: runner.make_changes(changes),
                timeout_seconds=self.config.evaluation_sample_timeout_s,
            )
        kept: AbstractContextManager[None] = nullcontext()
        if self.eval_env_runner_group is None:
            # Those for training do it: what their connectors remember is to stay as it is.
            kept = self._policy.connectors.beginning_with(self._evaluated_weights.connectors)
        try:
            with threads_of_main_process(self.config), kept:
                result: ResultDict = super().evaluate(parallel_train_future)
        except SamplingError as error:
            if parallel_train_future is not None:
                # What it changes is about to be saved.
                concurrent.futures.wait([parallel_train_future])
            raise self._with_checkpoint(error) from error
        self._evaluation_s = time.monotonic() - begun
        return result

    def evaluate_episodes(self, eval_env_runner_group: EnvRunnerGroup | None) -> None:
        """Runs exactly `evaluation_duration` whole episodes, by the same means as a group.

        Args:
            eval_env_runner_group: The env runners for evaluation. None: those for training.
        """
        env_runner_group, weights = self.env_runner_group, self._evaluated_weights
        if eval_env_runner_group is not None:
            env_runner_group = eval_env_runner_group
            weights = self._policy.for_evaluation(weights)
        else:
            self._groups.wait()
        shares = evaluation_shares(
            self.config,
            self.evaluation_config,
            self._run_seed.value,
            self._num_evaluations,
            num_env_runners=env_runner_group.num_remote_env_runners(),
        )
        group = gather(
            env_runner_group,
            shares,
            weights,
            config=self.evaluation_config,
            restore=lambda: self._restore(env_runner_group),
            tell_of_new_env=lambda runner: self._tell_of_new(env_runner_group, [runner]),
        )
        self.metrics.aggregate(group.metrics, key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        self._num_evaluations += 1

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns the algorithm's state, with what the seeds of the next group derive from."""
        return {
            **super().get_state(*args, **kwargs),
            _RUN_SEED: self._run_seed.get_state(),
            _NUM_GROUPS: self._groups.number,
            _NUM_EVALUATIONS: self._num_evaluations,
            _CONNECTOR_STATES: self._policy.connectors.get_states(),
            _STANDING: [standing and standing.get_state() for standing in self._groups.standing],
            _SAMPLED_AHEAD_WITH: self._policy.state_of(self._groups.weights_of_next),
        }

    @override(Algorithm)
    def set_state(self, state: StateDict) -> None:
        """Restores the algorithm's state; the next group is sampled with the restored weights.

        It is the group that the run which saved the state went on with, if the config names the
        seed of that run; see `RunSeed.going_on`.
        """
        super().set_state(state)
        self._policy.forget()
        if _RUN_SEED in state:
            self._run_seed = self._run_seed.going_on(RunSeed.from_state(state[_RUN_SEED]))
        self._num_evaluations = state.get(_NUM_EVALUATIONS, self._num_evaluations)
        self._restored_connectors = state.get(_CONNECTOR_STATES, {})
        self._policy.connectors.set_states(self._restored_connectors)
        standing = self._groups.standing
        if _STANDING in state:
            standing = tuple(s and Standing.from_state(s) for s in state[_STANDING])
        ahead = state.get(_SAMPLED_AHEAD_WITH) if self.config.sample_ahead else None
        self._groups.go_on(
            state.get(_NUM_GROUPS, self._groups.number),
            standing,
            ahead and self._policy.of_state(ahead),
        )

    @override(Algorithm)
    def save_to_path(self, path: Any = None, **kwargs: Any) -> str:
        """Saves a checkpoint: whole, or not at all; one that is there already is replaced.

        Args:
            path: The folder. Default None: a new one among the temporary files.
            **kwargs: The keyword arguments of RLlib's `Checkpointable.save_to_path`.

        Raises:
            OSError: If the folder can't be written, or a remote learner can't save its part. What
                was in a local folder before is as it was.
        """
        is_local = kwargs.get("filesystem") is None and "://" not in str(path)
        if path is None or not is_local:
            return self._save(path, **kwargs)
        folder = pathlib.Path(path).absolute()
        with saved_whole(folder) as unfinished:
            self._save(unfinished, **kwargs)
        return folder.as_posix()

    def _save(self, path: Any, **kwargs: Any) -> str:
        with msgpack_as_it_is():
            saved_to: str = super().save_to_path(path, **kwargs)
        if not self.learner_group.is_local and kwargs.get("state") is None:
            check_saved(saved_to, kwargs.get("filesystem"))
        return saved_to

    def _name_modules_that_are_lost(self, path: Any, filesystem: Any) -> None:
        (answer, *_) = self.learner_group.foreach_learner(lambda learner: {*learner.module.keys()})
        if lost := sorted(modules_in(path, filesystem) - answer.get()):
            logger.warning(
                f"The checkpoint {path} has modules that this algorithm hasn't, {', '.join(lost)}: "
                "they aren't restored, and agents are mapped as they are here. "
                "`GPG.from_checkpoint` builds an algorithm with all of them; or add them with "
                "`add_module` first."
            )

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint, or one component of it; the next group sees its weights.

        Raises:
            ValueError: If the checkpoint isn't whole. Nothing of it is restored then.
        """
        component, filesystem = kwargs.get("component"), kwargs.get("filesystem")
        check_checkpoint(path, component=component, filesystem=filesystem)
        if component is None:
            self._name_modules_that_are_lost(path, filesystem)
        # Of the weights before; of a whole checkpoint, `set_state` says what comes in its place.
        self._groups.drop()
        self._restored_connectors = {}
        with msgpack_as_it_is():
            super().restore_from_path(path, *args, **kwargs)
        # Without a local env runner RLlib has restored them once more, pieces of one class all from
        # the state of the last.
        self._policy.connectors.set_states(self._restored_connectors)
        self._policy.forget()

    @override(Algorithm)
    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Refuses to go on with another config, which no algorithm of RLlib does.

        Raises:
            NotImplementedError: Always. With RLlib's plain False, Ray Tune waits for ever.
        """
        raise NotImplementedError(
            "GPG can't take another config in place: remove `reuse_actors=True` from the "
            "`tune.TuneConfig`. Population based training works without it."
        )

    @override(Algorithm)
    def cleanup(self) -> None:
        """Ends all actors, and the recording of episodes if there is one."""
        try:
            self._groups.drop()
            self._recorder.close()
        finally:
            super().cleanup()

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> Self:
        """Builds an algorithm with the config and the state of a checkpoint.

        Trust it like code: RLlib unpickles it.

        Args:
            path: The folder of the checkpoint, or a `ray.tune.Checkpoint`.
            filesystem: The PyArrow filesystem of `path`. Default None: follows from `path`.
            **kwargs: The keyword arguments of RLlib's `Algorithm.from_checkpoint`.

        Raises:
            ValueError: If the checkpoint isn't whole. Nothing is built then.
            ImportError: If it names a module, that of an env for instance, that isn't known here.
        """
        path = path.to_directory() if isinstance(path, Checkpoint) else path
        with_config = "config" in kwargs
        check_checkpoint(path, filesystem=filesystem, to_build=True, with_config=with_config)
        return super().from_checkpoint(path, filesystem, **kwargs)

    @override(Algorithm)
    def add_module(
        self, module_id: ModuleID, module_spec: RLModuleSpec, **kwargs: Any
    ) -> MultiRLModuleSpec:
        """Adds a module; the agents mapped to it are a group from the next iteration on.

        Raises:
            ValueError: If the module can't have settings that `config_overrides` gives it, or that
                all have. Nothing is added then.
        """
        check_overrides(self.config, module_id, kwargs.get("config_overrides") or {})
        check_new_module(self.config, self.spaces, module_id, module_spec, kwargs)
        self._groups.drop()
        spec = super().add_module(module_id, module_spec, **kwargs)
        for each_id, each in spec.rl_module_specs.items():
            self.spaces[each_id] = (each.observation_space, each.action_space)
        self._policy.add_module(module_id, module_spec, kwargs)
        self._warnings.add_module(module_id, kwargs.get("config_overrides") or {})
        return spec

    @override(Algorithm)
    def remove_module(self, module_id: ModuleID, **kwargs: Any) -> MultiRLModuleSpec | None:
        """Removes a module."""
        self._groups.drop()
        spec = super().remove_module(module_id, **kwargs)
        self._policy.remove_module(module_id, kwargs)
        return spec

"""`GPGTorchLearner`: the loss of a policy without a critic, by default PPO's clipped one."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_CURR_ENTROPY_COEFF_KEY,
    LEARNER_RESULTS_CURR_KL_COEFF_KEY,
    LEARNER_RESULTS_KL_KEY,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import ModuleID, ResultDict, StateDict
from torch import Tensor

from rllib_gpg.learning.lr_schedulers import lr_schedulers_state, restored_lr_schedulers
from rllib_gpg.learning.pipeline import forget_module, get_pieces_state, set_pieces_state
from rllib_gpg.learning.reference import References, needs_reference
from rllib_gpg.learning.rl_module import ObservationMoments
from rllib_gpg.learning.surrogates import (
    reference_kl,
    resolve_surrogate,
    step_ratio,
    trajectory_ratio,
)
from rllib_gpg.learning.trajectories import LOSS_WEIGHTS, TRAJECTORIES
from rllib_gpg.learning.update_loop import UpdateLoop
from rllib_gpg.patches import msgpack_as_it_is
from rllib_gpg.seeding import seeded_globally

logger = logging.getLogger("ray.rllib")

CLIP_FRACTION_KEY = "clip_fraction"
REFERENCE_KL_KEY = "reference_kl"

_KL_COEFFS = "kl_coeffs"
_FIRST_KL_COEFFS = "first_kl_coeffs"
_REFERENCES = "references"
_NUM_UPDATES = "num_updates"
_TRAINS_OTHERS = "trains_other_policies"
_SCHEDULE_STEPS = "schedule_steps"
_CONNECTOR_PIECES = "connector_pieces"
_LR_SCHEDULERS = "lr_schedulers"


class GPGTorchLearner(UpdateLoop):
    """Moves the policy with PPO's clipped loss, on batches with an advantages column.

    The loss of a step is `-surrogate - entropy_coeff * entropy`, plus `kl_coeff * KL(old, new)`
    with `use_kl_loss`, plus `reference_kl_coeff` times an estimate of KL(new, reference). The loss
    of a minibatch is the mean over its steps, each as heavy as `loss_averaging` says. To change it,
    subclass and override `compute_loss_for_module`.

    Loss statistics are logged once per update, as their mean over the last epoch, so over every
    step of the group: `entropy`, `mean_kl_loss` (0 without `use_kl_loss`), `clip_fraction`, with a
    reference `reference_kl`, and `policy_loss`, in which alone steps are as heavy as in the loss.

    With several learners, a minibatch is what all of them take at a time: losses, statistics and
    what follows from these (the KL coefficient) are means over its steps on all learners.
    """

    @override(Learner)
    def build(self) -> None:
        """Builds the module, its optimizers, and per module the coefficients of the loss."""
        super().build()
        self._entropy_coeff_schedulers: dict[ModuleID, Scheduler] = {}
        # The env steps that schedules have come to.
        self._schedule_steps = 0
        # RLlib has rounded the first one of a schedule to float32, but none of the later ones.
        self._set_learning_rates()
        self._kl_coeffs: dict[ModuleID, float] = {}
        # As long as nobody has set others at the learners.
        self._policies_to_train_at_first = self.config.policies_to_train
        self._num_updates = 0
        self._references = References(self.config.reference)
        for module_id, module in self.module.items():
            self._prepare_reference(module_id, module.unwrapped())
        # Per module those of each minibatch of the last epoch.
        self._loss_stats: dict[ModuleID, list[dict[str, Tensor]]] = defaultdict(list)

    def entropy_coeff(self, module_id: ModuleID) -> float:
        """Returns the entropy coefficient now in force: `entropy_coeff`, a value or a schedule."""
        return float(self._entropy_coeff_scheduler(module_id).get_current_value())

    def kl_coeff(self, module_id: ModuleID) -> float:
        """Returns the KL coefficient now in force; it begins as the config's `kl_coeff`."""
        return self._kl_coeffs.setdefault(module_id, self._first_kl_coeff(module_id))

    def _first_kl_coeff(self, module_id: ModuleID) -> float:
        return self.config.get_config_for_module(module_id).kl_coeff

    @override(Learner)
    def should_module_be_updated(
        self, module_id: ModuleID, multi_agent_batch: MultiAgentBatch | None = None
    ) -> bool:
        """Says yes to all that is in a batch: `GPG` has left out what isn't to be trained."""
        return multi_agent_batch is not None or super().should_module_be_updated(module_id)

    @override(TorchLearner)
    def compute_loss_for_module(
        self,
        *,
        module_id: ModuleID,
        config: AlgorithmConfig,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """Computes the loss of one minibatch (equation 2, negated, plus entropy and KL terms)."""
        module = self.module[module_id].unwrapped()
        mean = self._mean_over_steps(batch)
        new = module.get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        # ratio = pi(a|s) / pi_old(a|s)
        logp = new.logp(batch[Columns.ACTIONS])
        ratio = ratios(logp - batch[Columns.ACTION_LOGP], batch)
        surrogate = resolve_surrogate(config.surrogate, config.clip_param)
        policy_loss = -mean(weighed(surrogate(ratio, batch[Columns.ADVANTAGES]), batch))
        loss, of_steps = policy_loss, {}
        if entropy_coeff := self.entropy_coeff(module_id):
            of_steps[ENTROPY_KEY] = new.entropy()
            loss = loss - entropy_coeff * mean(weighed(of_steps[ENTROPY_KEY], batch))
        if config.use_kl_loss:
            old = module.get_exploration_action_dist_cls().from_logits(
                batch[Columns.ACTION_DIST_INPUTS]
            )
            of_steps[LEARNER_RESULTS_KL_KEY] = kl = old.kl(new)
            loss = loss + self.kl_coeff(module_id) * mean(weighed(kl, batch))
        if config.reference_kl_coeff > 0.0:
            reference_logp = self._references.logp(module_id, module, batch)
            of_steps[REFERENCE_KL_KEY] = kl = reference_kl(reference_logp - logp)
            loss = loss + config.reference_kl_coeff * mean(weighed(kl, batch))
        if self.in_last_epoch:
            with torch.no_grad():
                of_steps[CLIP_FRACTION_KEY] = surrogate.is_clipped(ratio)
                if ENTROPY_KEY not in of_steps:
                    of_steps[ENTROPY_KEY] = new.entropy()
                stats = {name: mean(per_step) for name, per_step in of_steps.items()}
            # Without the graph that it comes from, of which there is one per minibatch.
            stats = {POLICY_LOSS_KEY: policy_loss.detach(), **stats}
            self._loss_stats[module_id].append(stats)
        return loss

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Moves the schedules and the KL coefficients on, and logs the loss statistics."""
        super().after_gradient_based_update(timesteps=timesteps)
        self._schedule_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        self._num_updates += 1
        # Of all modules: a loss of one's own may use them, and a module may have had no steps.
        for module_id, module in self.module.items():
            self._entropy_coeff_scheduler(module_id).update(timestep=self._schedule_steps)
            refresh = self.config.get_config_for_module(module_id).reference_refresh
            if refresh and self._num_updates % refresh == 0:
                self._references.refresh(module_id, module.unwrapped())
        for module_id, rows in self._loss_stats.items():
            config = self.config.get_config_for_module(module_id)
            stats = {LEARNER_RESULTS_KL_KEY: 0.0, **self._means(rows)}
            stats[LEARNER_RESULTS_CURR_ENTROPY_COEFF_KEY] = self.entropy_coeff(module_id)
            if config.use_kl_loss:
                self._adapt_kl_coeff(module_id, config, stats[LEARNER_RESULTS_KL_KEY])
                stats[LEARNER_RESULTS_CURR_KL_COEFF_KEY] = self.kl_coeff(module_id)
            self.metrics.log_dict(stats, key=module_id, window=1)
        self._loss_stats.clear()

    @override(Learner)
    def add_module(self, *, module_id: ModuleID, **kwargs: Any) -> MultiRLModuleSpec:
        """Begins schedules of the module's settings where those of the others are."""
        spec = super().add_module(module_id=module_id, **kwargs)
        self._set_learning_rates()
        return spec

    @override(Learner)
    def remove_module(self, module_id: ModuleID, **kwargs: Any) -> MultiRLModuleSpec:
        """Forgets the coefficients of the module, and what connector pieces remember of it."""
        spec = super().remove_module(module_id, **kwargs)
        forget_module(self._learner_connector, module_id)
        self._entropy_coeff_schedulers.pop(module_id, None)
        self._kl_coeffs.pop(module_id, None)
        self._references.forget(module_id)
        # RLlib keeps both: another module of that name would have the settings of this one.
        self.config._per_module_overrides.pop(module_id, None)
        self._lr_schedulers.pop(module_id, None)
        return spec

    @override(Learner)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> StateDict:
        """Returns RLlib's learner state, and what RLlib leaves out.

        That is how far the coefficients of the loss have come, and what connector pieces remember.
        """
        state = {
            **super().get_state(components, not_components=not_components, **kwargs),
            _KL_COEFFS: dict(self._kl_coeffs),
            _FIRST_KL_COEFFS: {mid: self._first_kl_coeff(mid) for mid in self._kl_coeffs},
            _SCHEDULE_STEPS: self._schedule_steps,
            _NUM_UPDATES: self._num_updates,
            _TRAINS_OTHERS: self.config.policies_to_train is not self._policies_to_train_at_first,
        }
        # With the weights alone, as after every update, it may be a long way to travel for nothing.
        if self._check_component(_CONNECTOR_PIECES, components, not_components):
            state[_CONNECTOR_PIECES] = get_pieces_state(self._learner_connector)
            state[_REFERENCES] = self._references.get_state()
            state[_LR_SCHEDULERS] = lr_schedulers_state(self._lr_schedulers)
        return state

    @override(Learner)
    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned, also weights older than those in place.

        Of schedules, it is how far they have come that is restored. Their values are those of this
        learner's config: where it differs from the saved one, as in population based training, its
        `lr` and `entropy_coeff` are in force, and `kl_coeff` begins anew.
        """
        seq_no = state.get(WEIGHTS_SEQ_NO, self._weights_seq_no)
        # RLlib ignores weights older than its own.
        self._weights_seq_no: int = -1
        policies_to_train = self.config.policies_to_train
        super().set_state(state)
        self._weights_seq_no = seq_no
        if not state.get(_TRAINS_OTHERS, False):
            # RLlib has put those of the saved config in their place.
            self.config.multi_agent(policies_to_train=policies_to_train)
        first = state.get(_FIRST_KL_COEFFS, {})
        self._kl_coeffs = {
            module_id: coeff
            for module_id, coeff in state.get(_KL_COEFFS, self._kl_coeffs).items()
            # Begun from another one, it says nothing here.
            if first.get(module_id) in (None, self._first_kl_coeff(module_id))
        }
        self._schedule_steps = state.get(_SCHEDULE_STEPS, self._schedule_steps)
        self._num_updates = state.get(_NUM_UPDATES, self._num_updates)
        if _REFERENCES in state:
            self._references.set_state(state[_REFERENCES], self.module)
        set_pieces_state(self._learner_connector, state.get(_CONNECTOR_PIECES, {}))
        self._entropy_coeff_schedulers.clear()
        # The optimizer's state has brought along the learning rate it was saved with.
        self._set_learning_rates()
        self._set_lr_schedulers(state.get(_LR_SCHEDULERS, {}))

    @override(Learner)
    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        """Saves a checkpoint; a remote learner speaks with others by the same msgpack after it."""
        with msgpack_as_it_is():
            path: str = super().save_to_path(*args, **kwargs)
        return path

    @override(Learner)
    def restore_from_path(self, *args: Any, **kwargs: Any) -> None:
        """Restores a checkpoint, likewise."""
        with msgpack_as_it_is():
            super().restore_from_path(*args, **kwargs)

    @override(TorchLearner)
    def update(
        self,
        *args: Any,
        seed: int | None = None,
        observation_moments: Mapping[ModuleID, ObservationMoments] | None = None,
        **kwargs: Any,
    ) -> ResultDict:
        """Runs RLlib's `Learner.update`.

        Args:
            *args: Its positional arguments.
            seed: The seed of what is random in it: shuffling between epochs, dropout. RLlib draws
                these from global generators, whose state is in no checkpoint. None: not seeded.
            observation_moments: Those of the whole group, not of this learner's shard, for each
                module that normalises observations.
            **kwargs: Its keyword arguments.
        """
        # An interrupted update leaves its own.
        self._loss_stats.clear()
        with contextlib.nullcontext() if seed is None else seeded_globally(seed, self._device):
            results = super().update(*args, **kwargs)
        # After the gradient steps, or the first ratio of the group wouldn't be 1.
        for module_id, moments in (observation_moments or {}).items():
            self.module[module_id].unwrapped().observation_normalizer.update(moments)
        return results

    def _prepare_reference(self, module_id: ModuleID, module: TorchRLModule) -> None:
        """Refuses a reference that can't be, before it costs a group; loads one that is named."""
        if needs_reference(self.config, module_id):
            self._references.prepare(module_id, module)

    def missing_reference(self) -> ValueError | None:
        """Returns the error of a `reference` that isn't there, and is needed."""
        return self._references.what_is_missing()

    def _means(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        """Returns the means of statistics, over minibatches and learners."""
        sums = torch.stack([torch.stack(list(row.values())) for row in rows]).detach()
        means = self._mean_over_learners(sums.mean(0)).tolist()
        return dict(zip(rows[0], means, strict=True))

    def _mean_over_steps(self, batch: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """Returns the mean over the steps of a minibatch, to be averaged over learners.

        All learners must call this; with what comes of it there is nothing to wait for.
        """
        # Zero-padded steps (recurrent modules) count nowhere.
        mask = batch.get(Columns.LOSS_MASK)
        weight: Tensor | float = 1.0
        if self.config.num_learners > 1:
            num_steps = batch[Columns.ADVANTAGES].numel() if mask is None else mask.sum()
            num_steps = torch.as_tensor(num_steps, dtype=torch.float32, device=self._device)
            # The mean over the learners, which DDP takes of the gradients, makes this the mean over
            # the steps of all learners. These differ in number by a step, or more in padded
            # sequences.
            weight = num_steps / self._mean_over_learners(num_steps)

        def mean(per_step: Tensor) -> Tensor:
            mean = (per_step if mask is None else per_step[mask]).mean()
            return mean if self.config.num_learners <= 1 else weight * mean

        return mean

    def _mean_over_learners(self, values: Tensor) -> Tensor:
        """Returns the mean of what each learner calls this with; all of them must."""
        if self.config.num_learners > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
            values /= torch.distributed.get_world_size()
        return values

    @override(TorchLearner)
    def _convert_batch_type(self, batch: MultiAgentBatch, **kwargs: Any) -> MultiAgentBatch:
        """Moves a batch to the learner's device; RLlib's own forgets that sequences are padded."""
        converted = super()._convert_batch_type(batch, **kwargs)
        for module_id, module_batch in batch.policy_batches.items():
            converted.policy_batches[module_id].zero_padded = module_batch.zero_padded
        return converted

    def _set_learning_rates(self) -> None:
        """Puts the learning rates in force that the config has for the env steps so far."""
        if self.config._torch_lr_scheduler_classes is not None:
            return  # They move on from what the optimizer has.
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=self._schedule_steps))

    def _set_lr_schedulers(self, state: StateDict) -> None:
        """Goes on with PyTorch's schedulers; RLlib makes them with the first gradient step."""
        if self._lr_scheduler_classes is None:
            return
        # Of the modules that are there, as RLlib does.
        for module_id in state.keys() & self.module.keys():
            classes = self._lr_scheduler_classes
            classes = classes[module_id] if isinstance(classes, dict) else classes
            self._lr_schedulers[module_id] = {
                name: restored_lr_schedulers(self.get_optimizer(module_id, name), classes, states)
                for name, states in state[module_id].items()
            }

    def _entropy_coeff_scheduler(self, module_id: ModuleID) -> Scheduler:
        if module_id not in self._entropy_coeff_schedulers:
            scheduler = Scheduler(
                fixed_value_or_schedule=self.config.get_config_for_module(module_id).entropy_coeff,
                framework=self.framework,
                device=self._device,
            )
            scheduler.update(timestep=self._schedule_steps)
            self._entropy_coeff_schedulers[module_id] = scheduler
        return self._entropy_coeff_schedulers[module_id]

    def _adapt_kl_coeff(self, module_id: ModuleID, config: AlgorithmConfig, kl: float) -> None:
        """Steers KL(old, new) towards `kl_target`, by the factors of RLlib's PPO."""
        if not math.isfinite(kl):
            logger.warning(
                f"The KL divergence of module {module_id} is {kl}: some action has next to no "
                "probability left. Set `use_kl_loss=False`, or raise `entropy_coeff`."
            )
        elif kl > 2.0 * config.kl_target:
            self._kl_coeffs[module_id] = self.kl_coeff(module_id) * 1.5
        elif kl < 0.5 * config.kl_target:
            self._kl_coeffs[module_id] = self.kl_coeff(module_id) * 0.5


def ratios(log_ratio: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns pi(a|s) / pi_old(a|s) of each step, or of its trajectory if the batch knows that."""
    if TRAJECTORIES not in batch:
        return step_ratio(log_ratio)
    mask = batch.get(Columns.LOSS_MASK)
    if mask is None:
        return trajectory_ratio(log_ratio, batch[TRAJECTORIES])
    ratio = torch.ones_like(log_ratio)
    ratio[mask] = trajectory_ratio(log_ratio[mask], batch[TRAJECTORIES][mask])
    return ratio


def weighed(per_step: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns what each step adds to the loss, as heavy as `loss_averaging` makes it."""
    return per_step * batch[LOSS_WEIGHTS] if LOSS_WEIGHTS in batch else per_step

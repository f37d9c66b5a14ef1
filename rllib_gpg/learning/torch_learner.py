"""`GPGTorchLearner`: PPO's clipped loss without the critic's part."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from ray.rllib.algorithms.ppo.ppo import (
    LEARNER_RESULTS_CURR_ENTROPY_COEFF_KEY,
    LEARNER_RESULTS_CURR_KL_COEFF_KEY,
    LEARNER_RESULTS_KL_KEY,
)
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY, Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.typing import ModuleID, StateDict
from torch import Tensor

from rllib_gpg.learning.rl_module import ObservationMoments
from rllib_gpg.learning.surrogates import clipped_surrogate, is_clipped

if TYPE_CHECKING:
    from rllib_gpg.config import GPGConfig

logger = logging.getLogger("ray.rllib")

CLIP_FRACTION_KEY = "clip_fraction"

# In the order in which `compute_loss_for_module` stacks them.
_LOSS_STATS = (POLICY_LOSS_KEY, ENTROPY_KEY, LEARNER_RESULTS_KL_KEY, CLIP_FRACTION_KEY)
_KL_COEFFS = "kl_coeffs"
_SCHEDULE_STEPS = "schedule_steps"


class GPGTorchLearner(TorchLearner):
    """Moves the policy with PPO's clipped loss, on batches with an advantages column.

    The loss of a step is `-surrogate - entropy_coeff * entropy`, plus `kl_coeff * KL(old, new)`
    with `use_kl_loss`; the loss of a minibatch is the mean over its steps. To change it, subclass
    and override `compute_loss_for_module`.

    Loss statistics are logged once per update, as their mean over the last epoch, so over every
    step of the group: `policy_loss`, `entropy`, `mean_kl_loss` (0 without `use_kl_loss`) and
    `clip_fraction`.
    """

    @override(Learner)
    def build(self) -> None:
        """Builds the module, its optimizers, and per module the coefficients of the loss."""
        super().build()
        self._entropy_coeff_schedulers: dict[ModuleID, Scheduler] = {}
        # The env steps that schedules have come to.
        self._schedule_steps = 0
        self._kl_coeffs: dict[ModuleID, float] = {}
        # Per module one row of `_LOSS_STATS` per minibatch of this update.
        self._loss_stats: dict[ModuleID, list[Tensor]] = defaultdict(list)

    def entropy_coeff(self, module_id: ModuleID) -> float:
        """Returns the entropy coefficient now in force: `entropy_coeff`, a value or a schedule."""
        return float(self._entropy_coeff_scheduler(module_id).get_current_value())

    def kl_coeff(self, module_id: ModuleID) -> float:
        """Returns the KL coefficient now in force; it begins as the config's `kl_coeff`."""
        if module_id not in self._kl_coeffs:
            self._kl_coeffs[module_id] = self.config.get_config_for_module(module_id).kl_coeff
        return self._kl_coeffs[module_id]

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
        config: GPGConfig,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """Computes the loss of one minibatch (equation 2, negated, plus entropy and KL terms)."""
        module = self.module[module_id].unwrapped()
        old = module.get_exploration_action_dist_cls().from_logits(
            batch[Columns.ACTION_DIST_INPUTS]
        )
        new = module.get_train_action_dist_cls().from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        # Zero-padded steps (recurrent modules) count nowhere.
        mask = batch.get(Columns.LOSS_MASK)

        def mean(per_step: Tensor) -> Tensor:
            return per_step.mean() if mask is None else per_step[mask].mean()

        # ratio = pi(a|s) / pi_old(a|s)
        ratio = torch.exp(new.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
        surrogate = clipped_surrogate(ratio, batch[Columns.ADVANTAGES], config.clip_param)
        policy_loss = -mean(surrogate)
        entropy = mean(new.entropy())
        loss = policy_loss - self.entropy_coeff(module_id) * entropy
        kl = torch.zeros_like(policy_loss)
        if config.use_kl_loss:
            kl = mean(old.kl(new))
            loss = loss + self.kl_coeff(module_id) * kl

        with torch.no_grad():
            stats = (policy_loss, entropy, kl, mean(is_clipped(ratio, config.clip_param)))
            self._loss_stats[module_id].append(torch.stack(stats))
        return loss

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Moves the schedules and the KL coefficients on, and logs the loss statistics."""
        super().after_gradient_based_update(timesteps=timesteps)
        self._schedule_steps = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        for module_id, rows in self._loss_stats.items():
            config = self.config.get_config_for_module(module_id)
            last_epoch = torch.stack(rows[-math.ceil(len(rows) / config.num_epochs) :])
            stats = dict(zip(_LOSS_STATS, last_epoch.mean(0).tolist(), strict=True))
            self._entropy_coeff_scheduler(module_id).update(timestep=self._schedule_steps)
            stats[LEARNER_RESULTS_CURR_ENTROPY_COEFF_KEY] = self.entropy_coeff(module_id)
            if config.use_kl_loss:
                self._adapt_kl_coeff(module_id, config, stats[LEARNER_RESULTS_KL_KEY])
                stats[LEARNER_RESULTS_CURR_KL_COEFF_KEY] = self.kl_coeff(module_id)
            self.metrics.log_dict(stats, key=module_id, window=1)
        self._loss_stats.clear()

    def update_observation_statistics(self, moments: dict[ModuleID, ObservationMoments]) -> None:
        """Merges a group's observation moments into the modules' normalisers.

        Called after the group's gradient steps, or the first ratio of the group wouldn't be 1.

        Args:
            moments: The moments over the whole group, for each module with a normaliser.
        """
        for module_id, group in moments.items():
            self.module[module_id].unwrapped().observation_normalizer.update(group)

    @override(Learner)
    def remove_module(self, module_id: ModuleID, **kwargs: Any) -> MultiRLModuleSpec:
        """Forgets the coefficients of the module as well."""
        spec = super().remove_module(module_id, **kwargs)
        self._entropy_coeff_schedulers.pop(module_id, None)
        self._kl_coeffs.pop(module_id, None)
        return spec

    @override(Learner)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        """Returns RLlib's learner state, with how far the coefficients of the loss have come."""
        return {
            **super().get_state(*args, **kwargs),
            _KL_COEFFS: dict(self._kl_coeffs),
            _SCHEDULE_STEPS: self._schedule_steps,
        }

    @override(Learner)
    def set_state(self, state: StateDict) -> None:
        """Restores what `get_state` returned."""
        super().set_state(state)
        self._kl_coeffs = dict(state.get(_KL_COEFFS, self._kl_coeffs))
        self._schedule_steps = state.get(_SCHEDULE_STEPS, self._schedule_steps)
        self._entropy_coeff_schedulers.clear()

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

    def _adapt_kl_coeff(self, module_id: ModuleID, config: GPGConfig, kl: float) -> None:
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

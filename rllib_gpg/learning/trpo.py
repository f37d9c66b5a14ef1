"""`GPGTRPOTorchLearner`: one natural-gradient step per group, inside a bound on the KL divergence.

Schulman et al. 2015, "Trust Region Policy Optimization", https://arxiv.org/abs/1502.05477,
appendix C. Vectors [P] hold all trained parameters of one module, one after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo.ppo import LEARNER_RESULTS_KL_KEY
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.learner.learner import ENTROPY_KEY, POLICY_LOSS_KEY
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import ModuleID
from torch import Tensor

from rllib_gpg.learning.natural_gradient import (
    conjugate_gradient,
    flat,
    gradients,
    hessian_product,
    line_search,
)
from rllib_gpg.learning.surrogates import step_ratio
from rllib_gpg.learning.torch_learner import GPGTorchLearner, weighed
from rllib_gpg.nested import fresh

logger = logging.getLogger("ray.rllib")

STEP_SIZE_KEY = "trpo_step_size"
REJECTED_STEPS_KEY = "trpo_rejected_steps"


class GPGTRPOTorchLearner(GPGTorchLearner):
    """Moves the policy with one step of TRPO per group, on batches with an advantages column.

    The loss is `-mean(ratio * A) - entropy_coeff * mean(entropy)` over the steps of the whole
    group, each as heavy as `loss_averaging` says, and unclipped: what keeps the policy near the old
    one is `mean(KL(old, new)) <= max_kl`, where all steps count the same. To change the loss,
    subclass and override `compute_loss_for_module`, which is called once per trial of the line
    search as well. To keep parameters as they are, override `get_parameters` or freeze them
    (`requires_grad_(False)`).

    It needs the group as one minibatch, once: `num_epochs=1` and `num_minibatches=1`. There is no
    optimizer, and so no learning rate. A recurrent module on a GPU goes without cuDNN, which can't
    differentiate it twice. Each module of the batch must be a policy.

    Logged once per update, all as they are after the step: `policy_loss`, `entropy`,
    `mean_kl_loss`; `trpo_step_size`, by which the natural gradient was multiplied, 0 if there was
    no step; and `trpo_rejected_steps`, how many trials of the line search came before it.

    With several learners, gradients, products, losses and KL divergences are means over the steps
    of all of them, and each comes to the same decisions.
    """

    @override(TorchLearner)
    def configure_optimizers_for_module(
        self, module_id: ModuleID, config: AlgorithmConfig | None = None
    ) -> None:
        """Registers none: the step has a direction and a length of its own."""

    @override(GPGTorchLearner)
    def compute_loss_for_module(
        self,
        *,
        module_id: ModuleID,
        config: AlgorithmConfig,
        batch: dict[str, Any],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        """Computes the loss of the group: the surrogate and the entropy term, negated."""
        policy_loss, entropy = self._policy_loss_and_entropy(module_id, batch, fwd_out)
        mean = self._mean_over_steps(batch)
        return policy_loss - self.entropy_coeff(module_id) * mean(weighed(entropy, batch))

    def _policy_loss_and_entropy(
        self, module_id: ModuleID, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss without its entropy term, and the entropy of each step."""
        mean = self._mean_over_steps(batch)
        new = self._distribution(module_id, fwd_out[Columns.ACTION_DIST_INPUTS])
        # ratio = pi(a|s) / pi_old(a|s)
        ratio = step_ratio(new.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP])
        return -mean(weighed(ratio * batch[Columns.ADVANTAGES], batch)), new.entropy()

    @override(TorchLearner)
    def _uncompiled_update(self, batch: dict[ModuleID, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        """Makes one step with each module of the batch, which holds the whole group."""
        # cuDNN can't differentiate recurrent layers twice.
        with torch.backends.cudnn.flags(enabled=False):
            losses = {mid: self._step(mid, module_batch) for mid, module_batch in batch.items()}
        return {}, losses, {}

    def _step(self, module_id: ModuleID, batch: dict[str, Any]) -> Tensor:
        """Makes one step with one module, or none, and returns the loss after it, on all learners.

        Args:
            module_id: The module.
            batch: This learner's steps of the group, [B, ...] or [B, T, ...] with zero-padding.
        """
        # Not DDP's forward pass, whose backward pass would wait for the other learners.
        module = self.module[module_id].unwrapped()
        parameters = [p for p in self.get_parameters(module) if p.requires_grad]
        config, mean = self.config.get_config_for_module(module_id), self._mean_over_steps(batch)
        devices = [self._device] if self._device.type == "cuda" else []

        def forward() -> tuple[dict[str, Tensor], Tensor, Distribution]:
            # Dropout leaves out the same units each time.
            with torch.random.fork_rng(devices):
                fwd_out = module.forward_train(fresh(batch))
                loss = self.compute_loss_for_module(
                    module_id=module_id, config=config, batch=batch, fwd_out=fwd_out
                )
            return fwd_out, loss, self._distribution(module_id, fwd_out[Columns.ACTION_DIST_INPUTS])

        fwd_out, loss, new = forward()
        # As the module says, not the batch: so KL(old, new) and its gradient are 0 here.
        old_inputs = fwd_out[Columns.ACTION_DIST_INPUTS].detach()
        old = self._distribution(module_id, old_inputs)

        @torch.no_grad()
        def loss_and_kl() -> Tensor:
            _, loss, new = forward()
            return self._mean_over_learners(torch.stack([loss, mean(old.kl(new))]))

        step_size, num_rejected = 0.0, 0
        direction, full_size = self._direction(loss, mean(old.kl(new)), parameters, config)
        if full_size > 0.0:
            fraction, num_rejected = line_search(
                parameters, full_size * direction, loss_and_kl, max_kl=config.max_kl
            )
            step_size = fraction * full_size
        with torch.no_grad():
            fwd_out, loss, new = forward()
            policy_loss, entropy = self._policy_loss_and_entropy(module_id, batch, fwd_out)
            stats = {
                POLICY_LOSS_KEY: policy_loss,
                ENTROPY_KEY: mean(entropy),
                LEARNER_RESULTS_KL_KEY: mean(old.kl(new)),
                STEP_SIZE_KEY: policy_loss.new_tensor(step_size),
                REJECTED_STEPS_KEY: policy_loss.new_tensor(num_rejected),
            }
            self._loss_stats[module_id].append(stats)
            return self._mean_over_learners(loss)

    def _direction(
        self, loss: Tensor, kl: Tensor, parameters: Sequence[Tensor], config: AlgorithmConfig
    ) -> tuple[Tensor, float]:
        """Works out the step that should take KL(old, new) to `max_kl`, going by second order.

        Args:
            loss: That of this learner's steps.
            kl: The mean KL(old, new) over this learner's steps, at new = old.
            parameters: What to move.
            config: That of the module.

        Returns:
            The direction s [P] in float64 and the size of the step; 0 if there is nowhere to go.
        """
        if not (parameters and loss.requires_grad and kl.requires_grad):
            return torch.zeros(0), 0.0  # All is frozen.
        # g = -grad loss
        gradient = -self._mean_over_learners(flat(gradients(loss, parameters)).double())
        if not gradient.isfinite().all():
            logger.warning("No step: the gradient of the loss contains NaN or infinity.")
            return gradient, 0.0
        hessian_of_kl = hessian_product(kl, parameters)

        def fisher_product(vector: Tensor) -> Tensor:
            # F = Hessian of KL(old, new) at new = old, damped: F + d I
            product = self._mean_over_learners(hessian_of_kl(vector).double())
            return product + config.cg_damping * vector

        # s = F^-1 g
        direction = conjugate_gradient(fisher_product, gradient, config.cg_iterations)
        # KL(theta, theta + b s) ~ b^2 s.Fs / 2 = max_kl  =>  b = sqrt(2 max_kl / s.Fs)
        curvature = float(direction @ fisher_product(direction))
        # 0 without a gradient, as where all advantages are 0.
        return direction, (2.0 * config.max_kl / curvature) ** 0.5 if curvature > 0.0 else 0.0

    def _distribution(self, module_id: ModuleID, inputs: Tensor) -> Distribution:
        distribution = self.module[module_id].unwrapped().get_train_action_dist_cls()
        return distribution.from_logits(inputs)

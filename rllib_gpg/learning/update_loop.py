"""The update of a learner: RLlib's, without what a minibatch doesn't need.

On a small network most of the time of RLlib's update goes into copies of the batch, an object and
ten metrics per minibatch, and a few small operations per parameter. Here a minibatch costs little
more than its forward and backward pass. What a subclass may override, and when it is called, is as
in RLlib: `compute_losses`, `compute_gradients`, `postprocess_gradients`, `apply_gradients`, and
what these call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.metrics.ray_metrics import TimerAndPrometheusLogger
from ray.rllib.utils.typing import ModuleID, ResultDict
from torch import Tensor
from torch.optim import Optimizer

from rllib_gpg.learning.batch import Rows
from rllib_gpg.learning.minibatches import Minibatches

Gradients = dict[Tensor, Tensor | None]


class UpdateLoop(TorchLearner):
    """Runs the minibatches of an update; what their loss is, subclasses say."""

    @override(TorchLearner)
    def build(self) -> None:
        """Builds what RLlib builds."""
        # For statistics: those of the earlier epochs are of a policy on its way.
        self.in_last_epoch = True
        # What this learner has made of the group itself, to go through next.
        self.kept_batch: MultiAgentBatch | None = None
        # Those of the last minibatch, by the key of their metric.
        self._gradient_norms: dict[tuple[ModuleID, str], Tensor] = {}
        super().build()

    @override(TorchLearner)
    def configure_optimizers_for_module(
        self, module_id: ModuleID, config: AlgorithmConfig | None = None
    ) -> None:
        """Registers RLlib's Adam, which moves all parameters in one operation where it can."""
        config = config or self.config.get_config_for_module(module_id)
        parameters = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters, fused=_can_be_fused(parameters)),
            params=parameters,
            lr_or_lr_schedule=config.lr,
        )

    @override(TorchLearner)
    def update(
        self,
        batch: MultiAgentBatch | None = None,
        *,
        kept: bool = False,
        training_data: TrainingData | None = None,
        timesteps: dict[str, Any] | None = None,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        order: Rows | None = None,
        _no_metrics_reduce: bool = False,
        **kwargs: Any,
    ) -> ResultDict | None:
        """Goes through a batch in minibatches, with RLlib's order, hooks and metrics.

        Args:
            batch: The batch, or instead of it:
            kept: Whether it is the `kept_batch`, which is given up; or
            training_data: What RLlib's `LearnerGroup` sends.
            timesteps: How far schedules are to move on, for the hooks.
            num_total_minibatches: Over all epochs; 0: as many as epochs take.
            num_epochs: Passes over the batch.
            minibatch_size: In steps; None: the whole batch.
            shuffle_batch_per_epoch: Whether to shuffle after each pass.
            order: The order of each module's rows in the first pass. Default None: as they are.
            _no_metrics_reduce: Whether to leave the metrics in the logger.
            **kwargs: Other kinds of training data: `episodes`, `batch_refs`, ..
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        if kept:
            batch, self.kept_batch = self.kept_batch, None
        whole = self._whole_batch(training_data, batch, kwargs)
        self._weights_seq_no += 1
        self._compute_off_policyness(whole.policy_batches)
        minibatches = Minibatches(
            whole,
            size=minibatch_size,
            num_epochs=num_epochs,
            num_total=num_total_minibatches,
            shuffle=shuffle_batch_per_epoch,
            order=order,
        )
        losses: dict[ModuleID, Tensor] = {}
        with TimerAndPrometheusLogger(self._metrics_learner_inner_update):
            for minibatch in minibatches:
                self.in_last_epoch = minibatches.in_last_epoch
                _, losses, _ = self._update(minibatch)
        self._log_steps_trained(minibatches.num_steps, minibatches.count, whole.env_steps())
        # RLlib's `TOTAL_LOSS_KEY`, of the last minibatch.
        for module_id, loss in losses.items():
            self.metrics.log_value((module_id, self.TOTAL_LOSS_KEY), loss.detach(), window=1)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return None if _no_metrics_reduce else self.metrics.reduce()

    def _whole_batch(
        self, data: TrainingData | None, batch: MultiAgentBatch | None, kwargs: dict[str, Any]
    ) -> MultiAgentBatch:
        """Returns what is to be learned from, on this learner's device.

        Raises:
            ValueError: If there is nothing, or it is of modules that the learner doesn't have.
        """
        kinds = ("batches", "batch_refs", "episodes", "episodes_refs", "data_iterators")
        data = data or TrainingData(batch, **{kind: kwargs.get(kind) for kind in kinds})
        data.validate()
        data.solve_refs()
        if data.data_iterators is not None:
            raise ValueError("GPG learns from the groups it samples, not from `data_iterators`.")
        whole = self._make_batch_if_necessary(training_data=data)
        if unknown := set(whole.policy_batches) - set(self.module.keys()):
            raise ValueError(f"The batch is of modules that this learner doesn't have: {unknown}.")
        for module_id in list(whole.policy_batches):
            if not self.should_module_be_updated(module_id, whole):
                del whole.policy_batches[module_id]
        return whole

    @override(TorchLearner)
    def _uncompiled_update(self, batch: dict[ModuleID, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        """Makes one gradient step, as RLlib, which looks at the age of the weights each time."""
        fwd_out = self.module.forward_train(batch)
        losses = self.compute_losses(fwd_out=fwd_out, batch=batch)
        gradients = self.postprocess_gradients(self.compute_gradients(losses))
        self.apply_gradients(gradients)
        return fwd_out, losses, {}

    @override(Learner)
    def postprocess_gradients_for_module(
        self,
        *,
        module_id: ModuleID,
        config: AlgorithmConfig | None = None,
        module_gradients_dict: Gradients,
    ) -> Gradients:
        """Clips the gradients of a module, by their global norm in one operation for all."""
        config = config or self.config.get_config_for_module(module_id)
        gradients = [g for g in module_gradients_dict.values() if g is not None]
        optimizers = self.get_optimizers_for_module(module_id)
        is_plain = config.grad_clip_by == "global_norm" and len(optimizers) == 1 and gradients
        if not config.grad_clip or not is_plain:
            clipped = super().postprocess_gradients_for_module(
                module_id=module_id, config=config, module_gradients_dict=module_gradients_dict
            )
            # Where it has norms to log but nothing to clip, RLlib returns none.
            return clipped if config.grad_clip else module_gradients_dict
        # A scaler has multiplied the loss, and divides each gradient as it makes the step.
        scale = self._grad_scalers[module_id].get_scale() if self._grad_scalers is not None else 1.0
        norm = _norm(gradients) / scale
        # g <- g min(1, grad_clip / |g|)
        torch._foreach_mul_(gradients, (config.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        self._gradient_norms[module_id, f"gradients_{optimizers[0][0]}_global_norm"] = norm
        return module_gradients_dict

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict: Gradients) -> None:
        """Steps the optimizers. Gradients that aren't finite are left to RLlib.

        An optimizer whose gradient is 0 isn't stepped: where a group says nothing, as when all its
        returns are equal, Adam's momentum would move the policy all the same.
        """
        if self._grad_scalers is not None:  # They need a gradient, be it 0.
            super().apply_gradients(gradients_dict)
            return
        of_optimizers = self._gradients_of_optimizers(gradients_dict)
        norms = _norms(of_optimizers)
        moved = [optimizer for optimizer, norm in norms.items() if norm != 0.0]
        gradients = {p: g for optimizer in moved for p, g in of_optimizers[optimizer].items()}
        # Optimizers pass over what has none.
        for parameter in self._params.keys() - gradients.keys():
            self._params[parameter].grad = None
        # If a number isn't finite, the norm isn't either.
        are_finite = all(map(math.isfinite, norms.values()))
        if self._lr_scheduler_classes is not None or not are_finite:
            super().apply_gradients(gradients)
            return
        for parameter, gradient in gradients.items():
            self._params[parameter].grad = gradient
        for optimizer in moved:
            optimizer.step()

    def _gradients_of_optimizers(
        self, gradients_dict: Gradients
    ) -> dict[Optimizer, dict[Tensor, Tensor]]:
        """Returns what each optimizer steps by, of those that have something.

        RLlib postprocesses gradients module by module. Those of an optimizer that is registered
        for all modules together aren't among them, and are as the backward pass has left them; such
        an optimizer keeps the parameters of modules that have been removed.
        """

        def gradient(parameter: Tensor) -> Tensor | None:
            if parameter not in self._params:
                return None
            return gradients_dict.get(parameter, self._params[parameter].grad)

        found = {
            optimizer: {p: g for p in parameters if (g := gradient(p)) is not None}
            for optimizer, parameters in self._optimizer_parameters.items()
        }
        return {optimizer: gradients for optimizer, gradients in found.items() if gradients}

    def _log_steps_trained(
        self, num_steps: Counter[ModuleID], num_minibatches: int, num_env_steps: int
    ) -> None:
        """Logs what RLlib logs minibatch by minibatch."""
        log = self.metrics.log_value

        def log_total(key: str, name: str, name_of_lifetime: str, total: int) -> None:
            log((key, name), total, reduce="sum", with_throughput=key == ALL_MODULES)
            log((key, name_of_lifetime), total, reduce="lifetime_sum", with_throughput=True)

        module_steps = (NUM_MODULE_STEPS_TRAINED, NUM_MODULE_STEPS_TRAINED_LIFETIME)
        for module_id, steps in num_steps.items():
            log((module_id, WEIGHTS_SEQ_NO), self._weights_seq_no, window=1)
            mean = steps / num_minibatches
            log((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), mean, reduce="mean")
            log_total(module_id, *module_steps, steps)
        log_total(ALL_MODULES, *module_steps, num_steps.total())
        # RLlib counts the env steps of the whole batch for each of its minibatches.
        env_steps = num_env_steps * num_minibatches
        log_total(ALL_MODULES, NUM_ENV_STEPS_TRAINED, NUM_ENV_STEPS_TRAINED_LIFETIME, env_steps)
        if num_steps:
            self._metrics_all_modules_num_env_steps_trained.inc(env_steps)
            self._metrics_all_modules_num_module_steps_trained.inc(num_steps.total())
        for key, norm in self._gradient_norms.items():
            self.metrics.log_value(key, norm, window=1)
        self._gradient_norms.clear()


def _can_be_fused(parameters: Sequence[Tensor]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


def _norms(of_optimizers: dict[Optimizer, dict[Tensor, Tensor]]) -> dict[Optimizer, float]:
    """The norm of all that each optimizer steps by."""
    if not of_optimizers:
        return {}
    norms = [_norm([*gradients.values()]) for gradients in of_optimizers.values()]
    # They come from the learner's device together.
    return dict(zip(of_optimizers, torch.stack(norms).tolist(), strict=True))


def _norm(tensors: list[Tensor]) -> Tensor:
    # |g| = |(|g_1|, |g_2|, ..)|
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))

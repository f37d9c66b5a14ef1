"""RLlib's PPO as CleanRL has it: what its settings don't reach.

CleanRL's heads are initialised with gains of 0.01 (policy) and 1 (value), its Adam has an epsilon
of 1e-5, it shuffles from the first epoch on, and normalises advantages in each minibatch. RLlib
goes through the first epoch as it has sampled: pieces of ended episodes first, those that go on
last. On CartPole the two cost PPO two fifths of its return: `docs/results/protocol.md` has the
figures, and says what stays RLlib's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import Model
from ray.rllib.core.models.configs import ModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override

from benchmarks.training import EndedEpisodes, ScaleRewards

HIDDENS = [64, 64]
_POLICY_GAIN, _VALUE_GAIN = 0.01, 1.0
_ADAM_EPSILON = 1e-5


class CleanRLCatalog(PPOCatalog):
    """Initialises the heads, of which RLlib's catalog takes no settings."""

    @override(PPOCatalog)
    def build_pi_head(self, framework: str) -> Model:
        """Builds the head of a nearly uniform first policy."""
        super().build_pi_head(framework)
        return _initialized(self.pi_head_config, _POLICY_GAIN).build(framework=framework)

    @override(PPOCatalog)
    def build_vf_head(self, framework: str) -> Model:
        """Builds the head of the values."""
        return _initialized(self.vf_head_config, _VALUE_GAIN).build(framework=framework)


def _initialized(config: ModelConfig, gain: float) -> ModelConfig:
    return dataclasses.replace(
        config,
        output_layer_weights_initializer="orthogonal_",
        output_layer_weights_initializer_config={"gain": gain},
        output_layer_bias_initializer="zeros_",
    )


class CleanRLLearner(PPOTorchLearner):
    """Has CleanRL's Adam, shuffles and normalises as CleanRL does."""

    @override(PPOTorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Registers the one optimizer of a module."""
        params = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(params, eps=_ADAM_EPSILON),
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    @override(PPOTorchLearner)
    def _make_batch_if_necessary(self, *args: Any, **kwargs: Any) -> MultiAgentBatch:
        """Shuffles the batch, without the steps that RLlib adds to each piece for its critic."""
        whole = super()._make_batch_if_necessary(*args, **kwargs)
        for module_id, batch in whole.policy_batches.items():
            steps = batch[Columns.LOSS_MASK].nonzero().squeeze(-1)
            order = steps[torch.randperm(len(steps))]
            shuffled = SampleBatch({name: column[order] for name, column in batch.items()})
            whole.policy_batches[module_id] = shuffled
        return whole

    @override(PPOTorchLearner)
    def compute_loss_for_module(self, *, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
        """Computes the loss of advantages that are normalised in the minibatch."""
        advantages = batch[Columns.ADVANTAGES]
        normalized = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return super().compute_loss_for_module(
            batch={**batch, Columns.ADVANTAGES: normalized}, **kwargs
        )


def ppo_config(num_envs: int, is_continuous: bool, normalizes: bool) -> PPOConfig:
    """RLlib's PPO, with what CleanRL's has and RLlib's defaults don't.

    Args:
        num_envs: How many envs are stepped at a time.
        is_continuous: Whether actions are. They are clipped, and stay in the env's own unit.
        normalizes: Whether observations are normalised and rewards are scaled.
    """
    config = PPOConfig().env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
    config.rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=DefaultPPOTorchRLModule, catalog_class=CleanRLCatalog
        ),
        model_config={
            "fcnet_hiddens": HIDDENS,
            "fcnet_activation": "tanh",
            "fcnet_kernel_initializer": "orthogonal_",
            "fcnet_kernel_initializer_kwargs": {"gain": 2**0.5},
            "fcnet_bias_initializer": "zeros_",
            "vf_share_layers": False,
            "free_log_std": is_continuous,
        },
    )
    config.training(
        learner_class=CleanRLLearner,
        clip_param=0.2,
        vf_clip_param=float("inf"),
        use_kl_loss=False,
        grad_clip=0.5,
        grad_clip_by="global_norm",
    )
    config.environment(normalize_actions=False, clip_actions=is_continuous)
    if normalizes:
        config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    return config.callbacks([EndedEpisodes, *([ScaleRewards] if normalizes else [])])

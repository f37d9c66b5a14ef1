"""The default module: a policy, no value function, and if asked for an observation normaliser."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.bc.bc_catalog import BCCatalog
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import Model
from ray.rllib.core.models.configs import (
    CNNEncoderConfig,
    MLPEncoderConfig,
    MLPHeadConfig,
    RecurrentEncoderConfig,
)
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict
from torch import Tensor, nn

from rllib_gpg.learning.warm_start import policy_of

# The names that RLlib's PPO and this package know the parts of a module by, and those that BC's
# parameters have in states and checkpoints.
_PARTS = {"encoder": "_encoder", "pi": "_pi_head"}

# 128 MiB of them in double precision.
_NUMBERS_PER_BLOCK = 2**24

# RLlib's own encoders of one array. They take floats only, unlike a user's (an embedding, say).
_FLOAT_ENCODERS = (CNNEncoderConfig, MLPEncoderConfig, RecurrentEncoderConfig)


def has_encoder(space: gym.Space | None) -> bool:
    """Whether RLlib's catalogs have an encoder for observations of a space: vectors and images."""
    return isinstance(space, gym.spaces.Box) and len(space.shape) in (1, 3)


class GPGCatalog(BCCatalog):
    """Builds the encoder and the policy head from the model config.

    It applies all settings of the head. RLlib's own catalogs ignore its initialisers
    (`head_fcnet_kernel_initializer`, `head_fcnet_bias_initializer` and their `.._kwargs`), and a
    policy gradient learns faster from a nearly uniform first policy; that of BC ignores
    `head_fcnet_use_layernorm` as well.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        model_config_dict: dict[str, Any],
    ):
        """Takes the arguments of RLlib's `Catalog`.

        Raises:
            ValueError: If there is no encoder for such observations.
        """
        if type(self) is GPGCatalog and not has_encoder(observation_space):
            raise ValueError(
                f"The default module takes vectors and images, and is shown {observation_space}. "
                "Flatten observations: `env_runners(env_to_module_connector=lambda env, spaces, "
                "device: FlattenObservations())`, beside the connectors there are, and with "
                "several agents `FlattenObservations(multi_agent=True)`; it is in "
                "`ray.rllib.connectors.env_to_module`. Or set a module of your own, "
                "`RLModuleSpec(module_class=..)`."
            )
        super().__init__(observation_space, action_space, model_config_dict)
        self._settings = model_config_dict

    @override(BCCatalog)
    def build_pi_head(self, framework: str) -> Model:
        """Builds the policy head, as the model config says."""
        head = super().build_pi_head(framework)
        changes: dict[str, Any] = {}
        for setting, kind in (("kernel", "weights"), ("bias", "bias")):
            name = f"head_fcnet_{setting}_initializer"
            if self._settings.get(name) is not None:
                for layer in ("hidden", "output"):
                    field = f"{layer}_layer_{kind}_initializer"
                    changes[field] = self._settings[name]
                    changes[f"{field}_config"] = self._settings.get(f"{name}_kwargs")
        if self._settings.get("head_fcnet_use_layernorm"):
            changes["hidden_layer_use_layernorm"] = True
        if not changes:
            return head
        config: MLPHeadConfig = self.pi_head_config  # type: ignore[has-type]
        self.pi_head_config = dataclasses.replace(config, **changes)
        return self.pi_head_config.build(framework=framework)


@dataclass(frozen=True)
class ObservationMoments:
    """Mean and variance of each dimension over a number of observations."""

    mean: Tensor
    var: Tensor
    count: int

    @classmethod
    def of(cls, observations: Tensor, mask: Tensor | None = None) -> ObservationMoments:
        """Computes the moments of a group's observations, in float64.

        Args:
            observations: [B, ...], or [B, T, ...] with zero-padding.
            mask: Which of [B, T] are real steps; None if there is no padding.

        Raises:
            ValueError: If they aren't one array, as of a module that shows its networks a part.
        """
        if not isinstance(observations, Tensor):
            raise ValueError(
                "`normalize_observations` needs observations that are one array, got a "
                f"{type(observations).__name__}. Remove the setting from the `model_config`."
            )
        observations = observations if mask is None else observations[mask]
        # Block by block: in float64 a large group of images would take many times its memory.
        num_rows = max(1, _NUMBERS_PER_BLOCK // max(1, observations[0].numel()))
        moments = [cls._of_block(block) for block in torch.split(observations, num_rows)]
        return functools.reduce(cls.merged, moments)

    @classmethod
    def _of_block(cls, observations: Tensor) -> ObservationMoments:
        observations = observations.to(torch.float64)
        mean = observations.mean(0)
        var = (observations - mean).square().mean(0)
        # They go to all learners by way of the algorithm's process, which may see no GPU.
        return cls(mean.cpu(), var.cpu(), len(observations))

    def merged(self, other: ObservationMoments) -> ObservationMoments:
        """Returns the moments of both (Chan's parallel algorithm)."""
        total = self.count + other.count
        delta = other.mean - self.mean
        # The sums of squared deviations add up, plus what the means differ by.
        m2 = self.var * self.count + other.var * other.count
        m2 = m2 + delta.square() * self.count * other.count / total
        return ObservationMoments(self.mean + delta * other.count / total, m2 / total, total)


class ObservationNormalizer(nn.Module):
    """Shifts and scales observations by the mean and variance of all that were trained on.

    The statistics are buffers: they travel with the weights to the env runners and into
    checkpoints and exported modules. They change only between groups, so that the policy that
    sampled a group and the first policy that learns from it are the same.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    # Standard deviations away from the mean at which an observation is cut off.
    _LIMIT = 10.0
    _EPSILON = 1e-8

    def __init__(self, shape: tuple[int, ...]):
        """Starts without statistics: the first group is seen as it is.

        Args:
            shape: The shape of one observation.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        # An integer: RLlib casts the floats of a state to float32, which can't count on
        # beyond 2^24.
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, observations: Tensor) -> Tensor:
        """Normalises observations [..., *shape]."""
        normalized = (observations - self.mean) / torch.sqrt(self.var + self._EPSILON)
        limited = normalized.clamp(-self._LIMIT, self._LIMIT)
        return torch.where(self.count > 0, limited, observations)

    @torch.no_grad()
    def update(self, moments: ObservationMoments) -> None:
        """Merges in the moments of one group."""
        before = ObservationMoments(
            self.mean.double().cpu(), self.var.double().cpu(), int(self.count)
        )
        after = before.merged(moments)
        self.mean.copy_(after.mean)
        self.var.copy_(after.var)
        self.count.fill_(after.count)


class DefaultGPGTorchRLModule(DefaultBCTorchRLModule):
    """The default RLModule of GPG: encoder and policy head, and nothing else.

    The parts are `encoder` and `pi`, as in RLlib's PPO: networks that a subclass may replace in
    its `setup`, and whose parameters a learner may tell apart. In states and checkpoints their
    parameters have the names of RLlib's BC, `_encoder.` and `_pi_head.`

    Beside RLlib's own settings, `model_config` takes:

    `normalize_observations` (bool, default False): whether to shift and scale observations by
    their running mean and variance. The statistics are taken once per group, over the whole of
    it, after its gradient steps. Only for `Box` observations. Bins see the observations as they
    were before.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes the arguments of RLlib's `RLModule`; the default catalog is `GPGCatalog`."""
        kwargs["catalog_class"] = kwargs.get("catalog_class") or GPGCatalog
        # For subclasses that build the parts without the `setup` of this class.
        self.observation_normalizer: ObservationNormalizer | None = None
        self._sees_integers = False
        super().__init__(*args, **kwargs)

    @property
    def encoder(self) -> nn.Module:
        """The network from a batch to `{"encoder_out": features}`, and a state if recurrent."""
        return self._encoder

    @property
    def pi(self) -> nn.Module:
        """The policy head, from features to the inputs of the action distribution."""
        return self._pi_head

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the parts also by their public names.

        A property's setter wouldn't do: PyTorch takes modules before it comes to that.
        """
        super().__setattr__(_PARTS.get(name, name), value)

    @override(DefaultBCTorchRLModule)
    def setup(self) -> None:
        """Builds encoder, head and normaliser.

        Raises:
            ValueError: If observations are to be normalised that aren't one array of numbers, or
                if RLlib's LSTM can't have such actions.
        """
        space = self.observation_space
        normalize = self.model_config.get("normalize_observations", False)
        if normalize and not isinstance(space, gym.spaces.Box):
            raise ValueError(
                f"`normalize_observations` needs `Box` observations; the module sees {space}. "
                "Flatten them (`FlattenObservations`), or remove the setting from "
                "`rl_module(model_config=..)`."
            )
        if self.model_config.get("use_lstm"):
            self._check_actions_of_lstm()
        super().setup()
        self.observation_normalizer = ObservationNormalizer(space.shape) if normalize else None
        self._sees_integers = isinstance(space, gym.spaces.Box) and not np.issubdtype(
            space.dtype, np.floating
        )

    def _check_actions_of_lstm(self) -> None:
        """Refuses what crashes in RLlib's distributions and heads, on inputs [B, T, ...]."""
        mend = 'Remove `"use_lstm"` from `rl_module(model_config=..)`, or '
        if self.model_config.get("free_log_std"):
            raise ValueError(
                "RLlib's head with `free_log_std` can't take the sequences of an LSTM. "
                f"{mend}`free_log_std`."
            )
        if self._has_nested_actions():
            raise ValueError(
                "RLlib can't compute the log-probabilities of nested actions for sequences, as an "
                f"LSTM has them; the action space is {self.action_space}. {mend}give the env one "
                "`MultiDiscrete` or `Box` of actions."
            )

    def _has_nested_actions(self) -> bool:
        return isinstance(self.action_space, gym.spaces.Dict | gym.spaces.Tuple)

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation mode, if that changes anything.

        RLlib does so at each forward pass, and to visit every layer each time takes a tenth of the
        time of sampling.
        """
        return self if self.training == mode else super().train(mode)

    @override(DefaultBCTorchRLModule)
    def set_state(self, state: StateDict) -> None:
        """Puts a state in place: of such a module, or of RLlib's default one for BC or PPO.

        A critic's parameters are left out, with a message that names them.

        Raises:
            ValueError: If a parameter of the policy is missing, unknown, or of another shape.
        """
        super().set_state(policy_of(state, expected=self.state_dict()))

    @override(DefaultBCTorchRLModule)
    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self._sees_integers and type(getattr(self.encoder, "config", None)) in _FLOAT_ENCODERS:
            # An image's bytes, for example.
            batch = {**batch, Columns.OBS: batch[Columns.OBS].float()}
        if self.observation_normalizer is not None:
            observations = self.observation_normalizer(batch[Columns.OBS])
            batch = {**batch, Columns.OBS: observations}
        return super()._forward(batch, **kwargs)

    @override(DefaultBCTorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        outputs = super()._forward_inference(batch, **kwargs)
        if self._has_nested_actions():
            # Left to RLlib, deterministic actions end in an error: it adds up log-probabilities of
            # different shapes.
            distribution = self.get_inference_action_dist_cls().from_logits(
                outputs[Columns.ACTION_DIST_INPUTS]
            )
            outputs[Columns.ACTIONS] = distribution.to_deterministic().sample()
        return outputs


def are_default(spec: RLModuleSpec | MultiRLModuleSpec) -> bool:
    """Whether all modules of a spec are default modules with GPG's catalog."""
    return all(
        each.module_class is DefaultGPGTorchRLModule and each.catalog_class in (None, GPGCatalog)
        for each in spec.as_multi_rl_module_spec().rl_module_specs.values()
    )

"""Draws actions and fits them to the env in a few array operations, as RLlib does in many.

For small networks RLlib's distribution objects take longer than the forward pass. The two
distributions that nearly all policies have are drawn here without them, to the same numbers from
the same random state; any other goes through RLlib's own classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical, TorchDiagGaussian
from ray.rllib.utils.spaces.space_utils import (
    clip_action,
    get_base_struct_from_space,
    unsquash_action,
)
from torch import Tensor

from rllib_gpg.sampling.nested import map_leaves

_LOG_SQRT_2_PI = math.log(math.sqrt(2 * math.pi))

Draw = Callable[[Tensor], tuple[Any, Tensor]]
"""Distribution inputs [R, ...] -> actions [R, ...] and their log-probabilities [R]."""


def _draw_categorical(logits: Tensor) -> tuple[Tensor, Tensor]:
    # log p_i = z_i - log sum_j exp(z_j)
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    actions = torch.multinomial(log_p.softmax(-1), 1, replacement=True)
    return actions.squeeze(-1), log_p.gather(-1, actions).squeeze(-1)


def _draw_gaussian(inputs: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = inputs.chunk(2, dim=-1)
    std = log_std.exp()
    actions = torch.normal(mean, std)
    # log p = -(a - mean)^2 / (2 std^2) - log std - log sqrt(2 pi), summed over dimensions
    log_p = -((actions - mean) ** 2) / (2 * std**2) - std.log() - _LOG_SQRT_2_PI
    return actions, log_p.sum(-1)


_DRAWS: dict[type, Draw] = {
    TorchCategorical: _draw_categorical,
    TorchDiagGaussian: _draw_gaussian,
}


def draw_for(distribution_class: Any) -> Draw | None:
    """Returns how to draw from a distribution class of RLlib's without its objects, if known."""
    return _DRAWS.get(distribution_class)


def fit_for(space: gym.Space, *, normalize: bool, clip: bool) -> Callable[[Any], Any]:
    """Returns what makes of a module's actions, [R, ...], those that the env is to get.

    As RLlib's `NormalizeAndClipActions`.

    Args:
        space: The action space of one env.
        normalize: Whether the module's actions are to be scaled from [-1, 1] to a bounded `Box`.
        clip: Whether they are to be clipped to the bounds of a `Box` instead.
    """
    if not (normalize or clip) or isinstance(space, gym.spaces.Discrete | gym.spaces.MultiBinary):
        return lambda actions: actions
    struct = get_base_struct_from_space(space)
    if _is_plain_box(space):
        low, high = space.low, space.high
        width = high - low
        if clip and not normalize:
            return lambda actions: np.minimum(np.maximum(actions, low), high)
        return lambda actions: np.minimum(
            np.maximum(low + (actions + 1.0) * width / 2.0, low), high
        )
    fit = unsquash_action if normalize else clip_action
    return lambda actions: map_leaves(fit, actions, struct)


def _is_plain_box(space: gym.Space) -> bool:
    return (
        isinstance(space, gym.spaces.Box)
        and np.issubdtype(space.dtype, np.floating)
        and bool(np.all(space.bounded_below) and np.all(space.bounded_above))
    )

"""The clipped surrogate of PPO, as plain functions of tensors of one shape."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_param: float) -> Tensor:
    """Returns PPO's clipped surrogate of each step (equation 2), to be maximised.

    Args:
        ratio: pi(a|s) / pi_old(a|s).
        advantages: What each step was worth.
        clip_param: How far the ratio may move from 1 before the surrogate stops improving.
    """
    # min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A)
    clipped = torch.clamp(ratio, 1.0 - clip_param, 1.0 + clip_param)
    return torch.min(ratio * advantages, clipped * advantages)


def is_clipped(ratio: Tensor, clip_param: float) -> Tensor:
    """Returns 1.0 for each step whose ratio is outside of the clip range, else 0.0."""
    # |ratio - 1| > eps
    return ((ratio - 1.0).abs() > clip_param).float()

"""The one policy that all contenders of a row get."""

from __future__ import annotations

import numpy as np
import torch

Policy = list[np.ndarray]
"""Weights and biases from the first layer to the last, and log standard deviations if any."""


def actor_parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Returns a policy's parameters in the order of `Policy`, for any of the contenders."""
    named = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if not any(part in name for part in ("critic", "vf", "value"))
    ]
    return [parameter for _, parameter in sorted(named, key=lambda item: "log_std" in item[0])]


def load(module: torch.nn.Module, policy: Policy) -> None:
    """Puts a policy into a contender's module."""
    with torch.no_grad():
        for parameter, value in zip(actor_parameters(module), policy, strict=True):
            parameter.copy_(torch.from_numpy(value))

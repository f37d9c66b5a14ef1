"""Starts from another algorithm's policy: the parameters of RLlib's PPO under this package's names.

A module of RLlib's BC needs none of this: its parameters have the same names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

logger = logging.getLogger("ray.rllib")

# How RLlib's `DefaultPPOTorchRLModule` begins the names of its policy's parameters: the encoder of
# the policy, with or without `vf_share_layers`, and the head.
_OF_POLICY = {
    "encoder.actor_encoder.": "_encoder.",
    "encoder.encoder.": "_encoder.",
    "pi.": "_pi_head.",
}
_OF_CRITIC = ("encoder.critic_encoder.", "vf.")


def policy_of(state: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a module's state under the names of `expected`, without a critic's parameters.

    Args:
        state: The state of a module of GPG, or of RLlib's BC or PPO.
        expected: The state of the module that is to take it, for its names and shapes.

    Raises:
        ValueError: If a parameter is missing, unknown, or of another shape. RLlib would leave it
            as it was initialised, or raise an error that names no mend.
    """
    policy, of_critic = {}, []
    for name, value in state.items():
        if name not in expected and name.startswith(_OF_CRITIC):
            of_critic.append(name)
        else:
            policy[name if name in expected else _renamed(name)] = value
    _check_fit(policy, expected)
    if of_critic:
        logger.warning(
            "GPG has no critic: the policy's parameters are taken over, these of the critic are "
            f"left out: {', '.join(of_critic)}."
        )
    return policy


def _renamed(name: str) -> str:
    for old, new in _OF_POLICY.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _check_fit(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    misfits = [f"{name} is missing" for name in expected if name not in state]
    for name, value in state.items():
        if name not in expected:
            misfits.append(f"{name} is unknown")
        elif (given := np.shape(value)) != (wanted := tuple(expected[name].shape)):
            misfits.append(f"{name} has the shape {tuple(given)} instead of {wanted}")
    if misfits:
        raise ValueError(
            f"This state doesn't fit the module: {'; '.join(misfits)}. The spaces and `rl_module("
            "model_config=..)` must be those of the module that the state comes from."
        )

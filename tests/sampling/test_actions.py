"""Actions drawn without distribution objects are those of RLlib's distributions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchSquashedGaussian,
)
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.spaces.space_utils import clip_action, unsquash_action

from rllib_gpg.sampling.rollout.actions import DrawActions, fit_for


def draw(distribution: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    module = SimpleNamespace(get_exploration_action_dist_cls=lambda: distribution)
    outputs = DrawActions()(
        rl_module=module,  # type: ignore[arg-type]
        batch={Columns.ACTION_DIST_INPUTS: inputs},
        episodes=[SingleAgentEpisode()],
        explore=True,
    )
    return outputs[Columns.ACTIONS], outputs[Columns.ACTION_LOGP]


@pytest.mark.parametrize("distribution", [TorchCategorical, TorchDiagGaussian])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6)])
def test_log_probabilities_are_rllibs(distribution: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(shape)
    actions, logp = draw(distribution, inputs)
    torch.testing.assert_close(logp, distribution.from_logits(inputs).logp(actions))
    assert logp.shape == shape[:-1]


def test_actions_come_as_often_as_they_are_probable() -> None:
    torch.manual_seed(0)
    p, num_draws = torch.tensor([0.5, 0.3, 0.0, 0.2]), 100_000
    actions, _ = draw(TorchCategorical, p.log().expand(num_draws, -1))
    frequencies = torch.bincount(actions, minlength=4) / num_draws
    assert frequencies[2] == 0.0  # masked
    # 5 standard errors
    errors = (frequencies - p).abs()
    assert torch.all(errors <= 5 * (p * (1 - p) / num_draws).sqrt())


def test_gaussian_actions_have_mean_and_deviation() -> None:
    torch.manual_seed(0)
    num_draws = 100_000
    inputs = torch.tensor([1.0, -2.0, math.log(0.1), math.log(3.0)]).expand(num_draws, -1)
    actions, _ = draw(TorchDiagGaussian, inputs)
    std = torch.tensor([0.1, 3.0])
    torch.testing.assert_close(actions.std(0), std, rtol=0.02, atol=0.0)
    assert torch.all((actions.mean(0) - inputs[0, :2]).abs() <= 5 * std / num_draws**0.5)


def test_other_distributions_are_rllibs_own() -> None:
    inputs = torch.randn(5, 4)
    squashed = TorchSquashedGaussian.get_partial_dist_cls(low=-1.0, high=1.0)
    torch.manual_seed(0)
    actions, logp = draw(squashed, inputs)
    torch.manual_seed(0)
    rllibs = squashed.from_logits(inputs)
    expected = rllibs.sample()
    torch.testing.assert_close(actions, expected)
    torch.testing.assert_close(logp, rllibs.logp(expected))


@pytest.mark.parametrize("distribution", [TorchCategorical, TorchDiagGaussian])
def test_nan_is_refused(distribution: Any) -> None:
    inputs = torch.randn(5, 4)
    inputs[3, 1] = torch.nan
    with pytest.raises(ValueError, match="aren't numbers"):
        draw(distribution, inputs)


BOUNDED = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))
HALF_BOUNDED = gym.spaces.Box(
    np.array([-2.0, -np.inf], np.float32), np.array([2.0, 5.0], np.float32)
)
INTEGERS = gym.spaces.Box(-3, 3, (2,), np.int32)


@pytest.mark.parametrize(
    "space", [BOUNDED, HALF_BOUNDED, INTEGERS, gym.spaces.MultiDiscrete([4, 4])]
)
@pytest.mark.parametrize(("normalize", "clip"), [(True, True), (False, True), (False, False)])
def test_the_env_gets_what_rllib_would_give_it(
    space: gym.Space, normalize: bool, clip: bool
) -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(scale=3.0, size=(20, 2)).astype(np.float32)
    if np.issubdtype(space.dtype, np.integer):
        actions = actions.astype(np.int32)
    expected = actions
    if normalize:
        expected = unsquash_action(actions, space)
    elif clip:
        expected = clip_action(actions, space)
    given = actions.copy()
    fitted = fit_for(space, normalize=normalize, clip=clip)(actions)
    np.testing.assert_array_equal(fitted, expected)
    # The env may write into what it gets.
    fitted[...] = 77
    np.testing.assert_array_equal(actions, given)

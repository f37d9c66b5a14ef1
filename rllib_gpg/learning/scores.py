"""The policy's gradients of whole trajectories, for the baseline that makes them vary least."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor

from rllib_gpg.learning.batch import ModuleBatch, take_rows


def score_products(
    module: RLModule,
    columns: ModuleBatch,
    lengths: Sequence[int],
    return_S: np.ndarray,
) -> np.ndarray:
    """Returns [N, 2], the products <G, g> and <g, g> of every trajectory.

    g = sum_t grad log pi(a|s) and G = sum_t R grad log pi(a|s), over the policy's parameters; 0 if
    it has none to be moved.

    Args:
        module: The policy.
        columns: Its batch [S, ..], trajectory after trajectory.
        lengths: [N], the steps of each trajectory.
        return_S: [S], R.
    """
    all_parameters = module.parameters() if isinstance(module, torch.nn.Module) else ()
    parameters = [weights for weights in all_parameters if weights.requires_grad]
    products, start = np.zeros((len(lengths), 2)), 0
    if not parameters:
        return products
    for n, length in enumerate(lengths):
        steps = np.arange(start, start + length)
        batch = take_rows(columns, steps)
        dist_inputs = module.forward_train(batch)
        dist = module.get_train_action_dist_cls().from_logits(
            dist_inputs[Columns.ACTION_DIST_INPUTS]
        )
        logp = dist.logp(batch[Columns.ACTIONS])
        credit = torch.tensor(return_S[steps], dtype=logp.dtype, device=logp.device)
        score = _gradient(logp.sum(), parameters, retain_graph=True)
        weighted = _gradient((logp * credit).sum(), parameters)
        products[n] = float(weighted @ score), float(score @ score)
        start += length
    return products


def _gradient(of: Tensor, parameters: Sequence[Tensor], retain_graph: bool = False) -> Tensor:
    """In one piece, in double precision; without the parameters that it doesn't depend on."""
    found = torch.autograd.grad(of, parameters, retain_graph=retain_graph, allow_unused=True)
    return torch.cat([grad.flatten().double() for grad in found if grad is not None])

"""How much of a group's gradient is signal, by what returns are compared with.

A policy is frozen now and then while it learns. Its gradient is estimated from many groups, and by
each way of comparing; a group's is the sum over steps of grad log pi(a|s) A, over the number of
episodes (Algorithm 1 at ratio 1, advantages not normalised).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from benchmarks.cells import Cell
from benchmarks.evidence.protocol import ADVANTAGES, LADDER_TASKS, TASKS

EXPERIMENT, CONTENDER, SEED = "signal", "ridge-0.98", 100
GROUP_SIZE, NUM_ENV_STEPS, POINTS = 4, 200_000, 3
# Groups that the gradient is estimated from, after some that regressions learn from.
GROUPS, FIRST_GROUPS = 64, 10


def cells_of(env: str, seeds: tuple[int, ...] | None = None) -> list[Cell]:
    """One on each task of the ladder."""
    if env not in LADDER_TASKS:
        return []
    return [
        Cell(EXPERIMENT, env, CONTENDER, GROUP_SIZE, seed, NUM_ENV_STEPS)
        for seed in seeds or (SEED,)
    ]


def run(cell: Cell) -> dict[str, Any]:
    """Trains; gives what was found at some points on the way, the first one before any update."""
    from benchmarks.evidence.rllib_runs import config_of
    from benchmarks.training import Curve, after, settings_of, train

    config = config_of(cell)
    config.debugging(seed=cell.seed, log_level="ERROR", log_sys_usage=False)
    algo = config.build_algo()
    curve: Curve = {}
    found = [measure(algo, TASKS[cell.env].gamma)]
    try:
        for point in range(1, POINTS):
            steps = point * cell.num_env_steps // (POINTS - 1)
            for name, values in train(algo, after(steps)).items():
                curve.setdefault(name, []).extend(values)
            found.append(measure(algo, TASKS[cell.env].gamma))
    finally:
        algo.stop()
    return {"settings": settings_of(config), "curve": curve, "points": found}


def measure(algo: Any, gamma: float) -> dict[str, Any]:
    """The policy's episodes, and the gradients' signal and noise, for each way of comparing."""
    from benchmarks.evidence.rllib_runs import fresh_episodes

    number = (FIRST_GROUPS + GROUPS) * GROUP_SIZE
    episodes = fresh_episodes(algo, algo.config.env, SEED, explore=True, number=number)
    groups = [episodes[n : n + GROUP_SIZE] for n in range(0, number, GROUP_SIZE)]
    # That of the learner: the algorithm's own is for inference.
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID]
    gradients = {
        name: np.array(list(_gradients(module, groups, gamma, settings)))
        for name, settings in ADVANTAGES.items()
    }
    unbiased = gradients["time"]
    return {
        "lengths": [len(episode) for episode in episodes],
        "estimates": {name: signal(rows, unbiased) for name, rows in gradients.items()},
    }


def signal(gradients: np.ndarray, unbiased: np.ndarray) -> dict[str, float]:
    """Signal to noise of one group's gradient, and which way the mean of half of them points.

    Args:
        gradients: One per group, [groups, parameters].
        unbiased: Estimates from the same groups that aren't biased, [groups, parameters]. The
            cosine is to their mean over the other half, with which they have no noise in common.
    """
    mean = gradients.mean(0)
    noise = float(np.square(gradients - mean).sum() / (len(gradients) - 1))
    # Of the squared length of the mean, this much is noise that hasn't averaged out.
    square = max(0.0, float(mean @ mean) - noise / len(gradients))
    halves = [(gradients[i::2].mean(0), unbiased[1 - i :: 2].mean(0)) for i in (0, 1)]
    cosine = float(np.mean([_cosine(*pair) for pair in halves]))
    return {"signal_to_noise": square / noise, "cosine": cosine}


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _gradients(module: Any, groups: list[Any], gamma: float, settings: dict[str, Any]) -> Any:
    from rllib_gpg.advantages import estimate_group

    memory = None
    for number, group in enumerate(groups):
        observations = [np.asarray(episode.get_observations())[:-1] for episode in group]
        estimate = estimate_group(
            observations,
            [np.asarray(episode.get_rewards()) for episode in group],
            gamma=gamma,
            binning=settings.get("binning", "time"),
            leave_one_out="baseline" not in settings,
            baseline=settings.get("baseline", "bins"),
            lambda_=settings.get("lambda_", 1.0),
            memory=memory,
        )
        memory = estimate.memory
        if number >= FIRST_GROUPS:
            actions = np.concatenate([np.asarray(episode.get_actions()) for episode in group])
            advantages = np.concatenate(estimate.advantages)
            yield _gradient(module, np.concatenate(observations), actions, advantages)


def _gradient(
    module: Any, observations: np.ndarray, actions: np.ndarray, advantages: np.ndarray
) -> np.ndarray:
    module.zero_grad()
    batch = {Columns.OBS: torch.as_tensor(observations, dtype=torch.float32)}
    inputs = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
    dist = module.get_train_action_dist_cls().from_logits(inputs)
    logp = dist.logp(torch.as_tensor(actions))
    (logp @ torch.as_tensor(advantages, dtype=torch.float32) / GROUP_SIZE).backward()
    grads = [weights.grad for weights in module.parameters() if weights.grad is not None]
    return torch.cat([grad.flatten() for grad in grads]).numpy().copy()

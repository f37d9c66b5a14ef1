"""What an iteration takes: sampling beside learning, and several learners.

The last two tables of `benchmarks/scaling.py`, which says how to run it. Env runners only wait, so
that the cores are the learners'.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

from ray.rllib.utils.metrics import ENV_RUNNER_SAMPLING_TIMER, LEARNER_UPDATE_TIMER, TIMERS

import benchmarks.waiting_envs  # noqa: F401  # Registers the env.
from rllib_gpg import GPGConfig

NUM_ENVS, EPISODES = 16, 256
WARM_UP = 2


@dataclass(frozen=True)
class Seconds:
    """Of an iteration: medians over some."""

    whole: float
    sampling: float
    update: float


def ahead_table(config: GPGConfig, epochs: list[int], step_s: float, iterations: int) -> None:
    """Prints what `sample_ahead=1` makes of iterations whose update takes more and more.

    Args:
        config: The config of some env runners.
        epochs: Over a group, one row each: its update takes as many times as long.
        step_s: How many seconds a step of a vector env takes.
        iterations: How many are measured.
    """
    print(
        f"\nSampling while learning: {config.num_env_runners} env runners with {NUM_ENVS} envs "
        f"each, {EPISODES} episodes of 100 steps in the mean; seconds per iteration"
    )
    print(
        f"{'epochs':>8}{'sampling':>10}{'all else':>10}{'in turns':>10}{'ahead':>8}"
        f"{'ahead / the longer one':>24}"
    )
    for number in epochs:
        in_turns, ahead = (
            measure(
                _waiting(config, step_s).training(num_epochs=number, sample_ahead=n), iterations
            )
            for n in (0, 1)
        )
        rest = in_turns.whole - in_turns.sampling
        longer = max(in_turns.sampling, rest)
        print(
            f"{number:>8}{in_turns.sampling:>10.2f}{rest:>10.2f}{in_turns.whole:>10.2f}"
            f"{ahead.whole:>8.2f}{ahead.whole / longer:>24.2f}",
            flush=True,
        )


def learners_table(config: GPGConfig, hiddens: list[list[int]], iterations: int) -> None:
    """Prints how much faster two remote learners are than one.

    Args:
        config: A config without remote env runners.
        hiddens: The hidden layers of the networks, one row each.
        iterations: How many are measured.
    """
    print(
        f"\nTwo learners: seconds of an update on {2 * EPISODES} episodes of 100 steps, "
        "in the mean, each learner on one thread"
    )
    print(f"{'network':>12}{'one':>8}{'two':>8}{'times as fast':>15}")
    for layers in hiddens:
        own = _waiting(config, 0.0).training(group_size=2 * EPISODES)
        own.rl_module(model_config={"fcnet_hiddens": layers})
        one, two = (
            measure(own.copy(copy_frozen=False).learners(num_learners=n), iterations)
            for n in (1, 2)
        )
        name = "-".join(map(str, layers))
        print(
            f"{name:>12}{one.update:>8.2f}{two.update:>8.2f}{one.update / two.update:>15.2f}",
            flush=True,
        )


def measure(config: GPGConfig, iterations: int) -> Seconds:
    """Trains for some iterations."""
    algo = config.build_algo()
    try:
        for _ in range(WARM_UP):
            algo.train()
        seen: list[Seconds] = []
        for _ in range(iterations):
            start = time.perf_counter()
            timers = algo.train()[TIMERS]
            whole = time.perf_counter() - start
            names = (ENV_RUNNER_SAMPLING_TIMER, LEARNER_UPDATE_TIMER)
            seen.append(Seconds(whole, *(float(timers[name]) for name in names)))
    finally:
        algo.stop()
    return Seconds(
        *(median(getattr(one, name) for one in seen) for name in ("whole", "sampling", "update"))
    )


def _waiting(config: GPGConfig, step_s: float) -> GPGConfig:
    """Returns a copy with the env that waits."""
    config = config.copy(copy_frozen=False)
    config.environment("waiting-vector", env_config={"step_s": step_s})
    config.env_runners(
        num_envs_per_env_runner=NUM_ENVS, gym_env_vectorize_mode="vector_entry_point"
    )
    return config.training(group_size=EPISODES)

"""What is measured of a contender: its time, the simulator's steps, its memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gymnasium.vector import SyncVectorEnv, VectorEnv

from rllib_gpg.sampling.rollout.vector_env import StepsSome


@dataclass(frozen=True)
class Turn:
    """What one contender did in one repetition.

    `num_simulated` counts every step of every env, also those that belong to no episode.
    """

    num_steps: int
    seconds: float
    sampling_seconds: float
    num_simulated: int = 0

    @property
    def update_seconds(self) -> float:
        """Seconds in which no env was stepped."""
        return self.seconds - self.sampling_seconds


@dataclass(frozen=True)
class Memory:
    """Megabytes of a process before its first iteration, and at its peak."""

    before: float
    peak: float

    @property
    def grown(self) -> float:
        """How much the iterations needed."""
        return self.peak - self.before


class Clock:
    """Wraps a function and adds up the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]):
        """Takes the function to call."""
        self._function = function
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        start = time.perf_counter()
        try:
            return self._function(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


class StepCounter:
    """Counts the steps that the envs of a vector env take, where the simulator is called."""

    def __init__(self, env: VectorEnv):
        """Puts the counter in place of the env's own methods."""
        self.num_steps = 0
        if isinstance(env, SyncVectorEnv):
            for sub_env in env.envs:
                self._count(sub_env, "step", lambda action: 1)
            return
        self._count(env, "step", lambda actions: env.num_envs)
        if isinstance(env, StepsSome):
            self._count(env, "step_some", lambda env_indices, actions: len(env_indices))

    def _count(self, env: Any, name: str, num_steps: Callable[..., int]) -> None:
        step = getattr(env, name)

        def counting(*args: Any) -> Any:
            self.num_steps += num_steps(*args)
            return step(*args)

        setattr(env, name, counting)


def resident_megabytes() -> float:
    """Returns the memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    """Returns the most memory that the process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def per_second(turns: list[Turn], steps: str, seconds: str) -> float:
    """Returns the median over the turns of `steps` per `seconds`, both attributes of a turn."""
    return median(getattr(turn, steps) / getattr(turn, seconds) for turn in turns)


def update_microseconds(turns: list[Turn]) -> float:
    """Returns the median over the turns of the update's time per env step."""
    return median(turn.update_seconds / turn.num_steps for turn in turns) * 1e6

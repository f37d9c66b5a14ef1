"""Who runs when: which envs begin an episode, with which seeds, and which go no further."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from rllib_gpg.nested import row

Seeded = dict[int, int | None]
"""Env index -> the seed of the episode that begins there, or None for a random one."""


class Schedule(Protocol):
    """What the loop asks, see loop.py. Envs are named by their indices, in rising order."""

    going_on: list[int]
    """The envs whose episodes go on from an earlier call."""
    waits_for_ends: ClassVar[bool]
    """Whether it is over only when episodes are, so that one without an end takes for ever."""

    def first(self, num_envs: int) -> Seeded:
        """Returns the envs in which an episode begins before the first step."""
        ...

    def step(self, stepping: np.ndarray, actions: Any) -> np.ndarray:
        """Is told who is about to step, and with which actions.

        Returns:
            [R] bool: who goes no further then, episode over or not.
        """
        ...

    def see(self, steps: Any) -> None:
        """Is shown what came of the step, as the envs give it."""
        ...

    def next(self, ended: Sequence[int]) -> Seeded:
        """Returns those of the envs whose episodes are over in which the next one begins."""
        ...


class WholeEpisodes:
    """Starts one episode per seed, in whichever env is free, and cuts none."""

    waits_for_ends: ClassVar[bool] = True

    def __init__(self, seeds: Iterable[int | None]):
        """Takes the seeds; None for a random one."""
        self.going_on: list[int] = []
        self._waiting = deque(seeds)

    def first(self, num_envs: int) -> Seeded:
        """Begins one in each env."""
        return self.next(range(num_envs))

    def step(self, stepping: np.ndarray, actions: Any) -> np.ndarray:
        """Cuts nothing."""
        return np.zeros(len(stepping), np.bool_)

    def see(self, steps: Any) -> None:
        """Does nothing."""

    def next(self, ended: Sequence[int]) -> Seeded:
        """Begins as many as are left."""
        return {index: self._waiting.popleft() for index in ended[: len(self._waiting)]}


class Rollouts:
    """Steps each env equally often; begins an episode wherever one has ended, and cuts the last."""

    waits_for_ends: ClassVar[bool] = False

    def __init__(self, seeds: Mapping[int, Iterator[int]], num_steps: int, going_on: Iterable[int]):
        """Takes what there is to do.

        Args:
            seeds: Per env, the seeds of the episodes that begin in it.
            num_steps: How many steps each env makes.
            going_on: The envs whose episodes go on from an earlier call.
        """
        self.going_on = sorted(going_on)
        self._seeds = seeds
        self._left = np.zeros(max(seeds) + 1, np.int64)
        self._left[list(seeds)] = num_steps
        # Vector step by vector step: who stepped, the actions, and what came of them.
        self._log: list[tuple[np.ndarray, Any]] = []
        self._rewards: list[Any] = []
        # Per env in which an episode has begun here: the seed of the last, and when that was.
        self._begun: dict[int, tuple[int | None, int]] = {}

    def first(self, num_envs: int) -> Seeded:
        """Begins one in each env in which none goes on."""
        return self.next([index for index in sorted(self._seeds) if index not in self.going_on])

    def step(self, stepping: np.ndarray, actions: Any) -> np.ndarray:
        """Counts down."""
        # A copy: envs may write into what they are given.
        self._log.append((stepping, copy.deepcopy(actions)))
        self._left[stepping] -= 1
        return self._left[stepping] == 0

    def see(self, steps: Any) -> None:
        """Keeps the rewards."""
        self._rewards.append(steps.rewards)

    def next(self, ended: Sequence[int]) -> Seeded:
        """Begins one in each env that has steps left."""
        starting: Seeded = {
            index: next(self._seeds[index]) for index in ended if self._left[index] > 0
        }
        for index, seed in starting.items():
            self._begun[index] = (seed, len(self._log))
        return starting

    def has_begun(self, index: int) -> bool:
        """Whether the env's last episode has begun here, and doesn't go on from before."""
        return index in self._begun

    def steps_of(self, index: int) -> tuple[int | None, list[Any], float]:
        """Returns the seed of the env's last episode, its actions here, and what they brought."""
        seed, begun = self._begun.get(index, (None, 0))
        actions, earned = [], 0.0
        for (stepping, of_all), rewards in zip(
            self._log[begun:], self._rewards[begun:], strict=True
        ):
            at = int(np.searchsorted(stepping, index))
            if at < len(stepping) and stepping[at] == index:
                actions.append(row(of_all, at))
                earned += float(rewards[at])
        return seed, actions, earned

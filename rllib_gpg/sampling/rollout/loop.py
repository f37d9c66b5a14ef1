"""The loop that steps envs and records what comes of it, as a schedule says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import tree
from ray.rllib.utils.metrics import ENV_RESET_TIMER, ENV_STEP_TIMER
from ray.rllib.utils.typing import EpisodeType

from rllib_gpg.nested import row
from rllib_gpg.sampling.rollout.base import Rollout, RunnerParts
from rllib_gpg.sampling.rollout.schedule import Schedule, Seeded

logger = logging.getLogger("ray.rllib")

# Vector steps without the end of any episode after which the loop says so; then after twice as
# many, and so on. Longer than an episode of any common benchmark but Atari's longest.
_STEPS_BEFORE_WARNING = 10_000


class Envs(Protocol):
    """Envs that can be stepped in part; see vector_env.py."""

    def reset(self, starting: Seeded) -> Any:
        """Begins the first episode of each env in `starting`."""
        ...

    def step(self, stepping: np.ndarray, actions: Any, starting: Seeded) -> tuple[Any, Any]:
        """Steps the envs `stepping`, and begins a new episode in those in `starting`."""
        ...


def run(
    rollout: Rollout,
    envs: Envs,
    schedule: Schedule,
    *,
    parts: RunnerParts,
    new_episode: Callable[[int], None],
    call_back: Callable[[str, Iterable[int]], None],
    report: Callable[[int, int], None] | None = None,
) -> tuple[list[EpisodeType], dict[int, EpisodeType]]:
    """Steps envs until the schedule has nothing left to do.

    Args:
        rollout: What computes actions and records steps.
        envs: The envs of the env runner.
        schedule: Says which envs begin an episode, and which go no further. Episodes that go on
            from an earlier call are in `parts.episodes` already.
        parts: The parts of the env runner that the rollout works with.
        new_episode: Puts a new episode into `parts.episodes`.
        call_back: Makes an episode callback of the given name for the given envs.
        report: Is told, after each vector step, how many episodes have ended so far, and how many
            env steps have been made. Default None: nobody is told.

    Returns:
        The episodes, in the order in which they were started; and per env whose last episode was
        cut, where that is to go on: an episode without steps.
    """
    episodes = parts.episodes
    cut: dict[int, EpisodeType] = {}
    started: list[EpisodeType] = [episodes[index] for index in schedule.going_on]

    def begin(starting: Seeded) -> Seeded:
        for index in starting:
            new_episode(index)
            started.append(episodes[index])
        return starting

    starting = begin(schedule.first(len(episodes)))
    if not started:
        return [], {}
    with parts.metrics.log_time(ENV_RESET_TIMER):
        resets = envs.reset(starting)
    rollout.begin(list(starting), resets, schedule.going_on)
    call_back("on_episode_start", starting)
    stepping = np.array(sorted([*starting, *schedule.going_on]), np.int64)
    starting = {}
    step_times: list[float] = []
    watch = _Watch(report, warns=schedule.waits_for_ends)
    while len(stepping) > 0 or starting:
        actions = _act(rollout, stepping) if len(stepping) > 0 else []
        last = schedule.step(stepping, actions)
        start_time = time.perf_counter()
        steps, resets = envs.step(stepping, actions, starting)
        step_times.append(time.perf_counter() - start_time)
        schedule.see(steps)
        done = rollout.record(stepping, steps, list(starting), resets, last)
        call_back("on_episode_start", starting)
        if rollout.sees_every_step:
            call_back("on_episode_step", stepping.tolist())

        num_ended = int(np.count_nonzero(done))
        watch.step(num_stepped=len(stepping), num_ended=num_ended)
        if num_ended or starting or last.any():
            ended = stepping[done].tolist()
            call_back("on_episode_end", ended)
            for at in np.flatnonzero(last & ~done).tolist():
                index = int(stepping[at])
                cut[index] = rollout.cut(index, row(steps.observations, at))
            for index in stepping[done | last].tolist():
                rollout.finish(index)
            # In order, whoever began when: all envs together are then one block of memory.
            begun = np.array(list(starting), np.int64)
            stepping = np.sort(np.concatenate([stepping[~(done | last)], begun]))
            starting = begin(schedule.next(ended))
    if step_times:
        # Once per call: a metrics logger takes longer than a small simulator.
        parts.metrics.log_value(ENV_STEP_TIMER, sum(step_times) / len(step_times))
    return started, cut


def _act(rollout: Rollout, stepping: np.ndarray) -> Any:
    """Computes actions; names the first observation that isn't finite where that fails.

    What a policy makes of nan says nothing about where it comes from.

    Raises:
        ValueError: From what the policy raised, if an observation isn't finite.
    """
    try:
        return rollout.act(stepping)
    except Exception as error:
        for name, t, observation in (seen for env in stepping for seen in rollout.observed(env)):
            for leaf in map(np.asarray, tree.flatten(observation)):
                if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
                    raise ValueError(
                        f"{name}: the observation at step {t} is not finite: {leaf}. Mend the "
                        "environment."
                    ) from error
        raise


class _Watch:
    """Counts what comes in, and says so when no episode ends.

    An env without a time limit would otherwise hang in silence.
    """

    def __init__(self, report: Callable[[int, int], None] | None, *, warns: bool):
        self._report = report
        self._warns = warns
        self._num_ended = 0
        self._num_env_steps = 0
        self._num_steps_without_end = 0
        self._patience = _STEPS_BEFORE_WARNING

    def step(self, *, num_stepped: int, num_ended: int) -> None:
        self._num_ended += num_ended
        self._num_env_steps += num_stepped
        if self._report is not None:
            self._report(self._num_ended, self._num_env_steps)
        self._num_steps_without_end = 0 if num_ended else self._num_steps_without_end + 1
        if self._warns and self._num_steps_without_end >= self._patience:
            logger.warning(
                f"No episode has ended in {self._num_steps_without_end} steps of every env. GPG "
                "waits for whole episodes. If this env has no time limit, set one: "
                "`config.env_runners(max_episode_steps=..)`."
            )
            self._patience *= 2

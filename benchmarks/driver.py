"""What the driver has to do for hundreds of env runners, seen and not estimated.

The fifth table of `benchmarks/scaling.py`, which says how to run it. Shares of 16 episodes of
CartPole are sampled beforehand; stand-ins for env runners return them on a clock, so that neither a
simulator nor a process per env runner is needed. What Ray itself costs is measured with as many
real actors as fit, which return the same.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks.stand_ins import Clock, Prepared, PreparedActor, RunnerGroup, StandIn
from rllib_gpg import GPGConfig
from rllib_gpg.sampling.group import Group, cut_into_shares, gather
from rllib_gpg.sampling.messages import Share, ShareResult, Weights
from rllib_gpg.sampling.packing import pack

EPISODES_PER_SHARE = 16


@dataclass(frozen=True)
class Seen:
    """What one group has taken."""

    seconds: float
    cpu_seconds: float
    opening_cpu_seconds: float
    memory_mb: float


def prepare(config: GPGConfig) -> Prepared:
    """Samples a share, as a remote env runner would send it."""
    algo = config.build_algo()
    try:
        share = cut_into_shares(config, 0, 0)[0]
        result = algo.env_runner.sample_share(share, algo._policy.weights)
        assert isinstance(result, ShareResult)
        vars(result)["episodes"] = pack(result.episodes, infos=False)
        return Prepared(result)
    finally:
        algo.stop()


def driver_table(config: GPGConfig, numbers: list[int], share_s: float, rounds: int) -> None:
    """Prints the fifth table.

    Args:
        config: The config of an env runner for CartPole.
        numbers: How many stand-ins there are.
        share_s: How many seconds one takes for a share.
        rounds: How many shares each of them is asked for.
    """
    config = config.copy(copy_frozen=False).env_runners(episodes_per_share=EPISODES_PER_SHARE)
    prepared = prepare(config.training(group_size=EPISODES_PER_SHARE))
    print(
        f"\nThe driver: shares of {EPISODES_PER_SHARE} episodes ({prepared.num_bytes / 1e3:.0f} kB)"
        f" of {share_s:g} s each, {rounds} per env runner"
    )
    print(
        f"{'runners':>8}{'shares/s':>10}{'CPU busy':>10}{'CPU ms/share':>14}{'opening':>9}"
        f"{'memory MB':>11}{'a death is noticed after ms':>29}"
    )
    for number in numbers:
        clock = Clock()
        actors = {i + 1: StandIn(clock, prepared, share_s) for i in range(number)}
        num_shares = number * rounds
        seen = measure(RunnerGroup(actors), config, num_shares)
        noticed = time_to_notice_stand_in(actors, config, share_s)
        clock.end()
        print(
            f"{number:>8}{num_shares / seen.seconds:>10.0f}{seen.cpu_seconds / seen.seconds:>10.1%}"
            f"{seen.cpu_seconds / num_shares * 1e3:>14.2f}"
            f"{seen.opening_cpu_seconds / num_shares * 1e3:>9.2f}{seen.memory_mb:>11.0f}"
            f"{noticed * 1e3:>29.0f}",
            flush=True,
        )


def real_actors(config: GPGConfig, number: int, num_shares: int) -> None:
    """Prints what Ray costs: the same with real actors, and the least that a call of one takes."""
    config = config.copy(copy_frozen=False).env_runners(episodes_per_share=EPISODES_PER_SHARE)
    prepared = prepare(config.training(group_size=EPISODES_PER_SHARE))
    actors = {i + 1: PreparedActor.remote(prepared, 0.0) for i in range(number)}
    group = RunnerGroup(actors)
    measure(group, config, number)  # Everybody is there.
    seen = median_of(lambda: measure(group, config, num_shares), 5)
    bare = median_of(lambda: bare_calls(actors, num_shares), 5)
    idle = measure_idle(5.0)
    waiting = measure_waiting(prepared, config, number, 5.0)
    print(f"\nWith {number} real actors, {num_shares} shares of no time")
    print(f"driver CPU per share: {seen.cpu_seconds / num_shares * 1e3:.2f} ms")
    print(f"of these, a call that returns nothing: {bare / num_shares * 1e3:.2f} ms")
    print(f"opening the episodes, per share: {seen.opening_cpu_seconds / num_shares * 1e3:.2f} ms")
    print(f"driver CPU per second of waiting: {waiting * 1e3:.1f} ms; without: {idle * 1e3:.1f} ms")
    noticed = time_to_notice_actor(prepared, config, number)
    print(f"a killed actor's share is sent out again after {noticed * 1e3:.0f} ms")


def measure(group: RunnerGroup, config: GPGConfig, num_shares: int) -> Seen:
    """Gathers one group."""
    gc.collect()
    memory = resident_mb()
    start, cpu = time.perf_counter(), time.process_time()
    gathered = gather_shares(group, config, num_shares)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    memory = resident_mb() - memory
    cpu = time.process_time()
    assert len(list(gathered.episodes)) == num_shares * EPISODES_PER_SHARE
    return Seen(seconds, cpu_seconds, time.process_time() - cpu, memory)


def gather_shares(group: Any, config: GPGConfig, num_shares: int) -> Group:
    """Gathers so many shares; to log their metrics is left to the algorithm, and isn't in it."""
    config = config.copy(copy_frozen=False).training(group_size=num_shares * EPISODES_PER_SHARE)
    shares = cut_into_shares(config, 0, 0)
    return gather(group, shares, Weights(1, None), config=config, restore=lambda: None)


def median_of(function: Callable[[], Any], times: int) -> Any:
    """Returns what took the median of CPU time."""
    seen = [function() for _ in range(times)]
    return sorted(seen, key=lambda one: getattr(one, "cpu_seconds", one))[times // 2]


def bare_calls(actors: dict[int, Any], number: int) -> float:
    """Returns the CPU seconds of calls that do and return nothing, one at a time per actor."""
    start = time.process_time()
    for _ in range(number // len(actors)):
        ray.get([actor.apply.remote(abs_of_none) for actor in actors.values()])
    return time.process_time() - start


def abs_of_none(actor: Any) -> None:
    """Does nothing."""


def measure_idle(seconds: float) -> float:
    """Returns the CPU seconds per second that Ray takes in a driver that does nothing."""
    start = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - start) / seconds


def measure_waiting(prepared: Prepared, config: GPGConfig, number: int, seconds: float) -> float:
    """Returns the CPU seconds per second while one share per actor takes so long."""
    actors = {i + 1: PreparedActor.remote(prepared, seconds) for i in range(number)}
    ray.get([actor.apply.remote(abs_of_none) for actor in actors.values()])
    seen = measure(RunnerGroup(actors), config, number)
    return seen.cpu_seconds / seen.seconds


def time_to_notice_stand_in(actors: dict[int, StandIn], config: GPGConfig, share_s: float) -> float:
    """Returns the seconds from a stand-in's death to the moment when its share is sent again."""
    victim = next(iter(actors.values()))
    sent: dict[int, list[float]] = {}
    for actor in actors.values():
        actor.apply.remote = noting(actor.apply.remote, sent)
    # One share less than there are env runners: somebody is free.
    victim.dies_at = time.monotonic() + share_s / 2
    gather_shares(RunnerGroup(actors), config, len(actors) - 1)
    (again,) = [times[1] for times in sent.values() if len(times) > 1]
    return again - victim.dies_at


def time_to_notice_actor(prepared: Prepared, config: GPGConfig, number: int) -> float:
    """Returns the same for a process that is killed."""
    actors = {i + 1: PreparedActor.remote(prepared, 2.0) for i in range(number)}
    pids = ray.get([actor.apply.remote(pid_of) for actor in actors.values()])
    sent: dict[int, list[float]] = {}
    noted = {
        i: type("Noted", (), {"apply": type("Apply", (), {"remote": noting(a.apply.remote, sent)})})
        for i, a in actors.items()
    }
    killed = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(pids[0], signal.SIGKILL)

    threading.Timer(1.0, kill).start()
    gather_shares(RunnerGroup(noted), config, number - 1)
    (again,) = [times[1] for times in sent.values() if len(times) > 1]
    return again - killed[0]


def pid_of(actor: Any) -> int:
    """Returns the process id of an actor."""
    return os.getpid()


def noting(remote: Callable[..., Any], sent: dict[int, list[float]]) -> Callable[..., Any]:
    """Returns what `remote` returns, and notes when which share was sent."""

    def call(function: Any) -> Any:
        share: Share = function.keywords["share"]
        sent.setdefault(share.index, []).append(time.monotonic())
        return remote(function)

    return staticmethod(call)


def resident_mb() -> float:
    """Returns how much memory this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

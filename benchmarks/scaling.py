"""How sampling grows with the number of env runners, and what the driver has to do for it.

The envs wait instead of computing, as if the simulator were elsewhere, so that many env runners
fit on a small machine. Run with 2 cores and 12 GB of memory::

    python -m benchmarks.scaling                 # all tables
    python -m benchmarks.scaling --only weak     # one of them

The first three tables are about `rllib_gpg.sampling.group.gather`:

- weak: one env per runner, 10 ms a step, 100 steps an episode, and as many episodes per runner
  whatever the number of runners. Efficiency is the time of one runner over the time of n. Driver
  CPU is the time of all threads of the driver's process, per episode and so, as shares have one
  episode here, per result. A part of it goes with time and not with results, because the driver
  looks for results again and again: the line below the table tells the two apart.
- shares: `episodes_per_share` with 16 envs per runner. One native vector env per runner, of which
  a step takes 10 ms however many of its envs still run; episodes of 20 to 180 steps; all runners
  alike, and one of the four 4 times slower. Small shares leave envs idle, large ones leave runners
  idle; `duplicate_last_shares` lets the latter help.
- slow: four runners with one env each, one of them 4 times slower than the others, all episodes of
  the same length; the group's time over the ideal time, which is total work / total speed (of
  steps with all that is around the wait, as measured on the slow runner). A share of one episode,
  the default here, against a static split (N/4 episodes per share), and that with
  `duplicate_last_shares`.
- results: what the driver needs to take in the steps of a share, without infos (CartPole) and with
  nine numbers of infos per step (HalfCheetah; needs the extra `examples`); packed, as it comes,
  and opened, where it is read.
- driver: 100, 400 and 1,000 stand-ins for env runners, whose answers come due on a clock, and what
  Ray costs; see benchmarks/driver.py.
- ahead: what an iteration takes with `sample_ahead`, of which sampling and update are known; see
  benchmarks/iteration.py. Here, and only here and in the last one, something is learned.
- learners: what an update takes with one and with two remote learners.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE

from benchmarks.driver import EPISODES_PER_SHARE, driver_table, real_actors
from benchmarks.iteration import ahead_table, learners_table
from benchmarks.waiting_envs import EPISODE_STEPS, WaitingEnv, slow_down_first
from rllib_gpg import GPG, GPGConfig
from rllib_gpg.sampling.group import cut_into_shares, gather
from rllib_gpg.sampling.messages import Weights
from rllib_gpg.sampling.packing import Episodes, PackedEpisodes, pack

SEED = 0
STEP_S = 0.01
TABLES = ("weak", "shares", "slow", "results", "driver", "ahead", "learners")


@dataclass(frozen=True)
class Gathering:
    """One group gathered: wall and driver's CPU seconds, and what came."""

    seconds: float
    cpu_seconds: float
    num_episodes: int
    num_steps: int
    num_results: int


class Sampler:
    """GPG's env runners, without GPG's updates."""

    def __init__(self, config: GPGConfig):
        """Starts the env runners and hands the weights out."""
        self._algo: GPG = config.build_algo()
        state = self._algo.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        self._weights = Weights(1, ray.put(state))
        self._num_groups = 0

    @property
    def num_env_runners(self) -> int:
        """The number of env runners now."""
        return self._algo.env_runner_group.num_remote_env_runners()

    def add_env_runners(self, num: int) -> None:
        """Starts more env runners, and waits for them."""
        self._algo.env_runner_group.add_workers(num, validate=True)

    def gather(
        self, group_size: int, episodes_per_share: int | None = None, *, duplicate: bool = False
    ) -> Gathering:
        """Gathers a group with all env runners there are, once none is busy any more."""
        self._algo.env_runner_group.foreach_env_runner("ping", local_env_runner=False)
        config = self._algo.config.copy(copy_frozen=False)
        config.training(group_size=group_size)
        config.env_runners(
            num_env_runners=self.num_env_runners,
            episodes_per_share=episodes_per_share,
            duplicate_last_shares=duplicate,
        )
        shares = cut_into_shares(config, SEED, self._num_groups)
        self._num_groups += 1
        start, cpu_start = time.perf_counter(), time.process_time()
        group = gather(
            self._algo.env_runner_group,
            shares,
            self._weights,
            config=config,
            restore=self._algo.env_runner_group.probe_unhealthy_env_runners,
        )
        return Gathering(
            time.perf_counter() - start,
            time.process_time() - cpu_start,
            len(group.episodes),
            sum(map(len, group.episodes)),
            len(shares),
        )

    def sample(self, num_episodes: int) -> list[Any]:
        """Samples with the local env runner."""
        episodes: list[Any] = self._algo.env_runner.sample(num_episodes=num_episodes)
        return episodes

    def stop(self) -> None:
        """Ends the env runners."""
        self._algo.stop()


@contextmanager
def sampler(config: GPGConfig) -> Iterator[Sampler]:
    """Runs a sampler, and gathers a first group that nobody times."""
    started = Sampler(config)
    try:
        # One episode per env, so that every env runner has its weights and has been at work.
        num_envs = started.num_env_runners * config.num_envs_per_env_runner
        started.gather(num_envs, config.num_envs_per_env_runner)
        yield started
    finally:
        started.stop()


def base_config(num_env_runners: int) -> GPGConfig:
    """Returns what all tables have in common."""
    return (
        GPGConfig()
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=1)
        .rl_module(model_config={"fcnet_hiddens": [64, 64]})
        .debugging(seed=SEED, log_level="ERROR", log_sys_usage=False)
    )


def weak_scaling(numbers: list[int], episodes_per_runner: int, repetitions: int) -> None:
    """Prints the first table."""
    print(f"\nWeak scaling: {episodes_per_runner} episodes per env runner, 1 env each")
    print(
        f"{'runners':>8}{'episodes':>10}{'seconds':>10}{'efficiency':>12}"
        f"{'driver CPU ms/result':>22}{'driver CPU busy':>17}"
    )
    config = base_config(numbers[0]).environment(WaitingEnv, env_config={"step_s": STEP_S})
    seen: list[Gathering] = []
    with sampler(config) as runners:
        for number in numbers:
            if number > runners.num_env_runners:
                runners.add_env_runners(number - runners.num_env_runners)
                runners.gather(number)
            own = [runners.gather(number * episodes_per_runner, 1) for _ in range(repetitions)]
            seen += own
            seconds = median(g.seconds for g in own)
            if number == numbers[0]:
                alone = seconds
            print(
                f"{number:>8}{own[0].num_episodes:>10}{seconds:>10.2f}{alone / seconds:>12.3f}"
                f"{median(g.cpu_seconds / g.num_results for g in own) * 1e3:>22.2f}"
                f"{median(g.cpu_seconds / g.seconds for g in own):>17.1%}",
                flush=True,
            )
    print_driver_costs(seen)


def print_driver_costs(seen: list[Gathering]) -> None:
    """Tells the driver's CPU time per result from what it needs anyway (least squares)."""
    columns = np.array([[g.seconds, g.num_results] for g in seen])
    cpu_seconds = np.array([g.cpu_seconds for g in seen])
    (per_second, per_result), *_ = np.linalg.lstsq(columns, cpu_seconds, rcond=None)
    print(
        f"driver CPU = {per_second * 1e3:.1f} ms per second of waiting"
        f" + {per_result * 1e3:.2f} ms per result"
    )


def trade_off(
    sizes: list[int], num_env_runners: int, group_size: int, slow_down: int, step_s: float
) -> None:
    """Prints the second table, for env runners of which one is `slow_down` times slower."""
    num_envs = 16
    print(
        f"\nepisodes_per_share: {num_env_runners} env runners with {num_envs} envs each, "
        f"{group_size} episodes of {EPISODE_STEPS} steps in the mean, 20 to 180; "
        + ("all alike" if slow_down == 1 else f"one of them {slow_down} times slower")
    )
    print(
        f"{'per share':>10}{'shares':>8}{'seconds':>9}{'/ ideal':>9}{'with duplicates':>17}"
        f"{'driver CPU ms/episode':>23}"
    )
    config = base_config(num_env_runners).environment(
        "waiting-vector", env_config={"step_s": step_s, "slow_down": slow_down}
    )
    config.env_runners(
        num_envs_per_env_runner=num_envs, gym_env_vectorize_mode="vector_entry_point"
    ).callbacks(on_environment_created=slow_down_first)
    speed = num_envs * (num_env_runners - 1 + 1 / slow_down) / step_s
    with sampler(config) as runners:
        for size in sizes:
            group = runners.gather(group_size, size)
            # All envs of all runners at work, all the time.
            ideal = group.num_steps / speed
            seconds = group.seconds
            again = runners.gather(group_size, size, duplicate=True)
            # Another group, with other lengths.
            ratio = again.seconds / (again.num_steps / speed)
            print(
                f"{size:>10}{group.num_results:>8}{seconds:>9.2f}{seconds / ideal:>9.2f}"
                f"{ratio:>17.2f}{group.cpu_seconds / group.num_episodes * 1e3:>23.2f}",
                flush=True,
            )


def slow_runner(group_size: int, step_s: float) -> None:
    """Prints the third table."""
    num_env_runners, slow_down = 4, 4
    print(
        f"\nOne of {num_env_runners} env runners {slow_down} times slower: {group_size} episodes "
        f"of {EPISODE_STEPS} steps of {step_s * 1e3:.0f} ms"
    )
    config = base_config(num_env_runners).environment(
        WaitingEnv, env_config={"step_s": step_s, "slow_down": slow_down}
    )
    config.callbacks(on_environment_created=slow_down_first)
    static = group_size // num_env_runners
    with sampler(config) as runners:
        # A single share goes to runner 1, the slow one.
        slow_s = median(runners.gather(1).seconds for _ in range(3)) / EPISODE_STEPS
        fast_s = slow_s - (slow_down - 1) * step_s
        ideal = group_size * EPISODE_STEPS / ((num_env_runners - 1) / fast_s + 1 / slow_s)
        print(f"measured: {slow_s * 1e3:.2f} ms and {fast_s * 1e3:.2f} ms; ideal {ideal:.2f} s")
        print(f"{'':<30}{'per share':>10}{'seconds':>9}{'/ ideal':>9}{'to reach':>10}")
        for name, size, duplicate, limit in (
            ("default", None, False, "1.2"),
            ("static split", static, False, "-"),
            ("static split, duplicates", static, True, "1.6"),
        ):
            seconds = runners.gather(group_size, size, duplicate=duplicate).seconds
            print(
                f"{name:<30}{size or 1:>10}{seconds:>9.2f}{seconds / ideal:>9.2f}{limit:>10}",
                flush=True,
            )


def result_sizes(num_episodes: int, repetitions: int) -> None:
    """Prints the fourth table."""
    print(f"\nTaking in a share of {num_episodes} episodes from Ray's object store")
    print(f"{'':<34}{'steps':>8}{'bytes/step':>12}{'driver CPU us/step':>20}{'opening':>9}")
    for env in ("CartPole-v1", "HalfCheetah-v5"):
        config = base_config(0).environment(env).env_runners(num_envs_per_env_runner=num_episodes)
        with sampler(config) as runners:
            episodes = runners.sample(num_episodes)
        num_steps = sum(map(len, episodes))
        for infos in (False, True):
            packed = pack(episodes, infos=infos)
            # In another process, as an env runner's result is.
            result = _handed_over.remote(packed)
            num_bytes = ray.get(_num_bytes.remote(packed))
            ray.wait([result], fetch_local=True)
            taken, opened = [], []
            for _ in range(repetitions):
                start = time.process_time()
                got = ray.get(result)
                taken.append(time.process_time() - start)
                list(Episodes([got]))
                opened.append(time.process_time() - start - taken[-1])
            print(
                f"{env + (', with infos' if infos else ', without'):<34}{num_steps:>8,}"
                f"{num_bytes / num_steps:>12.0f}{median(taken) / num_steps * 1e6:>20.3f}"
                f"{median(opened) / num_steps * 1e6:>9.3f}",
                flush=True,
            )


@ray.remote
def _handed_over(packed: PackedEpisodes) -> PackedEpisodes:
    return packed


@ray.remote
def _num_bytes(packed: PackedEpisodes) -> int:
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    return len(pickled) + sum(buffer.raw().nbytes for buffer in buffers)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=TABLES)
    parser.add_argument("--env-runners", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24])
    parser.add_argument("--episodes-per-runner", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2, help="of the first table")
    parser.add_argument("--shares", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--shares-group-size", type=int, default=256)
    parser.add_argument("--shares-step-ms", type=float, default=STEP_S * 1e3)
    parser.add_argument("--slow-group-size", type=int, default=64)
    parser.add_argument("--slow-step-ms", type=float, default=5.0)
    parser.add_argument("--stand-ins", type=int, nargs="+", default=[100, 400, 1000])
    parser.add_argument("--share-seconds", type=float, default=2.0, help="of stand-ins")
    parser.add_argument("--rounds", type=int, default=5, help="shares per stand-in")
    parser.add_argument("--real-actors", type=int, default=4)
    parser.add_argument("--ahead-epochs", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--iterations", type=int, default=5, help="of the last two tables")
    return parser.parse_args()


def main() -> None:
    """Prints the tables."""
    args = parse_args()
    # More CPUs than there are: the env runners only wait.
    ray.init(
        "local", num_cpus=32, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    if args.only in (None, "weak"):
        weak_scaling(sorted(args.env_runners), args.episodes_per_runner, args.repetitions)
    if args.only in (None, "shares"):
        for slow_down in (1, 4):
            trade_off(args.shares, 4, args.shares_group_size, slow_down, args.shares_step_ms / 1e3)
    if args.only in (None, "slow"):
        slow_runner(args.slow_group_size, args.slow_step_ms / 1e3)
    if args.only in (None, "results"):
        result_sizes(num_episodes=16, repetitions=10)
    if args.only in (None, "driver"):
        config = base_config(0).environment("CartPole-v1")
        config.env_runners(
            num_envs_per_env_runner=EPISODES_PER_SHARE,
            gym_env_vectorize_mode="vector_entry_point",
        )
        real_actors(config, args.real_actors, num_shares=400)
        driver_table(config, args.stand_ins, args.share_seconds, args.rounds)
    if args.only in (None, "ahead"):
        ahead_table(base_config(4), args.ahead_epochs, STEP_S / 5, args.iterations)
    if args.only in (None, "learners"):
        learners_table(base_config(0), [[64, 64], [512, 512]], args.iterations)


if __name__ == "__main__":
    main()

"""A script of one's own against the same config in Ray Tune, in one run.

What it shows: `config.build_algo()` puts env runner and learner into the script's process, where
torch takes all cores by default; Ray gives its workers as many threads as they have CPUs, by
default one. GPG does the same in its own process, so that both take equally long. Beside it, the
script as it would be without that: with all of torch's threads.

How to run it::

    python benchmarks/threads.py
    python benchmarks/threads.py --busy 1   # beside one other process that keeps a core busy

The three take turns. Times are those of the iterations, without building anything.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from statistics import median

import ray
import torch
from ray import tune

from rllib_gpg import GPGConfig


def readme_config(num_cpus: int) -> GPGConfig:
    """Returns the config of README's first steps, on CartPole and in one process.

    Args:
        num_cpus: Of the algorithm's own process, and so of torch there.
    """
    return (
        GPGConfig()
        .environment("CartPole-v1")
        .env_runners(num_envs_per_env_runner=16)
        .training(group_size=32)
        .resources(num_cpus_for_main_process=num_cpus)
        .debugging(seed=0, log_level="ERROR")
    )


def in_a_script(iterations: int, num_cpus: int = 1) -> float:
    """Returns the seconds that the iterations take after `build_algo()`."""
    algo = readme_config(num_cpus).build_algo()
    try:
        start = time.perf_counter()
        for _ in range(iterations):
            algo.train()
        return time.perf_counter() - start
    finally:
        algo.stop()


def in_tune(iterations: int) -> float:
    """Returns the seconds that the iterations take in a trial of Ray Tune."""
    tuner = tune.Tuner(
        "GPG",
        param_space=readme_config(num_cpus=1),
        run_config=tune.RunConfig(stop={"training_iteration": iterations}, verbose=0),
    )
    [result] = tuner.fit()
    return float(result.metrics["time_total_s"])


@contextlib.contextmanager
def busy(num_processes: int) -> Iterator[None]:
    """Keeps so many cores busy meanwhile."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(num_processes)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def _spin() -> None:
    while True:
        pass


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, help="other processes meanwhile")
    args = parser.parse_args()

    num_threads = torch.get_num_threads()
    ray.init("local", num_cpus=max(2, num_threads), include_dashboard=False, log_to_driver=False)
    contenders = {
        "in Ray Tune": lambda: in_tune(args.iterations),
        "in a script": lambda: in_a_script(args.iterations),
        f"with torch's {num_threads} threads": lambda: in_a_script(args.iterations, num_threads),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with busy(args.busy):
        for _ in range(args.repetitions):
            for name, run in contenders.items():
                seconds[name].append(run())
    print(f"\n{args.iterations} iterations, medians of {args.repetitions}")
    reference = median(seconds["in Ray Tune"])
    for name, own in seconds.items():
        print(f"{name:<28}{median(own):8.2f} s   x {median(own) / reference:.2f}")


if __name__ == "__main__":
    main()

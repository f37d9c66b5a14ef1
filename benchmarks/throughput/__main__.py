"""Measures and prints."""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks import throughput
from benchmarks.throughput import tables
from benchmarks.throughput.configs import MINIBATCHES
from benchmarks.throughput.contenders import OWN, PEERS
from benchmarks.throughput.measuring import (
    Known,
    measure,
    remote_speeds,
    simulated_per_step,
    train_policy,
)
from benchmarks.throughput.rows import ROWS, Row


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=throughput.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--iterations", type=int, help="per repetition, instead of the row's")
    parser.add_argument("--group-size", type=int, help="instead of the row's")
    parser.add_argument("--episodes-per-share", type=int, help="instead of GPG's default")
    parser.add_argument(
        "--episode-length", type=int, help="to train the policy to, instead of the row's; 0: none"
    )
    parser.add_argument(
        "--without-peers", action="store_true", help="only GPG, with bins and with the ridge"
    )
    return parser.parse_args()


def adjusted(row: Row, args: argparse.Namespace) -> Row:
    """Returns the row with what the command line says instead."""
    given = {
        name: getattr(args, name)
        for name in ("iterations", "group_size", "episodes_per_share", "episode_length")
        if getattr(args, name) is not None
    }
    return replace(row, **given)


def main() -> None:
    """Measures all rows and prints their tables."""
    args = parse_args()
    known: Known = {}
    reached = {}
    for name in args.rows:
        row = adjusted(ROWS[name], args)
        policy, length = train_policy(row, known)
        # A multiple of envs and of minibatches, so that nothing is left over.
        unit = row.num_envs * MINIBATCHES
        batch_size = max(1, round(length * row.group_size / unit)) * unit
        print(
            f"\n{row}: {row.group_size} episodes of {length:.0f} steps in the mean, for PPO "
            f"batches of {batch_size:,}",
            flush=True,
        )
        peers = not args.without_peers
        if row.num_env_runners:
            speeds = remote_speeds(row, policy, batch_size, args.repetitions, peers=peers)
            tables.print_speeds(row, speeds)
            continue
        if row.targets is None:
            tables.print_simulated(simulated_per_step(row, policy, args.repetitions))
            continue
        contenders = {**OWN, **PEERS} if peers else OWN
        turns, memory = measure(row, policy, batch_size, args.repetitions, contenders)
        tables.print_contenders(turns, memory)
        if peers:
            reached[name] = tables.ratios(turns, memory)
        else:
            print(f"ridge / bins: {tables.ridge_ratio(turns):.3f}", flush=True)
    if reached:
        tables.print_summary(reached)


if __name__ == "__main__":
    main()

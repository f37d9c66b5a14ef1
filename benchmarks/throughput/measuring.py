"""The policy of a row, and what contenders do with it in turns."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.throughput.contenders import (
    GPG,
    REMOTE,
    Contender,
    RemoteGPGAhead,
    TrainingGPG,
)
from benchmarks.throughput.policies import Policy
from benchmarks.throughput.processes import processes
from benchmarks.throughput.rows import Row
from benchmarks.throughput.turns import Memory, Turn, per_second

Known = dict[tuple[str, int], tuple[Policy, float]]
"""By env and episode length: the policy trained to it, and the length that its episodes have."""


def train_policy(row: Row, known: Known) -> tuple[Policy, float]:
    """Returns a row's policy and the mean length of its episodes, from `known` if it is there."""
    key = row.env, row.episode_length
    if key not in known:
        with processes([TrainingGPG], replace(row, num_env_runners=0), [], 0) as [trainer]:
            known[key] = trainer.call("train_to_length", row.episode_length)
    return known[key]


def measure(
    row: Row,
    policy: Policy,
    batch_size: int,
    repetitions: int,
    contenders: dict[str, type[Contender]],
) -> tuple[dict[str, list[Turn]], dict[str, Memory]]:
    """Lets all contenders take turns."""
    turns: dict[str, list[Turn]] = {"GPG": [], "bare loop": [], **{name: [] for name in contenders}}
    with processes([*contenders.values()], row, policy, batch_size) as started:
        for process in started:
            process.call("turn", 1)
        for _ in range(repetitions):
            for name, process in zip(contenders, started, strict=True):
                turn = process.call("turn", row.iterations)
                turns[name].append(turn)
                if name == "GPG" and not row.num_env_runners:
                    turns["bare loop"].append(process.call("bare_loop", turn.num_simulated))
        memory = {
            name: process.call("memory") for name, process in zip(contenders, started, strict=True)
        }
    return turns, memory


def simulated_per_step(row: Row, policy: Policy, repetitions: int) -> list[float]:
    """How many steps GPG simulates for each step that it returns, group by group."""
    with processes([GPG], row, policy, 0) as [gpg]:
        turns = [gpg.call("turn", 1) for _ in range(repetitions)]
    return [turn.num_simulated / turn.num_steps for turn in turns]


def remote_speeds(
    row: Row, policy: Policy, batch_size: int, repetitions: int, *, peers: bool
) -> dict[str, float]:
    """Env steps per second with remote env runners and a remote learner, of each contender."""
    contenders = {name: kind for name, kind in REMOTE.items() if peers or name == "GPG"}
    turns, _ = measure(row, policy, batch_size, repetitions, contenders)
    with processes([RemoteGPGAhead], row, policy, batch_size) as [ahead]:
        # Alone: in the turns of others it would go on to sample.
        ahead.call("turn", 2)
        own = [ahead.call("turn", row.iterations) for _ in range(repetitions)]
    compared = {**{name: turns[name] for name in contenders}, "GPG ahead": own}
    return {name: per_second(turns, "num_steps", "seconds") for name, turns in compared.items()}

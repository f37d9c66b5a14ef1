"""Long runs in which env runners are killed: nothing grows, nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.state import actors
from ray._private.worker import global_worker

from rllib_gpg import GPG
from tests.envs import Identity
from tests.helpers import built, module_results, same, small_config, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def pids(algo: GPG) -> dict[str, int]:
    """The driver, its learner and its env runners."""
    (learner,) = algo.learner_group.foreach_learner(lambda learner: os.getpid())
    runners = algo.env_runner_group.foreach_env_runner(
        lambda runner: (runner.worker_index, os.getpid()), local_env_runner=False
    )
    named = {f"env runner {index}": pid for index, pid in runners}
    return {"driver": os.getpid(), "learner": learner.get(), **named}


def own_bytes(pid: int) -> int:
    """Memory that is the process's own: not Ray's object store, which all have mapped."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def left_behind() -> dict[str, int]:
    """What may pile up."""
    there_is, is_free = ray.cluster_resources(), ray.available_resources()
    return {
        "actors": sum(actor["State"] != "DEAD" for actor in actors().values()),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "objects": len(global_worker.core_worker.get_all_reference_counts()),
        # Whoever of all processes has put it there.
        "shared bytes": int(there_is["object_store_memory"] - is_free["object_store_memory"]),
    }


@pytest.mark.parametrize("sample_ahead", [0, 1])
def test_a_thousand_iterations_with_kills_leave_nothing_behind(sample_ahead: int) -> None:
    """Memory grows by 5 % at most after the first hundred; the actors of the end are those of the
    beginning, and when the algorithm has stopped there are none."""
    before = left_behind()
    rng = random.Random(0)
    config = small_config(Identity, num_epochs=1, lr=0.003, sample_ahead=sample_ahead)
    config.env_runners(num_env_runners=2, episodes_per_share=2).learners(num_learners=1)
    killed, sizes, left = set(), {}, {}
    with built(config) as algo:
        for iteration in range(1, 1001):
            result = algo.train()
            assert module_results(result)["group_num_episodes"] == 8
            if iteration % 150 == 75:
                killed.add(victim := pids(algo)[f"env runner {rng.randint(1, 2)}"])
                os.kill(victim, signal.SIGKILL)
            if iteration in (100, 1000):
                of_processes = pids(algo)
                sizes[iteration] = {name: own_bytes(pid) for name, pid in of_processes.items()}
                left[iteration] = left_behind()
    assert len(killed) == 7 and not killed & set(of_processes.values())
    for name, size in sizes[1000].items():
        # An env runner is compared with another of its place, that was there at 100.
        assert size <= 1.05 * sizes[100][name], (name, sizes)
    assert left[1000]["actors"] == left[100]["actors"]
    for name in ("open files", "threads", "objects"):
        assert left[1000][name] <= left[100][name] + 3, (name, left)
    assert left[1000]["shared bytes"] <= left[100]["shared bytes"] + 2**20, left
    assert left_behind()["actors"] == before["actors"]


def test_every_checkpoint_of_a_run_restores(tmp_path: Path) -> None:
    config = small_config(Identity, num_epochs=1, baseline="ridge", lambda_=0.9)
    with built(config) as algo:
        states: list[Any] = []
        for iteration in range(20):
            algo.train()
            algo.save_to_path(tmp_path / str(iteration))
            states.append(snapshot(algo))
        order = list(range(20))
        random.Random(0).shuffle(order)
        for iteration in order:
            algo.restore_from_path(tmp_path / str(iteration))
            assert same(snapshot(algo), states[iteration])
            assert algo.iteration == iteration + 1

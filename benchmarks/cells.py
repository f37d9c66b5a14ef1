"""Cells: many runs that know nothing of each other, each of which leaves one small file.

A cell is one contender on one task, with one group size and one seed. Its file says what was run
(settings, versions, commit, machine) and what came of it (the learning curve). Cells whose file is
there are skipped, so that a long experiment can be interrupted, and seeds can be added, anywhere
and at any time. A file of other env steps than those that are asked for is refused.

Every cell has one process and one thread. Its time is CPU time, so that cells may run side by side;
its env steps are those that the simulator took.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.origins import origins, where

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, order=True)
class Cell:
    """One run.

    Attributes:
        experiment: The folder of its file, in `benchmarks/results/`.
        env: The task.
        contender: Who learns it.
        group_size: Episodes per update, or whatever the experiment says.
        seed: Of the run.
        num_env_steps: After how many env steps it ends; or about how many it takes, if it ends
            after a number of iterations.
        num_iterations: After how many iterations it ends, 0 if after a number of env steps.
    """

    experiment: str
    env: str
    contender: str
    group_size: int
    seed: int
    num_env_steps: int
    num_iterations: int = 0

    @property
    def path(self) -> Path:
        """Where its file is."""
        name = f"{self.contender}-n{self.group_size}-s{self.seed}.json"
        return RESULTS / self.experiment / self.env / name

    @property
    def is_done(self) -> bool:
        """Whether it has been run.

        Raises:
            ValueError: If what has been run ended after other env steps or iterations.
        """
        if not self.path.exists():
            return False
        found = Cell(**self.result()["cell"])
        if found != self:
            raise ValueError(
                f"{self.path} is of {found.num_env_steps} env steps and {found.num_iterations} "
                f"iterations, not of {self.num_env_steps} and {self.num_iterations}. Remove it, or "
                "give the experiment another name."
            )
        return True

    def result(self) -> dict[str, Any]:
        """What its file says.

        Raises:
            FileNotFoundError: If it hasn't been run.
        """
        return json.loads(self.path.read_text())

    def __str__(self) -> str:
        """Names it in a line."""
        return f"{self.env} {self.contender} n{self.group_size} s{self.seed}"


CellFunction = Callable[[Cell], dict[str, Any]]
"""Runs a cell, and gives what its file says beside the cell itself and `where`."""


def seeds_run(experiment: str, env: str) -> set[int]:
    """The seeds of which some cell of an experiment has been run on an env."""
    files = (RESULTS / experiment / env).glob("*-s*.json")
    return {int(path.stem.rpartition("-s")[2]) for path in files}


def run_all(
    cells: Iterable[Cell],
    run: CellFunction,
    jobs: int,
    num_cpus: int = 1,
    cells_per_process: int = 10,
) -> None:
    """Runs the cells that have no file yet, `jobs` at a time, and says how far it is.

    Args:
        cells: The cells.
        run: What runs one.
        jobs: How many at a time.
        num_cpus: How many CPUs Ray is told of for each: one more than a cell has remote actors.
        cells_per_process: After how many a process is replaced, as each algorithm makes it grow. 1
            costs 10 seconds per cell, and leaves nothing behind.

    Raises:
        Exception: What the first cell that failed raised, after all others have been run.
    """
    missing = [cell for cell in cells if not cell.is_done]
    start, failure = time.monotonic(), None
    # NumPy reads it when it is imported; a second thread of a small matrix only waits.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in missing:
        waiting.put(cell)
    with ThreadPoolExecutor(jobs) as pool:
        results: queue.SimpleQueue[tuple[Cell, float | Exception]] = queue.SimpleQueue()
        for _ in range(jobs):
            pool.submit(_work, waiting, results, run, num_cpus, cells_per_process)
        for done in range(1, len(missing) + 1):
            cell, result = results.get()
            if isinstance(result, Exception):
                failure = result
                print(f"FAILED {cell}: {result!r}", flush=True)
                continue
            seconds = time.monotonic() - start
            left = seconds / done * (len(missing) - done)
            print(
                f"{done} of {len(missing)}: {cell}: {result:.1f}; about {left / 60:.0f} min left",
                flush=True,
            )
    if failure:
        raise failure


def _work(
    waiting: Any, results: Any, run: CellFunction, num_cpus: int, cells_per_process: int
) -> None:
    """Runs waiting cells, one at a time, in processes of its own."""
    while not waiting.empty():
        # Fresh ones, as Ray and torch don't survive a fork, and each for some cells only.
        # `max_tasks_per_child` would do that, but Python 3.11's pools stand still after it; and a
        # process that crashes takes one cell with it, not the pool.
        process = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _quiet_process, (num_cpus,)
        )
        with process:
            for _ in range(cells_per_process):
                try:
                    cell = waiting.get_nowait()
                except queue.Empty:
                    break
                try:
                    results.put((cell, process.submit(_run_one, cell, run).result()))
                except Exception as error:
                    results.put((cell, error))
                    if isinstance(error, BrokenProcessPool):
                        break


def _quiet_process(num_cpus: int) -> None:
    import logging
    import threading

    # Who is killed can't tell its processes, which would go on for nobody.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    import ray
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    ray.init(
        address="local",  # also where RAY_ADDRESS names a cluster
        num_cpus=num_cpus,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    logging.disable(logging.WARNING)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run_one(cell: Cell, run: CellFunction) -> float:
    begun_on, start = where(), time.process_time()
    outcome = run(cell)
    outcome["cpu_seconds"] = round(time.process_time() - start, 1)
    result = {"cell": asdict(cell), "where": begun_on, **outcome}
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all.
    unfinished = cell.path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result) + "\n")
    unfinished.replace(cell.path)
    return last_return(result)


def last_return(result: dict[str, Any]) -> float:
    """The mean return of the episodes that ended in the last 10 % of a cell's env steps.

    If none did, of those that ended last; nan if none ended at all.
    """
    return _mean_return(result, env_steps(result), len(result["curve"]["steps"]))


def env_steps(result: dict[str, Any]) -> int:
    """How many a cell took: those it was given, if it ended after them."""
    cell = result["cell"]
    return result["curve"]["steps"][-1] if cell.get("num_iterations") else cell["num_env_steps"]


def return_until(result: dict[str, Any], cpu_seconds: float) -> float:
    """The same as if the cell had ended after so much time, of which it counts the last 10 %."""
    curve = result["curve"]
    end = max(1, sum(seconds <= cpu_seconds for seconds in curve["cpu_seconds"]))
    return _mean_return(result, curve["steps"][end - 1], end)


def _mean_return(result: dict[str, Any], num_env_steps: int, end: int) -> float:
    steps, returns, episodes = (result["curve"][name] for name in ("steps", "return", "episodes"))
    ended = [i for i in range(end) if episodes[i]]
    # Long episodes of envs side by side end together: there may be none in those 10 %.
    last = [i for i in ended if steps[i] > 0.9 * num_env_steps] or ended[-1:]
    if not last:
        return float("nan")
    return sum(returns[i] * episodes[i] for i in last) / sum(episodes[i] for i in last)


def status(cells: Iterable[Cell]) -> str:
    """What is done, at which commits, and missing, and what the missing ones will take."""
    lines, total = [], 0.0
    cells = list(cells)
    done = {cell: cell.result() for cell in cells if cell.is_done}
    for env in dict.fromkeys(cell.env for cell in cells):
        ours = [cell for cell in cells if cell.env == env]
        known = {cell: done[cell]["cpu_seconds"] for cell in ours if cell in done}
        needed = sum(_expected_seconds(cell, known) for cell in ours if cell not in done)
        total += needed
        lines.append(
            f"{env:20} {len(known):4} of {len(ours):4} done, "
            f"{needed / 3600:6.2f} CPU hours missing{'' if known else ' (a guess)'}"
        )
    lines.append(f"{'':20} {total / 3600:.2f} CPU hours in all")
    return "\n".join([*lines, *([f"Done at {origins(done.values())}"] if done else [])])


def _expected_seconds(cell: Cell, known: dict[Cell, float]) -> float:
    """As much per env step as the cell most like it took; a millisecond if there is none."""
    if not known:
        return 1e-3 * cell.num_env_steps

    def difference(other: Cell) -> tuple[bool, bool, float]:
        other_size = math.log(other.num_env_steps / cell.num_env_steps)
        is_other = other.contender != cell.contender
        return is_other, other.experiment != cell.experiment, abs(other_size)

    alike = min(known, key=difference)
    return known[alike] * cell.num_env_steps / alike.num_env_steps

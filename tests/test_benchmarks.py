"""Long experiments can be interrupted and go on; their reports come from what they left."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from benchmarks import baselines, bootstrap, cells, origins, reporting
from benchmarks.cells import Cell
from benchmarks.evidence.cleanrl import ppo_config
from benchmarks.training import ScaleRewards, after, train


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


def cell(seed: int, contender: str = "bins") -> Cell:
    return Cell("experiment", "CartPole-v1", contender, 4, seed, 100)


def outcome(of: Cell) -> dict[str, Any]:
    """20 episodes, one per 5 env steps, each with its own number as return."""
    if of.contender == "broken":
        raise ZeroDivisionError
    if of.contender == "crashes":
        os._exit(1)
    steps = list(range(5, 105, 5))
    return {"curve": {"steps": steps, "return": list(range(20)), "episodes": [1] * 20}}


def no_ray(num_cpus: int) -> None:
    pass


def test_a_cell_says_what_was_run_and_where() -> None:
    cells._run_one(cell(3), outcome)
    result = cell(3).result()
    assert Cell(**result["cell"]) == cell(3)
    assert result["where"]["versions"].keys() >= {"ray", "torch", "python"}
    assert result["cpu_seconds"] >= 0.0
    # The last 10 % of 100 env steps: the episodes that ended at 95 and 100, but not at 90.
    assert cells.last_return(result) == (18 + 19) / 2


def test_a_cell_of_iterations_ends_with_the_env_steps_it_has_taken() -> None:
    one = dataclasses.replace(cell(3), num_env_steps=7, num_iterations=20)
    cells._run_one(one, outcome)
    result = one.result()
    assert cells.env_steps(result) == 100
    assert cells.last_return(result) == (18 + 19) / 2


def test_what_ended_last_stands_for_a_window_in_which_nothing_ended() -> None:
    """Long episodes of all envs end together: at 50 and 100 of 100 env steps, at 50 of 95."""
    steps, ended = list(range(5, 105, 5)), (50, 100)
    curve = {
        "steps": steps,
        "return": [-float(step) if step in ended else 0.0 for step in steps],
        "episodes": [8 if step in ended else 0 for step in steps],
        "cpu_seconds": [float(step) for step in steps],
    }
    result = {"cell": dataclasses.asdict(cell(3)), "curve": curve}
    assert cells.last_return(result) == -100.0
    assert cells.return_until(result, 95.0) == -50.0
    assert np.isnan(cells.return_until(result, 45.0))


def test_a_cell_of_another_budget_is_not_taken_for_this_one() -> None:
    cells._run_one(cell(3), outcome)
    assert cell(3).is_done
    with pytest.raises(ValueError, match="100 env steps"):
        _ = dataclasses.replace(cell(3), num_env_steps=200).is_done


def test_what_a_cell_was_run_on_is_known_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that is made meanwhile isn't the one that was run."""
    commits = iter(["begun", "made meanwhile"])
    monkeypatch.setattr(origins, "_git", lambda *arguments: next(commits))
    cells.where.cache_clear()
    cells._run_one(cell(3), outcome)
    cells._run_one(cell(4), outcome)
    cells.where.cache_clear()
    found = [cell(seed).result()["where"] for seed in (3, 4)]
    assert found[0] == found[1]
    assert (found[0]["commit"], found[0]["changed"]) == ("begun", True)
    assert "begun, changed: 2" in cells.status([cell(3), cell(4)])


def test_seeds_that_were_added_are_found() -> None:
    for seed in (3, 12):
        cells._run_one(cell(seed), outcome)
    assert cells.seeds_run("experiment", "CartPole-v1") == {3, 12}
    assert cells.seeds_run("experiment", "Acrobot-v1") == set()


def test_a_cell_that_fails_leaves_nothing() -> None:
    with pytest.raises(ZeroDivisionError):
        cells._run_one(cell(0, "broken"), outcome)
    assert not cell(0, "broken").is_done


@pytest.mark.slow
def test_what_is_there_is_skipped_and_what_fails_does_not_stop_the_rest(results: Path) -> None:
    """In processes of their own, which take their functions from this file."""
    # The folder is a setting of the module, which other processes don't have.
    ours = [Cell(str(results), *list(vars(c).values())[1:]) for c in map(cell, range(3))]
    ours[0].path.parent.mkdir(parents=True)
    ours[0].path.write_text(
        json.dumps({"cell": dataclasses.asdict(ours[0]), "where": "in an earlier run"})
    )
    broken = Cell(str(results), "CartPole-v1", "broken", 4, 0, 100)
    with pytest.raises(ZeroDivisionError):
        cells.run_all([broken, *ours], outcome, jobs=2)
    assert ours[0].result()["where"] == "in an earlier run"
    assert ours[1].is_done and ours[2].is_done and not broken.is_done


@pytest.mark.slow
def test_processes_take_turns_and_one_that_crashes_costs_one_cell(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These cells need no Ray.
    monkeypatch.setattr(cells, "_quiet_process", no_ray)
    crashing, *ours = (
        Cell(str(results), "CartPole-v1", contender, 4, seed, 100)
        for contender, seed in [("crashes", 0), *(("bins", seed) for seed in range(3))]
    )
    with pytest.raises(BrokenProcessPool):
        cells.run_all([ours[0], crashing, *ours[1:]], outcome, jobs=1, cells_per_process=2)
    assert all(one.is_done for one in ours) and not crashing.is_done


def test_the_status_counts_what_is_missing() -> None:
    cells._run_one(cell(0), lambda of: {**outcome(of), "cpu_seconds": 0.0})
    text = cells.status([cell(0), cell(1)])
    assert "CartPole-v1" in text and "1 of    2 done" in text


def test_missing_cells_take_as_long_as_the_one_most_like_them() -> None:
    """The same contender's before another's, and of those the one of the most similar length."""
    for contender, steps, seconds in [("a", 100, 3600.0), ("a", 1000, 360.0), ("b", 1000, 36.0)]:
        done = dataclasses.replace(cell(0, contender), num_env_steps=steps, group_size=steps)
        cells._run_one(done, outcome)
        done.path.write_text(json.dumps({**done.result(), "cpu_seconds": seconds}))
    ran = [
        dataclasses.replace(cell(0, contender), num_env_steps=steps, group_size=steps)
        for contender, steps in [("a", 100), ("a", 1000), ("b", 1000)]
    ]

    def hours(contender: str, num_env_steps: int) -> str:
        one = dataclasses.replace(cell(1, contender), num_env_steps=num_env_steps)
        return cells.status([*ran, one]).splitlines()[0].split(", ")[1].split(" CPU")[0].strip()

    assert hours("a", 200) == "2.00"
    assert hours("a", 10_000) == "1.00"
    assert hours("b", 100_000) == "1.00"
    assert hours("another", 100) == "1.00"


def test_rewards_are_scaled_by_sums_that_go_on_from_piece_to_piece_of_an_episode() -> None:
    """The same rewards in one piece and in three: one running sum, so one deviation."""
    rewards = np.random.default_rng(0).normal(size=60)
    env_runner = SimpleNamespace(config=SimpleNamespace(gamma=0.99))

    def scaled(cuts: list[int]) -> float:
        callback = ScaleRewards()
        for number, piece in enumerate(np.split(rewards, cuts)):
            episode = SingleAgentEpisode(
                id_="one",
                observations=[0] * (len(piece) + 1),
                actions=[0] * len(piece),
                rewards=list(piece),
                terminated=number == len(cuts),
                len_lookback_buffer=0,
            )
            callback.on_sample_end(env_runner=env_runner, samples=[episode])
        return float(episode.get_rewards()[-1])

    total, sums = 0.0, []
    for reward in rewards:
        total = 0.99 * total + reward
        sums.append(total)
    assert scaled([]) == pytest.approx(rewards[-1] / np.std(sums), rel=1e-3)
    assert scaled([20, 40]) == pytest.approx(scaled([]), rel=1e-12)


@pytest.mark.usefixtures("ray_session")
def test_ppo_scales_the_rewards_it_learns_from_and_not_those_that_are_shown() -> None:
    config = ppo_config(2, is_continuous=True, normalizes=True).environment("Pendulum-v1")
    config.training(train_batch_size_per_learner=400, minibatch_size=200, num_epochs=1)
    seen: list[float] = []
    config.learners(learner_connector=lambda *_, **__: SeesRewards(seen=seen))
    algo = config.build_algo()
    try:
        curve = train(algo, after(400))
    finally:
        algo.stop()
    # The first reward of Pendulum is up to -16, a sum of 200 steps about -1,200.
    assert curve["return"][-1] < -500.0
    assert -10.0 <= min(seen) < max(seen) <= 0.0
    assert np.mean(seen) > -1.0


class SeesRewards(ConnectorV2):
    def __init__(self, *args: Any, seen: list[float], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._seen = seen

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in episodes:
            self._seen.extend(episode.get_rewards())
        return batch


@pytest.mark.usefixtures("ray_session")
def test_rollouts_have_updates_as_large_as_ppos_and_the_ridge_completes_them() -> None:
    result = baselines.run_cell(
        Cell("experiment", "CartPole-v1", "ridge-0.95-rollouts-64", 4, 0, 1_500)
    )
    settings = result["settings"]
    assert (settings["batch_mode"], settings["group_size"]) == ("truncate_episodes", 8)
    assert settings["bootstrap_truncated"]
    assert settings["lambda_"] == 0.95
    assert result["curve"]["steps"] == [512, 1024, 1536]
    # Of whole episodes, whose pieces are in several groups.
    assert result["curve"]["return"] == pytest.approx(result["curve"]["length"], abs=0.1)
    assert max(result["curve"]["return"]) < 64.0


def test_tables_leave_out_what_has_not_been_run() -> None:
    cells._run_one(cell(3), outcome)
    found = reporting.results_of([cell(3), cell(4), cell(3, "ridge")])
    steps = {("CartPole-v1", 4): 100, ("CartPole-v1", 32): 1_000}
    table = reporting.table(found, ["bins", "ridge"], steps)
    assert "bins" in table
    assert "ridge" not in table
    assert "1,000" not in table
    assert "Nothing" in reporting.table({}, ["bins"], steps)


def test_the_probability_of_improvement_counts_pairs_task_by_task() -> None:
    ours = {"a": np.array([3.0, 4.0]), "b": np.array([1.0, 1.0])}
    theirs = {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 0.0])}
    # Task a: 4 of 4 pairs. Task b: 2 wins and 2 draws of 4.
    assert bootstrap.probability_of_improvement(ours, theirs).value == (1.0 + 0.75) / 2
    assert bootstrap.probability_of_improvement(theirs, ours).value == (0.0 + 0.25) / 2
    with pytest.raises(ValueError, match="Tasks differ"):
        bootstrap.probability_of_improvement(ours, {"a": ours["a"]})


def test_resampling_stays_within_tasks() -> None:
    """Tasks differ by far more than runs: resampled means stay near the middle."""
    scores = {"a": np.array([0.0, 1.0]), "b": np.array([100.0, 101.0])}
    estimate = bootstrap.interquartile_mean(scores)
    assert estimate.value == 50.5
    assert 50.0 <= estimate.low < estimate.value < estimate.high <= 51.0


def test_tasks_count_alike_in_means_whatever_the_number_of_their_runs() -> None:
    scores = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([11.0])}
    estimate = bootstrap.mean_over_tasks(scores)
    assert estimate.value == 6.0
    assert 5.5 <= estimate.low < 6.0 < estimate.high <= 6.5


def test_curves_of_seeds_that_end_at_other_times_go_to_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 10 and 30 seconds; the one that is through stays where it is."""
    drawn: list[Any] = []
    monkeypatch.setattr(reporting, "save", lambda figure, *_, **__: drawn.append(figure))
    curves = [(np.array([0.0, end]), np.array([0.0, end])) for end in (10.0, 30.0)]
    reporting.draw({"CartPole-v1": {"gpg": curves}}, "return", tmp_path / "picture", unit=1)
    at, mean = drawn[0].axes[0].lines[0].get_data()
    assert at[-1] == 20.0
    assert mean[-1] == (10.0 + 20.0) / 2


def test_scores_are_normalized_by_the_worst_and_the_best() -> None:
    scores = {"a": np.array([-200.0, -100.0, 0.0])}
    normalized = bootstrap.normalized(scores, worst={"a": -200.0}, best={"a": -100.0})
    np.testing.assert_array_equal(normalized["a"], [0.0, 1.0, 2.0])
    assert bootstrap.mean_and_error(scores["a"]) == (-100.0, pytest.approx(100.0 / 3**0.5))


@pytest.mark.slow
def test_throughput_is_measured_in_one_process_and_with_remote_ones() -> None:
    rows = ["cartpole-32", "cartpole-32-runners-2"]
    small = ["--group-size", "64", "--episode-length", "0", "--repetitions", "1"]
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", "--without-peers", "--rows", *rows, *small],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert re.search(r"^ridge +[\d,]+ ", printed, re.M)
    assert re.search(r"^ridge / bins: \d\.\d+$", printed, re.M)
    assert re.search(r"^GPG ahead +[\d,]+ steps/s$", printed, re.M)
    assert "RLlib" not in printed

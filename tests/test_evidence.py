"""The evidence: what is run is what the protocol says, and what is reported is what was run."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cells
from benchmarks.cells import Cell
from benchmarks.evidence import costs, paper, protocol, signal_to_noise, simulators
from benchmarks.evidence.__main__ import main
from benchmarks.evidence.experiments import ENVS, EXPERIMENTS, cells_of, run_cell

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("env", "gpg", "shared"),
    [
        ("Hopper-v5", ("ridge-0.95-rollouts-256", 8), 3),  # PPO, PPO with lambda 1, GPG
        ("HalfCheetah-v5", ("ridge-0.98-rollouts-256-universal", 8), 3),
        ("LunarLander-v3", ("ridge-0.98", 4), 3),
    ],
)
def test_experiments_share_their_cells(env: str, gpg: tuple[str, int], shared: int) -> None:
    ppo, ladder = (protocol.cells_of(experiment, env, (107,)) for experiment in ("ppo", "ladder"))
    assert (ladder[-1].contender, ladder[-1].group_size) == gpg
    assert ladder[-1] == ppo[-1]
    assert len({*ppo, *ladder}) == len(ppo) + len(ladder) - shared


def test_group_sizes_are_compared_with_bins_and_with_the_ridge_of_the_task() -> None:
    groups = protocol.cells_of("groups", "Hopper-v5", (107,))
    assert len(groups) == len({*groups}) == 2 * len(protocol.GROUP_SIZES)
    chosen = {("time", 16)}
    assert {*groups} & {*protocol.cells_of("ppo", "Hopper-v5", (107,))} == {
        cell for cell in groups if (cell.contender, cell.group_size) in chosen
    }


def test_everyone_is_on_every_task_but_for_the_ladders_own() -> None:
    for env in protocol.TASKS:
        found = [cell.contender for cell in protocol.cells_of("ppo", env, (107,))]
        assert len(found) == (5 if env in protocol.LADDER_TASKS else 4)
        assert ("ppo-lambda-1" in found) == (env in protocol.LADDER_TASKS)


def test_status_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["evidence", "status", "ppo", "--envs", "Ant-v5"])
    main()
    assert "0 of   20 done" in capsys.readouterr().out


def test_processes_find_what_runs_a_cell() -> None:
    """A spawned process has no `__main__` of a package, where the command is."""
    code = (
        "import pickle, runpy, sys; sys.argv = ['x', 'status', 'simulators'];"
        "found = runpy.run_module('benchmarks.evidence', run_name='__main__', alter_sys=True);"
        "print(pickle.dumps(found['run_cell']))"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "benchmarks.evidence.experiments" in printed
    assert "__main__" not in printed


def test_seeds_that_settings_were_chosen_on_are_never_reported() -> None:
    with pytest.raises(SystemExit, match="below 100"):
        protocol.cells_of("ppo", "Ant-v5", (43, 105))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("contender", "group_size"),
    [("rllib-ppo", 0), ("sb3-ppo", 0), ("ridge-0.95", 2), ("ridge-0.95-rollouts-256", 2)],
)
def test_a_run_of_the_evidence_ends_with_an_evaluation(contender: str, group_size: int) -> None:
    """PPO with its filter of observations, on fresh episodes of Pendulum, all 200 steps long."""
    if contender == protocol.SB3_PPO:
        pytest.importorskip("stable_baselines3", reason="in the optional extra `benchmarks`")
    outcome = run_cell(Cell("x", "Pendulum-v1", contender, group_size, 0, 800))
    curve = outcome["curve"]
    assert curve["steps"][-1] >= 800
    assert set(curve["length"]) == {200.0}
    # PPO leaves some unfinished.
    assert 0 < sum(curve["episodes"]) <= curve["steps"][-1] / 200
    assert all(len(values) == len(curve["steps"]) for values in curve.values())
    assert curve.keys() >= {"return", "cpu_seconds", "seconds"}
    assert [len(outcome["evaluation"][how]) for how in ("sampled", "greedy")] == [20, 20]
    assert all(-2000.0 < value < 0.0 for value in outcome["evaluation"]["sampled"])
    assert 2**27 < outcome["peak_memory"] < 2**34
    json.dumps(outcome, allow_nan=False)


def test_the_report_compares_at_equal_env_steps_and_at_equal_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPG ends a little behind PPO, in half of the time: by then PPO has come half as far."""
    from benchmarks.evidence import over_tasks
    from benchmarks.evidence import ppo_page as report

    task = protocol.TASKS["Acrobot-v1"]
    for module in (protocol, report, costs):
        monkeypatch.setattr(module, "TASKS", {"Acrobot-v1": task})
    monkeypatch.setattr(costs, "ALONE_TASKS", ("Acrobot-v1",))
    monkeypatch.setattr(protocol, "ALONE_TASKS", ("Acrobot-v1",))
    seconds = {"rllib-ppo": 20.0, "ridge-0.98": 10.0}
    # One seed more than the protocol's has been added.
    for one in protocol.cells_of("ppo", "Acrobot-v1", (*protocol.SEEDS, 105)):
        if one.contender not in seconds:
            continue
        share = np.linspace(0.01, 1.0, 100)
        final = (100.0 if one.contender == "rllib-ppo" else 90.0) + one.seed / 1000
        cells._run_one(
            one,
            lambda of, share=share, final=final: {
                "curve": {
                    "steps": (share * of.num_env_steps).tolist(),
                    "return": (share * final).tolist(),
                    "length": [1.0] * 100,
                    "episodes": [1] * 100,
                    "cpu_seconds": (share * seconds[of.contender]).tolist(),
                    # Half of the clock went to something else.
                    "seconds": (share * seconds[of.contender] * 2.0).tolist(),
                },
                "evaluation": {"sampled": [final] * 20, "greedy": [final + 1.0] * 20},
                "peak_memory": 2**29,
            },
        )
    runs = report.runs_of_ppo()
    pairs = over_tasks.pairs_of(runs, protocol.GPG, protocol.RLLIB_PPO)
    found = over_tasks.compare(pairs)
    assert [found[name].value for name in ("sampled", "greedy", "CPU time")] == [0.0, 0.0, 1.0]
    ways = "100 ± 0 (6) / 90 ± 0 (6) | 101 ± 0 (6) / 91 ± 0 (6) | 48 ± 0 (6) / 86 ± 0 (6)"
    assert f"| Acrobot-v1 | rllib-ppo | {ways} |" in report.table_of_losses(runs)
    for how, row in (("sampled", "100 | 90"), ("greedy", "101 | 91")):
        ppo, gpg = (f"{value} ± 0 (6)" for value in row.split(" | "))
        line = f"| {ppo} | not run | not run | not run | {gpg} |"
        assert line in report.table_of_returns(runs, how)
    assert "| Acrobot-v1 | 512 ± 0 (6) | not run" in costs.table_of_memory(runs)
    text = costs.table_of_seconds(runs)
    assert "| Acrobot-v1 | 20 ± 0 (6) | not run | not run | not run | 10 ± 0 (6) |" in text
    assert "| of the clock, at least | 0.50 |  |  |  | 0.50 |" in text
    # A tenth of the env steps, for which PPO has taken 2 of 20 seconds beside others.
    alone = protocol.cells_of("alone", "Acrobot-v1")[0]
    times = {"steps": [alone.num_env_steps], "cpu_seconds": [1.9], "seconds": [3.1]}
    cells._run_one(alone, lambda of: {"curve": {**times, "return": [0.0], "episodes": [1]}})
    text = costs.table_of_time_alone()
    assert "| Acrobot-v1 | rllib-ppo | 2 | 2 | 3 |" in text
    assert "| Acrobot-v1 | sb3-ppo | not run | not run | not run |" in text
    page = tmp_path / "ppo.md"
    page.write_text(report.PAGE.read_text())
    readme = tmp_path / "README.md"
    readme.write_text(report.README.read_text())
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report.reporting, "DOCS", tmp_path)
    report.write()
    never, always = "0.00 (0.00 to 0.00)", "1.00 (1.00 to 1.00)"
    for which in ("all", "held out", "all, unseen seeds"):
        assert f"| rllib-ppo | {which}: 1 | {never} | {never} | {always} |" in page.read_text()
    assert "![Mean return against env steps](../images/ppo_steps.png)" in page.read_text()
    short = readme.read_text()
    ways = "**100 ± 0 (6)** | 90 ± 0 (6) | 48 ± 0 (6) | **86 ± 0 (6)**"
    assert f"| Acrobot-v1 | {ways} |\n" in short
    assert "| *probability that GPG is better* |  | 0.00 |  | 1.00 |" in short
    pictures = {path.name for path in (tmp_path / "images").iterdir()}
    assert pictures == {
        f"ppo_{a}.{s}" for a in ("steps", "cpu_seconds", "updates") for s in ("png", "svg")
    }


def test_only_seeds_that_both_have_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO is ahead on the seed that both have, and behind on the one that it alone has."""
    from benchmarks.evidence import over_tasks, ppo_page

    monkeypatch.setattr(over_tasks, "SEEDS_SEEN", (101,))

    def run(seed: int, final: float) -> Any:
        curve = {"steps": [200_000], "return": [final], "episodes": [1], "cpu_seconds": [1.0]}
        found = {"sampled": [final] * 20, "greedy": [final] * 20}
        cell = {"seed": seed, "num_env_steps": 200_000}
        return {"cell": cell, "curve": curve, "evaluation": found}

    runs: Any = {name: {} for name in protocol.CONTENDERS}
    runs["gpg"] = {"Acrobot-v1": [run(101, -90.0)], "Pendulum-v1": [run(102, -200.0)]}
    runs["rllib-ppo"] = {"Acrobot-v1": [run(100, -300.0), run(101, -80.0)]}
    text = over_tasks.table_of_comparisons(runs)
    assert "| rllib-ppo | all: 1 | 0.00 (1 seed) |" in text
    assert "unseen" not in text and "sb3-ppo" not in text
    ways = " | ".join(["-80 (1 seed) / -90 (1 seed)"] * 3)
    assert f"| Acrobot-v1 | rllib-ppo | {ways} |" in ppo_page.table_of_losses(runs)
    runs["rllib-ppo"]["Pendulum-v1"] = [run(102, -300.0)]
    text = over_tasks.table_of_comparisons(runs)
    assert "| rllib-ppo | all: 2 | 0.50 (1 seed) |" in text
    assert "| rllib-ppo | all, unseen seeds: 1 | 1.00 (1 seed) |" in text


def test_zero_is_the_untrained_policy_also_where_no_first_episode_has_ended() -> None:
    """The first group of the paper's GPG is of episodes; first rollouts end none, nor does PPO."""
    from benchmarks.evidence import over_tasks

    def results(first: float, episodes: int, final: float, number: int = 3) -> Any:
        curve = {"return": [first, final], "episodes": [episodes, 8]}
        found = {"sampled": [final] * 20, "greedy": [final / 2.0] * 20}
        return {
            "Pendulum-v1": [
                {"cell": {"seed": seed}, "curve": curve, "evaluation": found}
                for seed in range(number)
            ]
        }

    runs = {name: results(0.0, 0, -90.0) for name in protocol.CONTENDERS}
    runs[protocol.GPG_PAPER] = results(-500.0, 16, -400.0)
    runs[protocol.GPG] = results(0.0, 0, -295.0)
    # A seed that the others don't have counts nothing.
    runs[protocol.GPG]["Pendulum-v1"] += [{"cell": {"seed": 7}, "curve": None, "evaluation": None}]
    # It isn't everywhere, and isn't waited for.
    runs[protocol.PPO_LAMBDA_1] = {}
    text = over_tasks.table_of_means(runs)
    assert "| mean of 1 task, 3 seeds | interquartile |" in text
    assert f"| rllib-ppo |{' 1.00 (1.00 to 1.00) |' * 4}" in text
    # Greedy: (-147.5 + 500) / (-45 + 500).
    assert f"| gpg |{' 0.50 (0.50 to 0.50) |' * 2}{' 0.77 (0.77 to 0.77) |' * 2}" in text
    assert "ppo-lambda-1" not in text
    # 1 is the best one's mean, whoever it is; few seeds have no interval.
    runs[protocol.RLLIB_PPO] = results(0.0, 0, -500.0, number=1)
    text = over_tasks.table_of_means(runs)
    assert "| rllib-ppo | 0.00 (1 seed) |" in text
    assert "| sb3-ppo | 1.00 (1 seed) |" in text


def test_progress_is_shown_by_env_steps_and_by_the_time_that_ppo_takes() -> None:
    """Returns grow from 10 to their ends in time: of GPG, half as far, in half of PPO's time."""
    from benchmarks.evidence import over_tasks

    share = np.linspace(0.01, 1.0, 100)

    def run(seed: int, final: float, seconds: float) -> Any:
        return {
            "cell": {"seed": seed, "num_env_steps": 1000},
            "curve": {
                "steps": (share * 1000).tolist(),
                "return": (10.0 + share * (final - 10.0)).tolist(),
                "episodes": [1] * 100,
                "cpu_seconds": (share * seconds).tolist(),
            },
            "evaluation": {"sampled": [final] * 20},
        }

    ends = dict.fromkeys(over_tasks.EVERYWHERE, (110.0, 20.0)) | {"gpg": (60.0, 10.0)}
    runs = {
        name: {env: [run(seed, *end) for seed in (0, 1)] for env in ("Hopper-v5", "Ant-v5")}
        for name, end in ends.items()
    }
    panels = over_tasks.curves_over_tasks(runs)
    assert list(panels) == ["env steps", "CPU time"]
    for title, name, halfway in (
        ("env steps", "rllib-ppo", 0.5),
        ("CPU time", "rllib-ppo", 0.5),
        ("env steps", "gpg", 0.25),
        ("CPU time", "gpg", 0.5),
    ):
        curves = panels[title][name]
        assert len(curves) == 2
        for at, values in curves:
            assert np.interp(0.5, at, values) == pytest.approx(halfway, abs=0.03)
            assert values[-1] == pytest.approx(0.5 if name == "gpg" else 1.0, abs=0.03)
    assert over_tasks.curves_over_tasks(runs | {"sb3-ppo": {}}) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("env", "contender", "group_size", "steps"),
    [
        # Rollouts of 128 steps.
        ("CartPole-v1", "time", 1, 256),
        ("CartPole-v1", "rllib-ppo", 4, 1024),
        # Whole episodes of 1,000 steps, as the untrained policy doesn't find the goal.
        ("CliffWalking-v1", "time", 2, 4000),
    ],
)
def test_a_run_of_the_paper_ends_after_its_iterations(
    env: str, contender: str, group_size: int, steps: int
) -> None:
    cell = paper._cell(paper.TABLE, env, contender, group_size, seed=7)
    outcome = run_cell(dataclasses.replace(cell, num_iterations=2))
    # Envs that RLlib's PPO resets at different times end a batch a few env steps late.
    late = outcome["curve"]["steps"][-1] - steps
    assert 0 <= late < (2 * group_size if contender == "rllib-ppo" else 1)
    assert len(outcome["evaluation"]["sampled"]) == 20
    json.dumps(outcome, allow_nan=False)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_the_simulators_are_asked_about_the_same_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "EPISODES", 40)
    (cell,) = simulators.cells_of("CartPole-v1")
    returns = run_cell(dataclasses.replace(cell, num_iterations=15))["returns"]
    untrained, trained = (
        [np.mean(returns[policy][where]) for where in ("gymnasium", "envpool")]
        for policy in ("untrained", "trained")
    )
    assert max(untrained) < 40.0 < 80.0 < min(trained)
    assert all(simulators.p_value(of_policy) > 1e-4 for of_policy in returns.values())
    # Two policies are told apart.
    both = {
        "gymnasium": returns["untrained"]["gymnasium"],
        "envpool": returns["trained"]["envpool"],
    }
    assert simulators.p_value(both) < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_signal_is_measured_before_and_after_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_to_noise, "GROUPS", 16)
    (cell,) = signal_to_noise.cells_of("LunarLander-v3")
    points = run_cell(dataclasses.replace(cell, num_env_steps=1000))["points"]
    assert [len(point["lengths"]) for point in points] == [4 * 26] * 3
    for point in points:
        assert point["estimates"].keys() == protocol.ADVANTAGES.keys()
        assert -1.0 <= point["estimates"]["time"]["cosine"] <= 1.0
        assert all(np.isfinite(list(found.values())).all() for found in point["estimates"].values())


def test_signal_to_noise_of_a_known_distribution() -> None:
    """A mean of squared length 25 in noise of 100 dimensions with variance 4 each."""
    rng, mean = np.random.default_rng(0), np.eye(100)[0] * 5.0
    gradients = mean + 2.0 * rng.normal(size=(2000, 100))
    found = signal_to_noise.signal(gradients, gradients)
    assert found["signal_to_noise"] == pytest.approx(25 / 400, rel=0.05)
    assert found["cosine"] > 0.97
    # Noise alone has no signal, however few groups there are, and says nothing of a direction.
    noise = [rng.normal(size=(8, 100)) for _ in range(200)]
    nothing = [signal_to_noise.signal(rows, rows) for rows in noise]
    assert np.mean([one["signal_to_noise"] for one in nothing]) < 0.01
    assert abs(np.mean([one["cosine"] for one in nothing])) < 0.02


@pytest.mark.parametrize("env", paper.PAPER_TASKS)
def test_ppo_keeps_cleanrls_settings_beside_gpg_with_its_own_gamma(env: str) -> None:
    from benchmarks.evidence.paper_runs import config_of

    ppo, gpg = (
        config_of(Cell("x", env, contender, 4, 0, 800, num_iterations=2))
        for contender in (protocol.RLLIB_PPO, "time")
    )
    assert ppo.gamma == 0.99
    assert gpg.gamma == paper.PAPER_TASKS[env].gamma


def test_every_experiment_has_cells_and_none_twice() -> None:
    for experiment in EXPERIMENTS:
        found = [cell for env in ENVS for cell in cells_of(experiment, env, None)]
        assert len(found) == len({cell.path for cell in found}) > 0
    table = [cell for env in ENVS for cell in cells_of("table1", env, None)]
    assert len(table) == 4 * 5 * 2 * 4
    assert {cell.num_iterations for cell in table} == {200}


def outcome_of(value: Callable[[Cell], float]) -> Callable[[Cell], dict[str, Any]]:
    def run(of: Cell) -> dict[str, Any]:
        numbers = np.arange(1, 11)
        curve = {
            "steps": (numbers * 100).tolist(),
            "return": np.linspace(0.0, value(of), 10).tolist(),
            "episodes": [1] * 10,
            "cpu_seconds": numbers.tolist(),
        }
        return {"curve": curve, "evaluation": {"sampled": [value(of)] * 20}}

    return run


def test_the_papers_page_has_its_figures_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CartPole as in the paper, but for N 16; LunarLander with the binnings that were run."""
    from benchmarks.evidence import paper_page

    for one in paper.table1_cells("CartPole-v1"):
        if one.contender == "time":
            below = 100.0 if one.group_size == 16 else 0.0
            published = paper.PUBLISHED["CartPole-v1"][one.group_size][0][0]
            cells._run_one(one, outcome_of(lambda _, value=published - below: value))
    for one in paper.binnings_cells("LunarLander-v3"):
        if one.group_size == 4:
            cells._run_one(one, outcome_of(lambda of: float(of.seed)))
    page = tmp_path / "paper.md"
    page.write_text(paper_page.PAGE.read_text())
    monkeypatch.setattr(paper_page, "PAGE", page)
    monkeypatch.setattr(paper_page.reporting, "DOCS", tmp_path)
    paper_page.write()
    text = page.read_text()
    figures = "481 ± 11 | 481 ± 0 (4) | 443 ± 15 | not run"
    # 32 rollouts of 128 steps; our ten iterations have taken 1,000.
    assert f"| CartPole-v1 | 32 | {figures} | 4,096 | 100 |" in text
    short = text.split("Below the paper")[1].split("## Figure 4")[0]
    assert short.count("| CartPole-v1 |") == 1 and "| CartPole-v1 | 16 | GPG | 428 ± 33 |" in short
    assert "| spatial | not run | 100 ± 0 (2) | not run | not run |" in text.replace("± 1", "± 0")
    # No run of PPO, so no picture of it.
    assert "(../images/paper_gpg.png)" in text and "paper_ppo" not in text
    pictures = {path.name for path in (tmp_path / "images").glob("*.png")}
    assert pictures == {"paper_gpg.png", "paper_env_steps.png", "paper_binnings.png"}

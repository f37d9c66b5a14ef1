"""Lines that show how far a run has come: in a loop, on a terminal, and in Ray Tune."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole

from rllib_gpg import GPG
from rllib_gpg.progress import ProgressCallback, groups_of, progress
from rllib_gpg.progress.criteria import Criteria
from rllib_gpg.progress.lines import Lines
from tests.envs import Identity, ShortOrLong, Slow
from tests.helpers import SMALL_NET, built, module_results, small_config

pytestmark = pytest.mark.usefixtures("ray_session")

LINE = re.compile(
    r"iteration +(\d+)(?:/\d+)? \| return +([\d.]+) \(([\d.]+) to ([\d.]+)\) \| "
    r"+([\d,]+) env steps, +([\d,]+)/s \| sample (\d+)% estimate (\d+)% update (\d+)%"
    r"(?: evaluate (\d+)%)?"
    r"(?: \| at most [\d:]+ left)?"
)


def lines_of(printed: str) -> list[Any]:
    return [LINE.fullmatch(line) for line in printed.splitlines() if line.startswith("iteration")]


def test_each_iteration_has_a_line_that_says_what_is_in_its_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with built(small_config(ShortOrLong, group_size=6)) as algo:
        results = list(progress(algo, {"training_iteration": 3}))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "stopped: training_iteration is 3, and 3 was asked for"
    lines = lines_of(printed)
    assert len(lines) == len(results) == 3
    for number, (line, result) in enumerate(zip(lines, results, strict=True), start=1):
        group = module_results(result)
        assert int(line[1]) == number == result["training_iteration"]
        for said, name in zip(line.groups()[1:4], ("mean", "p10", "p90"), strict=True):
            assert float(said) == pytest.approx(group[f"group_return_{name}"], abs=0.051)
        steps = result["env_runners"]["num_env_steps_sampled_lifetime"]
        assert int(line[5].replace(",", "")) == steps
        assert sum(int(share) for share in line.groups()[6:9]) <= 101
    # Nobody can tell from one iteration how fast it goes.
    assert [" left" in line[0] for line in lines] == [False, True, True]


def line_of(
    sampled: dict[str, float] | None = None, group: dict[str, float] | None = None, **result: Any
) -> str:
    """The line of a result that is made up."""
    result = {"training_iteration": 1, "time_this_iter_s": 2.0, "time_total_s": 2.0, **result}
    if sampled is not None:
        steps = {"num_env_steps_sampled": 10, "num_env_steps_sampled_lifetime": 10}
        result["env_runners"] = steps | sampled
    return Lines({}).of({**result, "learners": {"default_policy": group or {}}})


def test_of_rollouts_it_is_whole_episodes_that_are_shown() -> None:
    """A piece has earned next to nothing."""
    group = {f"group_return_{name}": 5.0 for name in ("mean", "p10", "p90")}
    rollouts = {"batch_mode": "truncate_episodes"}
    line = line_of({"episode_return_mean": 200.0}, group, config=rollouts)
    assert "return    200.0 |" in line
    assert "return    5.000 (" in line_of({}, group, config={"batch_mode": "complete_episodes"})


def test_small_returns_have_more_decimals() -> None:
    def line(mean: float, p10: float, p90: float) -> str:
        returns = {"group_return_mean": mean, "group_return_p10": p10, "group_return_p90": p90}
        return line_of({}, returns)

    assert "return    0.047 (0.000 to 0.250) |" in line(0.046875, 0.0, 0.25)
    assert "return     -9.5 (-12.0 to -0.1) |" in line(-9.5, -12.0, -0.125)
    # Of other algorithms, too.
    assert "return    0.047 |" in line_of({"episode_return_mean": 0.046875})
    assert "return     12.0 |" in line_of({"episode_return_mean": 12.0})
    # Until an episode has ended.
    assert "return        - |" in line_of({})
    assert "return        - |" in line_of({"episode_return_mean": float("nan")})


def test_what_learns_from_recordings_has_no_returns() -> None:
    """BC, for instance: it samples nothing."""
    assert line_of() == "iteration    1"
    # Nor has a speed who waits for others to sample.
    assert line_of(env_runners={"episode_return_mean": 12.0}) == "iteration    1 | return     12.0"


def test_the_time_of_an_evaluation_is_named_in_the_iteration_that_has_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(Identity).evaluation(evaluation_interval=2, evaluation_duration=2)
    with built(config) as algo:
        evaluate, seconds = algo.evaluate_episodes, iter([1.0, 0.0])

        def slow(*args: Any) -> None:
            time.sleep(next(seconds))
            evaluate(*args)

        monkeypatch.setattr(algo, "evaluate_episodes", slow)
        results = list(progress(algo, {"training_iteration": 4}))
    lines = lines_of(capsys.readouterr().out)
    assert [line[10] is not None for line in lines] == [False, True, False, True]
    # Of that iteration alone, as the others are.
    took = [
        int(line[10] or 0) / 100 * result["time_this_iter_s"]
        for line, result in zip(lines, results, strict=True)
    ]
    assert took[1] > 0.9 and took[3] < 0.9
    assert all(sum(int(share or 0) for share in line.groups()[6:10]) <= 102 for line in lines)


def test_a_metric_of_the_policy_is_enough_to_stop_and_ends_the_loop_after_its_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with built(small_config(ShortOrLong)) as algo:
        stop = {"training_iteration": 5, "group_num_episodes": 8}
        assert [result["training_iteration"] for result in progress(algo, stop)] == [1]
        stop = {"env_runners/num_episodes_lifetime": 24}
        assert [result["training_iteration"] for result in progress(algo, stop)] == [2, 3]
        # As far as was asked for, as a restored run may be.
        capsys.readouterr()
        assert list(progress(algo, {"training_iteration": 3})) == []
        said = capsys.readouterr().out
        assert said == "stopped: training_iteration is 3 already, and 3 was asked for\n"
        # Without criteria, it is up to the loop.
        for result in progress(algo):
            if result["training_iteration"] == 5:
                break
        assert algo.iteration == 5


def test_a_criterion_that_no_result_has_is_refused_with_the_nearest_name() -> None:
    with built(small_config(Identity)) as algo:
        with pytest.raises(ValueError, match=r"'group_retrun_mean' \(did you mean 'group_return_"):
            next(progress(algo, {"group_retrun_mean": 5}))
        # An evaluation may come later.
        assert next(progress(algo, {"evaluation/env_runners/episode_return_mean": 5}))


def test_a_criterion_that_may_still_come_is_talked_about_once_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of metrics of one's own nobody knows when they come; but nothing would end the run."""
    stop = {"env_runners/num_env_steps_sampled_lifetme": 5, "training_iteration": 3}
    with built(small_config(Identity)) as algo:
        assert len(list(progress(algo, stop))) == 3
    said = [line for line in capsys.readouterr().out.splitlines() if "so far" in line]
    assert said == [
        "`stop`: so far the results have no 'env_runners/num_env_steps_sampled_lifetme' (did you "
        "mean 'env_runners/num_env_steps_sampled_lifetime'?)."
    ]


@pytest.mark.parametrize("path", ["learners", "env_runners", "config/env"])
def test_a_criterion_that_is_no_number_is_refused(path: str) -> None:
    result = {
        "env_runners": {"episode_return_mean": 1.0},
        "learners": {"default_policy": {}},
        "config": {"env": "CartPole-v1"},
    }
    with pytest.raises(ValueError, match=f"`stop`: {path!r} isn't a number in the results"):
        Criteria({path: 1}).reached(result)


def test_timers_are_of_one_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLlib's own are exponential means, which the first iteration dominates for a hundred."""
    with built(small_config(Identity)) as algo:
        sample = algo._groups.next

        def slow(*args: Any) -> Any:
            time.sleep(1.0)
            return sample(*args)

        monkeypatch.setattr(algo._groups, "next", slow)
        assert algo.train()["timers"]["env_runner_sampling_timer"] > 1.0
        monkeypatch.setattr(algo._groups, "next", sample)
        assert algo.train()["timers"]["env_runner_sampling_timer"] < 0.9


def test_the_time_left_follows_from_the_last_iterations() -> None:
    """Worked out by hand: two iterations of 10 s and 40 steps each, then one of 5 s."""
    criteria = Criteria(
        {"training_iteration": 10, "env_runners/num_env_steps_sampled_lifetime": 200, "return": 9}
    )

    def result(iteration: int, seconds: float, steps: int) -> dict[str, Any]:
        sampled = {"num_env_steps_sampled_lifetime": steps}
        return {"training_iteration": iteration, "time_total_s": seconds, "env_runners": sampled}

    assert criteria.seconds_left(result(1, 10.0, 40)) is None
    # 120 more steps at 4/s come before 8 more iterations at 0.1/s.
    assert criteria.seconds_left(result(2, 20.0, 80)) == pytest.approx(30.0)
    # 1 more step at 119/15 per second
    assert criteria.seconds_left(result(3, 25.0, 199)) == pytest.approx(15.0 * 1 / 159)
    assert criteria.seconds_left(result(4, 25.5, 240)) == 0.0
    # Of a run without an end nobody can say it.
    endless = Criteria({"training_iteration": float("inf")})
    assert [endless.seconds_left(result(n, 10.0 * n, n)) for n in (1, 2)] == [None, None]


def test_a_terminal_shows_how_many_episodes_are_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(Slow, group_size=12).env_runners(num_envs_per_env_runner=2)
    with built(config) as algo:
        list(progress(algo, {"training_iteration": 1}))
        assert "episodes of the group" not in capsys.readouterr().out
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("TERM", "xterm-256color")
        list(progress(algo, {"training_iteration": 2}))
    shown = capsys.readouterr().out
    numbers = [int(n) for n in re.findall(r"iteration +2 \| (\d+) of 12 episodes of the gr", shown)]
    assert numbers == sorted(numbers) and len(set(numbers)) > 1
    assert "stopped: training_iteration" in shown.splitlines()[-1]


def test_other_algorithms_show_the_mean_return_of_episodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=200, num_epochs=1)
        .rl_module(model_config=SMALL_NET)
    )
    algo = config.build_algo()
    try:
        [result] = progress(algo, {"training_iteration": 1})
    finally:
        algo.stop()
    mean = result["env_runners"]["episode_return_mean"]
    assert f"return {mean:8.1f} | " in capsys.readouterr().out


def test_several_policies_have_a_return_each(capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(MultiAgentCartPole).environment(env_config={"num_agents": 2})
    config.multi_agent(
        policies={"p0", "p1"}, policy_mapping_fn=lambda agent_id, episode, **kwargs: f"p{agent_id}"
    )
    with built(config) as algo:
        [result] = progress(algo, {"training_iteration": 1})
    means = [result["learners"][policy]["group_return_mean"] for policy in ("p0", "p1")]
    returns = r" \([\d.]+ to [\d.]+\)"
    expected = f"return p0 {means[0]:.1f}{returns}, p1 {means[1]:.1f}{returns} \\| "
    assert re.search(expected, capsys.readouterr().out)


@pytest.mark.slow
def test_trials_of_tune_have_the_same_lines_with_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(ShortOrLong, group_size=tune.grid_search([4, 6]))
    run_config = tune.RunConfig(
        stop={"training_iteration": 2},
        storage_path=str(tmp_path),
        callbacks=[ProgressCallback()],
        verbose=0,
    )
    results = tune.Tuner(GPG, param_space=config, run_config=run_config).fit()
    printed = capsys.readouterr().out.splitlines()
    chosen = {line.split(" | ")[0]: line.split(" | ")[1] for line in printed if "=" in line}
    assert sorted(chosen.values()) == ["group_size=4", "group_size=6"]
    lines = [line for line in printed if "iteration" in line]
    assert len(lines) == 4 and {line.split(" | ")[0] for line in lines} == {*chosen}
    assert len({line.split(" | ")[0] for line in lines}) == len(results) == 2
    assert all(LINE.fullmatch(line.split(" | ", 1)[1]) for line in lines)


@pytest.mark.slow
def test_tune_prints_the_metrics_of_the_group_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_config = tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(tmp_path))
    tune.Tuner("GPG", param_space=small_config(Identity), run_config=run_config).fit()
    table = capsys.readouterr().out.split(" result ")[1]
    for metric in ("group_return_mean", "group_return_p10", "group_singleton_fraction"):
        assert f"learners/default_policy/{metric}" in table
    # RLlib's own as well; and not all there are.
    assert "env_runners/episode_return_mean" in table
    assert "learners/default_policy/gradients" not in table


def test_what_a_learner_logs_beside_modules_is_no_module() -> None:
    result = {"learners": {"bonus_mean": np.float64(0.1), "a": {"group_return_mean": 1.0}}}
    assert [module_id for module_id, _ in groups_of(result)] == ["a"]

"""The tuned examples run as a user runs them: as scripts, from the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental.internal_kv import _initialize_internal_kv

from rllib_gpg import GPG

EXAMPLES = Path(__file__).parent.parent / "tuned_examples"
REINFORCE = "reinforce_group_baseline.py"
SCRIPTS = [*sorted(path.name for path in EXAMPLES.glob("*_gpg.py")), REINFORCE]


NO_END = ("--stop-reward", "1000", "--stop-iters", "1000")
# What is started in the background of a script ignores Ctrl-C, and so do its children.
INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
del sys.argv[0]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def environment(home: Path, **env: str) -> dict[str, str]:
    """Of a script: Tune writes to ~/ray_results.

    It has a Ray of its own: by default it would join a cluster that another test has started
    meanwhile.
    """
    # What Ray may have set here, because it has found a token in the user's home.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    return {**inherited, "HOME": str(home), "RAY_ADDRESS": "local", **env}


def run_example(script: str, home: Path, *args: str, **env: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *args],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(home, **env),
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def path_after(label: str, output: str) -> Path:
    match = re.search(rf"{label}: (\S+)", output)
    assert match, output
    return Path(match[1])


def check_what_it_keeps(output: str) -> None:
    # Of several policies each return is named.
    assert re.search(r"^iteration +\d+/\d+ \| return +(?:\w+ +)?-?\d", output, re.MULTILINE), output
    assert path_after("learning curve", output).read_bytes().startswith(b"\x89PNG")
    assert (path_after("checkpoint", output) / "rllib_checkpoint.json").is_file()


LEARNED = [
    "cartpole_gpg.py",
    "cliff_walking_gpg.py",
    "curiosity_gpg.py",
    "own_baseline_gpg.py",
    "multi_agent_cartpole_gpg.py",
    "two_policies_gpg.py",
    REINFORCE,
]


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted({*SCRIPTS} - {*LEARNED}))
def test_an_example_that_takes_long_runs_and_keeps_what_it_says(
    script: str, tmp_path: Path
) -> None:
    # Of rollouts of 256 steps, the first episodes end in the 4th group.
    iterations = "4" if script == "half_cheetah_gpg.py" else "2"
    check_what_it_keeps(run_example(script, tmp_path, "--stop-iters", iterations))


@pytest.mark.learning
@pytest.mark.parametrize("script", LEARNED)
def test_an_example_passes_as_test_and_keeps_what_it_says(script: str, tmp_path: Path) -> None:
    """`--as-test` raises unless one group reaches the example's return."""
    check_what_it_keeps(run_example(script, tmp_path, "--as-test"))


@pytest.mark.learning
def test_one_policy_for_both_agents_learns(tmp_path: Path) -> None:
    args = ("--shared-policy", "--num-env-runners", "1", "--stop-reward", "300")
    run_example("multi_agent_cartpole_gpg.py", tmp_path, "--as-test", *args)


@pytest.mark.learning
def test_what_was_recorded_is_cloned(tmp_path: Path) -> None:
    run_example("record_and_clone.py", tmp_path, "--as-test")


@pytest.mark.learning
def test_as_test_fails_when_the_return_is_not_reached(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="not reached"):
        run_example("cartpole_gpg.py", tmp_path, "--as-test", "--stop-iters", "1")


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    """To all processes of the terminal, as a terminal sends it."""
    run = subprocess.Popen(
        [sys.executable, "-u", "-c", INTERRUPTIBLE, str(EXAMPLES / "cartpole_gpg.py"), *NO_END],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        start_new_session=True,
    )
    assert run.stdout
    with run:
        for line in run.stdout:
            if line.startswith("iteration    2/"):
                os.killpg(run.pid, signal.SIGINT)
                break
        output, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert "Stops after this iteration, with a checkpoint." in output
    assert "Traceback" not in output + errors
    checkpoint = path_after("checkpoint", output)
    assert f"to go on: GPG.from_checkpoint('{checkpoint}').train()" in output
    algo = GPG.from_checkpoint(checkpoint)
    assert 3 <= algo.iteration <= 10
    algo.stop()


@pytest.mark.slow
def test_what_a_run_keeps_goes_where_it_is_told(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    output = run_example(
        "cartpole_gpg.py", tmp_path, "--stop-iters", "1", "--storage-path", f"{kept}"
    )
    check_what_it_keeps(output)
    for label in ("learning curve", "checkpoint"):
        assert path_after(label, output).is_relative_to(kept)


@pytest.mark.slow
def test_another_env_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"`--env` doesn't apply.*'Acrobot-v1'"):
        run_example("cartpole_gpg.py", tmp_path, "--env", "Acrobot-v1")


@pytest.mark.slow
def test_the_search_over_group_sizes_prints_a_table_and_draws_the_curves(tmp_path: Path) -> None:
    search = ("--group-sizes", "3", "5", "--binnings", "time", "--seeds", "0", "1")
    output = run_example("tune_group_size.py", tmp_path, *search, "--stop-iters", "2")
    for group_size in (3, 5):
        # Two iterations are not enough for either seed.
        row = rf"^ +time +{group_size} +\d+\.\d ± +\d+\.\d +-  -$"
        assert re.search(row, output, re.MULTILINE), output
    assert path_after("learning curves", output).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_recording_example_records_and_clones(tmp_path: Path) -> None:
    few = ("--stop-iters", "1", "--record-groups", "1", "--clone-iters", "2", "--go-on-iters", "2")
    output = run_example("record_and_clone.py", tmp_path, *few)
    assert list(path_after("recording", output).rglob("*.parquet"))
    assert re.search(r"^mean return of the clone: \d+\.\d$", output, re.MULTILINE)
    # The first GPG, and the one that goes on from the clone.
    assert len(re.findall(r"^iteration +\d+/\d ", output, re.MULTILINE)) == 3


@pytest.mark.slow
def test_the_cluster_example_uses_all_nodes() -> None:
    """One head without room for env runners, and two workers, as Ray nodes on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        # The cluster asks for a token if this process has started a Ray before. It is in the user's
        # home, and who joins a Ray by its address must say that it has one.
        auth_mode = os.environ.get("RAY_AUTH_MODE", "disabled")
        output = run_example(
            "cluster_gpg.py",
            Path.home(),
            *("--stop-iters", "1", "--num-env-runners", "4"),
            RAY_ADDRESS=cluster.address,
            RAY_AUTH_MODE=auth_mode,
        )
    finally:
        cluster.shutdown()
        if ray.is_initialized():
            # Of the Ray of other tests, it has closed what envs and trainables are registered with.
            _initialize_internal_kv(ray._private.worker.global_worker.gcs_client)
    assert re.search(r"^iteration +1/1 ", output, re.MULTILINE)

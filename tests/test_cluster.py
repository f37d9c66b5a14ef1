"""An algorithm that asks Ray for more than it has says so, instead of waiting in silence."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import ray

from rllib_gpg import GPGConfig
from rllib_gpg.cluster import why_it_waits

ROOT = Path(__file__).parent.parent


@pytest.mark.usefixtures("ray_session")
def test_what_is_asked_for_in_vain_is_listed() -> None:
    there = ray.cluster_resources()["CPU"]
    config = GPGConfig().env_runners(num_env_runners=1000, num_cpus_per_env_runner=2)
    config.evaluation(
        evaluation_num_env_runners=3, evaluation_config={"num_cpus_per_env_runner": 1}
    )
    config.learners(num_learners=2, num_gpus_per_learner=8)
    sentence = why_it_waits(config)
    assert sentence is not None
    assert f"Ray has {there:g} CPUs, and this takes 2003" in sentence
    assert (
        "1000 env runners with 2 each, 3 for evaluation with 1 each, 2 learners with 0" in sentence
    )
    assert "GPUs, and this takes 16" in sentence
    assert sentence.count("waits for ever") == 2


@pytest.mark.usefixtures("ray_session")
def test_nothing_is_said_where_it_fits() -> None:
    there = int(ray.cluster_resources()["CPU"])
    assert why_it_waits(GPGConfig().env_runners(num_env_runners=0)) is None
    assert why_it_waits(GPGConfig().env_runners(num_env_runners=there)) is None
    half = GPGConfig().env_runners(num_env_runners=2 * there, num_cpus_per_env_runner=0.5)
    assert why_it_waits(half) is None


@pytest.mark.slow
def test_a_run_that_waits_for_ever_says_so() -> None:
    script = """
        import ray
        from rllib_gpg import GPGConfig
        ray.init(num_cpus=1, include_dashboard=False)
        GPGConfig().environment("CartPole-v1").env_runners(num_env_runners=2).build_algo()
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    at_last = threading.Timer(120.0, run.kill)
    at_last.start()
    try:
        assert run.stderr is not None
        said = any("2 env runners with 1 each" in line for line in run.stderr)
    finally:
        at_last.cancel()
        run.kill()
        run.wait()
    assert said

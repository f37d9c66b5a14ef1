"""torch's and NumPy's threads: Ray's rule while an algorithm works, the user's before and after."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from threadpoolctl import ThreadpoolController, threadpool_limits

from rllib_gpg import GPGConfig
from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.sampling import SamplingError
from tests.envs import Broken, Identity
from tests.helpers import built, small_config

ONE, USERS = frozenset([1]), frozenset([3])

pytestmark = pytest.mark.usefixtures("ray_session")

# What they were used for, and how many threads torch and each BLAS of the process had.
seen: set[tuple[str, frozenset[int]]] = set()


def num_threads() -> frozenset[int]:
    libraries = ThreadpoolController().select(user_api="blas").info()
    assert libraries, "NumPy has no BLAS that can be asked"
    return frozenset([torch.get_num_threads(), *(blas["num_threads"] for blas in libraries)])


class SeesSampling(RLlibCallback):
    def on_episode_end(self, *, env_runner: Any, **kwargs: Any) -> None:
        use = "evaluating" if env_runner.config.in_evaluation else "sampling"
        seen.add((use, num_threads()))


class SeesUpdates(GPGTorchLearner):
    def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
        seen.add(("updating", num_threads()))
        return super().compute_loss_for_module(**kwargs)


@pytest.fixture(autouse=True)
def users_setting() -> Iterator[None]:
    seen.clear()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with threadpool_limits(3, user_api="blas"):
        yield
    torch.set_num_threads(before)


def config_that_looks(env: Any = Identity) -> GPGConfig:
    config = small_config(env, learner_class=SeesUpdates).callbacks(SeesSampling)
    return config.evaluation(evaluation_duration=2)


def settings_of_this_and_of_new_threads() -> list[frozenset[int]]:
    settings = [num_threads()]
    thread = threading.Thread(target=lambda: settings.append(num_threads()))
    thread.start()
    thread.join()
    return settings


@pytest.mark.parametrize("parallel", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_thread_while_it_works_and_the_users_setting_afterwards(parallel: bool) -> None:
    config = config_that_looks().evaluation(
        evaluation_interval=1,
        evaluation_parallel_to_training=parallel,
        evaluation_num_env_runners=int(parallel),
    )
    with built(config) as algo:
        algo.train()
        # With parallel evaluation, these run in a thread of their own.
        assert seen >= {("sampling", ONE), ("updating", ONE)}
        assert {threads for _, threads in seen} == {ONE}
        assert settings_of_this_and_of_new_threads() == [USERS, USERS]


def test_a_call_of_evaluate_too() -> None:
    with built(config_that_looks()) as algo:
        algo.evaluate()
        assert {threads for _, threads in seen} == {ONE}
        assert settings_of_this_and_of_new_threads() == [USERS, USERS]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [({"num_cpus_for_main_process": 2}, 2), ({"num_cpus_for_main_process": 0}, 1)],
)
def test_as_many_threads_as_the_main_process_has_cpus(
    setting: dict[str, Any], expected: int
) -> None:
    with built(config_that_looks().resources(**setting)) as algo:
        algo.train()
    assert seen == {(use, frozenset([expected])) for use in ("sampling", "updating")}


def test_a_local_learner_has_the_cpus_of_a_learner() -> None:
    with built(config_that_looks().learners(num_cpus_per_learner=2)) as algo:
        algo.train()
    assert seen == {(use, frozenset([2])) for use in ("sampling", "updating")}


def test_an_error_puts_the_users_setting_back() -> None:
    config = config_that_looks(Broken).environment(env_config={"how": "raises"})
    with built(config) as algo:
        for work in (algo.train, algo.evaluate):
            with pytest.raises(SamplingError):
                work()
            assert settings_of_this_and_of_new_threads() == [USERS, USERS]

"""The next group is sampled while the learners learn from this one: overlap, exactness, faults."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.sampling import SamplingError
from tests.envs import ComingAndGoing, ShortOrLong, Slow, Unreliable
from tests.helpers import (
    built,
    each_learner,
    fingerprint,
    interrupt,
    interruptible,
    same,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def ahead(env: Any = ShortOrLong, num_env_runners: int = 2, **training: Any) -> GPGConfig:
    config = small_config(env, **{"sample_ahead": 1, "num_epochs": 1, "lr": 0.05, **training})
    return config.env_runners(
        num_env_runners=num_env_runners, num_envs_per_env_runner=2, episodes_per_share=2
    )


def groups_of(algo: GPG, iterations: int) -> list[Any]:
    """What each iteration has trained on, and the version of the policy that sampled it."""
    groups = []
    estimate = algo._estimate_advantages

    def remember(episodes: list[Any]) -> Any:
        versions = {int(v) for e in episodes for v in e.get_extra_model_outputs("weights_seq_no")}
        groups.append((fingerprint(episodes), versions))
        return estimate(episodes)

    algo._estimate_advantages = remember  # type: ignore[method-assign]
    for _ in range(iterations):
        algo.train()
    del algo._estimate_advantages
    return groups


def test_groups_are_of_the_policy_before_the_last_update() -> None:
    with built(ahead()) as algo:
        groups = groups_of(algo, 4)
    # RLlib counts updates. The first group has nothing to be behind.
    assert [versions for _, versions in groups] == [{0}, {0}, {1}, {2}]
    with built(ahead(sample_ahead=0)) as algo:
        assert [versions for _, versions in groups_of(algo, 3)] == [{0}, {1}, {2}]


def test_the_second_group_is_that_of_the_first_policy() -> None:
    """The same seeds as without it, so that here only the policy makes a difference."""
    with built(ahead(lr=0.0)) as algo:
        of_ahead = [episodes for episodes, _ in groups_of(algo, 3)]
    with built(ahead(lr=0.0, sample_ahead=0)) as algo:
        assert of_ahead == [episodes for episodes, _ in groups_of(algo, 3)]


def test_groups_are_equal_on_any_number_of_env_runners() -> None:
    runs = []
    for num_env_runners in (1, 3):
        config = ahead(num_env_runners=num_env_runners)
        config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
        with built(config) as algo:
            groups = groups_of(algo, 4)
            runs.append((groups, snapshot(algo)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


def test_ratios_are_against_the_policy_that_sampled() -> None:
    """The log-probabilities of a group are those of its version, not of the one that learns."""
    ratios: list[float] = []

    class Watching(GPGTorchLearner):
        def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
            batch, fwd_out = kwargs["batch"], kwargs["fwd_out"]
            logits = fwd_out[Columns.ACTION_DIST_INPUTS]
            actions = batch[Columns.ACTIONS].long().unsqueeze(-1)
            logp = torch.log_softmax(logits, -1).gather(-1, actions).squeeze(-1)
            ratios.append((logp - batch[Columns.ACTION_LOGP]).abs().max().item())
            return super().compute_loss_for_module(**kwargs)

    config = ahead(num_minibatches=1, learner_class=Watching)
    with built(config) as algo:
        for _ in range(3):
            algo.train()
    assert ratios[0] < 1e-5
    assert min(ratios[1:]) > 1e-3


@pytest.mark.parametrize("saved_after", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_checkpoint_brings_back_the_same_run(tmp_path: Path, saved_after: int) -> None:
    """What was sampled ahead is sampled again: with the policy from before the last update."""
    config = ahead().env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    with built(config) as algo:
        groups_of(algo, saved_after)
        path = algo.save_to_path(tmp_path / "checkpoint")
        whole = groups_of(algo, 3)
        end = snapshot(algo)
        # In place, with a later group on its way.
        algo.restore_from_path(path)
        assert groups_of(algo, 3) == whole
        assert same(snapshot(algo), end)
    algo = GPG.from_checkpoint(path)
    try:
        assert groups_of(algo, 3) == whole
        assert same(snapshot(algo), end)
        # Saved again before anything was sampled: the same.
        algo.restore_from_path(path)
        again = algo.save_to_path(tmp_path / "again")
        algo.restore_from_path(again)
        assert groups_of(algo, 3) == whole
    finally:
        algo.stop()


def test_to_restore_the_learners_ends_what_was_sampled_ahead(tmp_path: Path) -> None:
    """The next group is of the weights that were restored, and not of those before."""
    with built(ahead()) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
        algo.train()
        algo.train()
        algo.restore_from_path(f"{path}/learner_group", component="learner_group")
        assert [versions for _, versions in groups_of(algo, 2)] == [{1}, {1}]


@pytest.mark.slow
def test_a_checkpoint_of_a_run_without_it_goes_on_with_it(tmp_path: Path) -> None:
    with built(ahead(sample_ahead=0)) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path / "checkpoint")
    with built(ahead()) as algo:
        algo.restore_from_path(path)
        assert [versions for _, versions in groups_of(algo, 2)] == [{1}, {1}]
        path = algo.save_to_path(tmp_path / "other")
    with built(ahead(sample_ahead=0)) as algo:
        algo.restore_from_path(path)
        assert [versions for _, versions in groups_of(algo, 2)] == [{3}, {4}]


@pytest.mark.slow
def test_killed_env_runners_change_nothing() -> None:
    runs = []
    for is_killed in (False, True):
        with built(ahead(Slow, num_env_runners=3)) as algo:
            groups = groups_of(algo, 2)
            if is_killed:
                for actor in list(algo.env_runner_group._worker_manager.actors().values())[:2]:
                    ray.kill(actor, no_restart=False)
            groups += groups_of(algo, 3)
            runs.append(groups)
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_envs_that_fail_change_nothing() -> None:
    runs = []
    for probability in (0.0, 0.002):
        config = ahead(Unreliable).environment(env_config={"probability": probability})
        with built(config.fault_tolerance(max_share_failures=50)) as algo:
            runs.append(groups_of(algo, 3))
    assert runs[0] == runs[1]


class FailsWhile(ShortOrLong):
    """Raises as long as there is a file."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.file = Path(config["file"])

    def step(self, action: int) -> Any:
        if self.file.exists():
            raise OSError("the simulator is gone")
        return super().step(action)


@pytest.mark.slow
def test_what_sampling_ahead_raises_is_raised_in_its_turn(tmp_path: Path) -> None:
    """After that, and from the checkpoint of then, the run goes on as if nothing had been."""
    file = tmp_path / "fails"
    config = ahead(FailsWhile).environment(env_config={"file": str(file)})
    config.fault_tolerance(max_share_failures=1)
    with built(config) as algo:
        whole = groups_of(algo, 5)
    with built(config) as algo:
        begin = algo._begin_next_group

        def fail(weights: Any) -> None:
            file.touch()
            begin(weights)

        groups = groups_of(algo, 1)
        algo._begin_next_group = fail  # type: ignore[method-assign]
        groups += groups_of(algo, 1)
        del algo._begin_next_group
        with pytest.raises(SamplingError, match="the simulator is gone") as raised:
            algo.train()
        file.unlink()
        assert groups + groups_of(algo, 3) == whole
        algo.restore_from_path(str(raised.value).rpartition("The run as it was: ")[2])
        assert groups + groups_of(algo, 3) == whole


@pytest.mark.slow
def test_an_interrupted_update_samples_its_group_again() -> None:
    """Ctrl+C during the update: the group comes again, and then the one that was on its way."""

    class Interrupted(GPGTorchLearner):
        now = False

        def compute_loss_for_module(self, **kwargs: Any) -> torch.Tensor:
            if Interrupted.now:
                Interrupted.now = False
                raise KeyboardInterrupt
            return super().compute_loss_for_module(**kwargs)

    with built(ahead(learner_class=Interrupted)) as algo:
        algo.train()
        Interrupted.now = True
        with pytest.raises(KeyboardInterrupt):
            algo.train()
        assert algo._groups.number == 1
        # By then RLlib has counted the update that wasn't done.
        assert [versions for _, versions in groups_of(algo, 2)] == [{2}, {2}]
        assert algo._groups.number == 3


@pytest.mark.slow
def test_an_interrupt_while_waiting_loses_nothing() -> None:
    """A real SIGINT while the driver waits for the group that is sampled ahead."""
    runs = []
    for is_interrupted in (False, True):
        with built(ahead(Slow)) as algo:
            groups = groups_of(algo, 1)
            if is_interrupted:
                with interruptible():
                    threading.Timer(0.02, interrupt).start()
                    algo._groups.wait()
                    time.sleep(60)
            runs.append(groups + groups_of(algo, 2))
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_an_interrupt_while_it_is_dropped_leaves_nothing_of_it() -> None:
    """Ctrl+C during `add_module`, for instance, which waits for the thread to end."""
    with built(ahead(Slow)) as algo:
        algo.train()
        with interruptible():
            threading.Timer(0.02, interrupt).start()
            algo._groups.drop()
            time.sleep(60)
        assert [versions for _, versions in groups_of(algo, 2)] == [{1}, {1}]


@pytest.mark.slow
def test_an_evaluation_by_the_env_runners_for_training_changes_nothing() -> None:
    """They do it when they have sampled the next group."""
    runs = []
    for is_evaluated in (False, True):
        with built(ahead(Slow).evaluation(evaluation_duration=4)) as algo:
            groups = groups_of(algo, 2)
            if is_evaluated:
                assert algo.eval_env_runner_group is None
                assert algo.evaluate()["env_runners"]["num_episodes"] == 4
            runs.append(groups + groups_of(algo, 2))
    assert runs[0] == runs[1]


class ReadsInfos(ConnectorV2):
    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in episodes:
            episode.get_infos()
        return batch


@pytest.mark.parametrize("restored", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_piece_that_comes_later_is_given_infos(tmp_path: Path, restored: bool) -> None:
    """The group that was begun without them is sampled again, and is the same otherwise."""
    with built(ahead()) as algo:
        algo.train()
        path = algo.save_to_path(tmp_path)
        whole = groups_of(algo, 2)
    with built(ahead()) as algo:
        algo.train()
        if restored:
            algo.restore_from_path(path)
        each_learner(algo, lambda learner: learner._learner_connector.prepend(ReadsInfos()))
        assert groups_of(algo, 2) == whole


@pytest.mark.slow
def test_modules_that_come_and_go_end_what_was_sampled_ahead() -> None:
    config = ahead(ComingAndGoing).multi_agent(
        policies={"p", "q"}, policy_mapping_fn=lambda agent, episode, **kwargs: "p"
    )
    with built(config) as algo:
        algo.train()
        spec = RLModuleSpec.from_module(algo.get_module("p"))
        algo.add_module(
            "new", spec, new_agent_to_module_mapping_fn=lambda agent, episode, **kwargs: "new"
        )
        # At once, and not an iteration later.
        assert "new" in algo.train()["learners"]
        algo.remove_module(
            "new", new_agent_to_module_mapping_fn=lambda agent, episode, **kwargs: "p"
        )
        results = algo.train()["learners"]
        assert results["p"]["group_num_episodes"] > 0
        # RLlib goes on to show what it knows nothing of any more.
        assert "new" not in results or np.isnan(results["new"]["group_num_episodes"])


class TellsOfEpisodes(ShortOrLong):
    """Leaves a file for each episode that it starts."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.folder = Path(config["folder"])

    def reset(self, **kwargs: Any) -> Any:
        (self.folder / uuid.uuid4().hex).touch()
        return super().reset(**kwargs)


def test_the_next_group_is_sampled_during_the_update(tmp_path: Path) -> None:
    """An update that doesn't end before the next group's episodes have been started."""

    class Patient(GPGTorchLearner):
        def before_gradient_based_update(self, **kwargs: Any) -> None:
            super().before_gradient_based_update(**kwargs)
            needed = 8 * (len(seen) + 2)
            for _ in range(600):
                if len(list(tmp_path.iterdir())) >= needed:
                    break
                time.sleep(0.1)
            seen.append(len(list(tmp_path.iterdir())) >= needed)

    seen: list[bool] = []
    config = ahead(TellsOfEpisodes, learner_class=Patient, group_size=8)
    with built(config.environment(env_config={"folder": str(tmp_path)})) as algo:
        for _ in range(3):
            algo.train()
    assert seen == [True] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_ahead": 1}, "needs remote env runners"),
        ({"sample_ahead": 2}, "must be 0 or 1"),
        ({"sample_ahead": True}, "must be 0 or 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(ShortOrLong, **settings).validate()

"""The learner pipeline: whose pieces, which module, what they remember; where episodes end."""

from __future__ import annotations

import copy
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.connectors.classes.count_based_curiosity import CountBasedCuriosity
from ray.rllib.examples.learners.classes.intrinsic_curiosity_learners import (
    ICM_MODULE_ID,
    add_intrinsic_curiosity_connectors,
)
from ray.rllib.examples.rl_modules.classes.intrinsic_curiosity_model_rlm import (
    IntrinsicCuriosityModel,
)
from ray.rllib.utils.metrics.metrics_logger import DEFAULT_STATS_CLS_LOOKUP
from ray.rllib.utils.metrics.stats import MaxStats

from rllib_gpg import GPG, GPGConfig
from rllib_gpg.advantages import GroupAdvantageEstimation
from rllib_gpg.learning import GPGTorchLearner
from tests.envs import ComingAndGoing, Identity
from tests.helpers import (
    SMALL_NET,
    built,
    each_learner,
    guarded,
    logged_warnings,
    module_results,
    same,
    small_config,
    snapshot,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def checksum(module: MultiRLModule) -> float:
    """One number for all of a module's state, that of its learner-only parts too."""
    states = module.foreach_module(lambda module_id, part: part.get_state())
    return float(sum(np.float64(value).sum() for state in states for value in state.values()))


# Which pieces run, and what they are shown.


class Largest(MaxStats):
    """A way of reducing of one's own."""

    stats_cls_identifier = "largest"


class LogsItsOwnWay(ConnectorV2):
    def __call__(self, *, batch: Any, episodes: Any, metrics: Any, **kwargs: Any) -> Any:
        for episode in episodes:
            metrics.log_value("longest", len(episode), reduce="largest")
        return batch


def test_pieces_log_with_the_ways_of_reducing_that_the_config_names() -> None:
    config = small_config(Identity).learners(learner_connector=lambda *spaces: LogsItsOwnWay())
    ways = {**DEFAULT_STATS_CLS_LOOKUP, "largest": Largest}
    with built(config.reporting(custom_stats_cls_lookup=ways)) as algo:
        assert algo.train()["learners"]["longest"] == Identity.LENGTH


class Looks(ConnectorV2):
    """Logs what it is shown, and how often it has been called."""

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def __call__(
        self, *, rl_module: Any, batch: Any, episodes: Any, metrics: Any, **kwargs: Any
    ) -> Any:
        columns = batch.get(DEFAULT_MODULE_ID, batch)
        if Columns.OBS in columns:
            # With batch norm or running statistics, DDP's forward pass waits for all learners.
            rl_module[DEFAULT_MODULE_ID].forward_train(columns)
        metrics.log_value((self.place, "module"), checksum(rl_module), window=1)
        metrics.log_value((self.place, "calls"), 1, reduce="lifetime_sum")
        metrics.log_value((self.place, "episodes"), len(episodes), window=1)
        metrics.log_value((self.place, "advantages"), Columns.ADVANTAGES in columns, window=1)
        return batch


class Curious(GPGTorchLearner):
    """RLlib's `PPOTorchLearnerWithCuriosity` with another base, and a piece at either end."""

    def build(self) -> None:
        super().build()
        add_intrinsic_curiosity_connectors(self)
        self._learner_connector.prepend(Looks("first"))
        self._learner_connector.append(Looks("last"))


# RLlib's intrinsic curiosity model, which env runners don't have.
CURIOSITY = RLModuleSpec(
    module_class=IntrinsicCuriosityModel,
    learner_only=True,
    model_config={"feature_dim": 4, "feature_net_hiddens": (8,), "feature_net_activation": "relu"},
)


def curious_config() -> GPGConfig:
    config = small_config(Identity, lr=0.01)
    config.training(learner_config_dict={"intrinsic_reward_coeff": 1.0, "forward_loss_weight": 0.2})
    policy = RLModuleSpec(model_config={**SMALL_NET, "normalize_observations": True})
    return config.rl_module(
        rl_module_spec=MultiRLModuleSpec(
            rl_module_specs={DEFAULT_MODULE_ID: policy, ICM_MODULE_ID: CURIOSITY}
        ),
        algorithm_config_overrides_per_module={ICM_MODULE_ID: AlgorithmConfig.overrides(lr=0.02)},
    ).learners(learner_class=Curious, learner_connector=lambda *spaces: Looks("custom"))


def returns_with_curiosity(episodes: list[Any], state: Any) -> list[float]:
    """Each episode's return with the intrinsic rewards of a curiosity model in this state."""
    env = Identity()
    spec = copy.deepcopy(CURIOSITY)
    spec.observation_space, spec.action_space = env.observation_space, env.action_space
    model = spec.build()
    model.set_state(state)
    returns = []
    for episode in episodes:
        observations = torch.from_numpy(np.asarray(episode.get_observations()))
        batch = {
            Columns.OBS: observations[:-1],
            Columns.NEXT_OBS: observations[1:],
            Columns.ACTIONS: torch.from_numpy(np.asarray(episode.get_actions())),
        }
        with torch.no_grad():
            intrinsic = model.forward_train(batch)[Columns.INTRINSIC_REWARDS]
        returns.append(float(np.sum(episode.get_rewards()) + intrinsic.sum()))
    return returns


@pytest.mark.parametrize(
    "num_learners",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)],
)
def test_pieces_of_config_and_learner_run_once_with_the_weights_in_force(num_learners: int) -> None:
    groups: list[list[Any]] = []
    with guarded(curious_config().learners(num_learners=num_learners)) as algo:
        sample = algo._sample_group

        def remember(weights: Any) -> Any:
            episodes = sample(weights)
            groups.append(copy.deepcopy(episodes))
            return episodes

        algo._sample_group = remember  # type: ignore[method-assign]
        seen = []
        for iteration in range(1, 4):
            states = each_learner(algo, lambda learner: learner.get_state()["rl_module"])
            in_force = each_learner(algo, lambda learner: checksum(learner.module))[0]
            results = algo.train()["learners"]
            for place, there_are_advantages in (("first", 0), ("custom", 0), ("last", 1)):
                shown = results[place]
                assert shown["module"] == pytest.approx(in_force, rel=1e-9)
                assert shown["calls"] == iteration
                assert shown["episodes"] == 8
                assert shown["advantages"] == there_are_advantages
            # Between them, curiosity has changed the rewards of the batch.
            returns = returns_with_curiosity(groups[-1], states[0][ICM_MODULE_ID])
            group = results[DEFAULT_MODULE_ID]
            assert group["group_return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
            assert group["group_return_std"] == pytest.approx(np.std(returns), rel=1e-4)
            assert "forward_loss" in results[ICM_MODULE_ID]
            seen.append(in_force)
    assert len(set(seen)) == 3


class Raises(ConnectorV2):
    """Raises the first time."""

    has_raised = False

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        if not self.has_raised:
            self.has_raised = True
            raise ValueError("what I was given")
        return batch


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_a_piece_raises_arrives_and_leaves_the_learners_in_service(
    num_learners: int, tmp_path: Path
) -> None:
    config = small_config(Identity).learners(learner_connector=lambda *spaces: Raises())
    with built(config.learners(num_learners=num_learners)) as algo:
        with pytest.raises(ValueError, match="what I was given") as raised:
            algo.train()
        told = [str(entry.path) for entry in raised.traceback] + getattr(
            raised.value, "__notes__", []
        )
        assert Path(__file__).name in "".join(told)
        algo.save_to_path(tmp_path / "checkpoint")
        assert module_results(algo.train())["group_num_episodes"] == 8


# Episodes.


class Writes(CountBasedCuriosity):
    """RLlib's own example: it writes rewards into the episodes, step by step."""

    def __call__(self, *, episodes: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            episode.set_observations(new_data=episode.get_observations() * 0.5)
            episode.set_actions(new_data=1 - episode.get_actions())
            for name in episode.extra_model_outputs:
                outputs = episode.get_extra_model_outputs(name)
                episode.set_extra_model_outputs(key=name, new_data=outputs * 1.0)
        return super().__call__(episodes=episodes, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(("num_env_runners", "num_learners"), [(1, 0), (0, 1)])
def test_pieces_may_write_into_episodes_wherever_these_come_from(
    num_env_runners: int, num_learners: int
) -> None:
    config = small_config(Identity).env_runners(num_env_runners=num_env_runners)
    config.learners(num_learners=num_learners, learner_connector=lambda *spaces: Writes())
    with built(config) as algo:
        result = algo.train()
    # 80 steps in two states: the bonus of a state is 1 + 1/2 + .. + 1/n after n visits.
    extrinsic = result["env_runners"]["episode_return_mean"]
    bonus = 8 * (module_results(result)["group_return_mean"] - extrinsic)
    possible = [harmonic(n) + harmonic(80 - n) for n in range(81)]
    assert min(abs(bonus - value) for value in possible) < 1e-3


def harmonic(n: int) -> float:
    return float(sum(1.0 / k for k in range(1, n + 1)))


REMEMBERED: list[weakref.ref[Any]] = []
ALIVE: list[int] = []


class CountsEpisodes(GPGTorchLearner):
    """Counts the group's episodes that are still there when the update begins."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        ALIVE.append(sum(reference() is not None for reference in REMEMBERED))
        return super().update(*args, **kwargs)


@pytest.mark.parametrize("env", [Identity, ComingAndGoing])
def test_the_episodes_of_a_group_are_gone_when_learners_update(env: Any) -> None:
    REMEMBERED.clear()
    ALIVE.clear()
    config = small_config(env).learners(learner_class=CountsEpisodes)
    if env is ComingAndGoing:
        config.multi_agent(policies={"all"}, policy_mapping_fn=lambda *args, **kwargs: "all")
    with built(config) as algo:
        sample = algo._sample_group

        def remember(weights: Any) -> Any:
            episodes = sample(weights)
            for episode in ConnectorV2.single_agent_episode_iterator(episodes, False):
                # Episodes have slots, and none for weak references.
                REMEMBERED.append(weakref.ref(episode.observations))
            return episodes

        algo._sample_group = remember  # type: ignore[method-assign]
        for _ in range(2):
            algo.train()
    assert len(REMEMBERED) >= 16
    assert ALIVE == [0, 0]


# What pieces remember.


class Scales(ConnectorV2):
    """Multiplies all rewards by a factor of its own, which grows from group to group."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.factor = 1.0

    def __call__(self, *, batch: Any, episodes: Any, metrics: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes, False):
            episode.set_rewards(new_data=episode.get_rewards() * self.factor)
        metrics.log_value(f"factor_{self.rate}", self.factor, window=1)
        self.factor *= self.rate
        return batch

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {"factor": self.factor}

    def set_state(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]


class ScalesMore(GPGTorchLearner):
    """Adds a second piece of the same class, with another state."""

    def build(self) -> None:
        super().build()
        self._learner_connector.prepend(Scales(3.0))


def scaled_config(env: Any = Identity) -> GPGConfig:
    config = small_config(env, normalize_advantages=False, lr=0.01)
    return config.learners(learner_class=ScalesMore, learner_connector=lambda *spaces: Scales(2.0))


def factors(results: dict[str, Any]) -> tuple[float, float]:
    return results["learners"]["factor_2.0"], results["learners"]["factor_3.0"]


@pytest.mark.parametrize("num_learners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_cut_in_two_is_the_run_in_one_piece(num_learners: int, tmp_path: Path) -> None:
    config = scaled_config().learners(num_learners=num_learners)
    with built(config) as algo:
        whole = [algo.train() for _ in range(4)]
        end = snapshot(algo)
    with built(config) as algo:
        cut = [algo.train() for _ in range(2)]
        checkpoint = algo.save_to_path(tmp_path / "checkpoint")
    algo = GPG.from_checkpoint(checkpoint)
    try:
        cut += [algo.train() for _ in range(2)]
        assert same(snapshot(algo), end)
    finally:
        algo.stop()
    assert [factors(results) for results in cut] == [(1, 1), (2, 3), (4, 9), (8, 27)]
    for results, expected in zip(cut, whole, strict=True):
        assert module_results(results)["group_return_mean"] == pytest.approx(
            module_results(expected)["group_return_mean"]
        )


def test_the_states_of_pieces_travel_with_checkpoints_only() -> None:
    def components(learner: Learner) -> tuple[Any, Any]:
        return learner.get_state(), learner.get_state(components="rl_module")

    with built(scaled_config()) as algo:
        ((whole, weights),) = each_learner(algo, components)
    assert whole["connector_pieces"]["Scales"] == [{"factor": 1.0}, {"factor": 1.0}]
    assert "connector_pieces" not in weights


def test_a_module_that_was_removed_is_not_remembered_under_its_id() -> None:
    """Another one may come under it at once, and would be taken for the first."""

    def remembered(learner: Learner) -> set[str]:
        (state,) = learner.get_state()["connector_pieces"]["GroupAdvantageEstimation"]
        return set(state["memory"]) | set(state["before"][1])

    config = small_config(ComingAndGoing, baseline="ridge")
    config.multi_agent(
        policies={"all", "late"},
        policy_mapping_fn=lambda agent, *_, **__: "late" if agent == "c" else "all",
    )
    with built(config) as algo:
        module = RLModuleSpec.from_module(algo.get_module("late"))
        for _ in range(2):
            algo.train()
        assert each_learner(algo, remembered) == [{"all", "late"}]
        algo.remove_module("late")
        algo.add_module("late", module)
        assert each_learner(algo, remembered) == [{"all"}]


def all_are_one(agent: Any, *_: Any, **__: Any) -> str:
    return "all"


def one_is_late(agent: Any, *_: Any, **__: Any) -> str:
    return "late" if agent == "a" else "all"


def add_late(algo: GPG, **overrides: Any) -> None:
    algo.add_module(
        "late",
        RLModuleSpec.from_module(algo.get_module("all")),
        config_overrides=overrides,
        new_agent_to_module_mapping_fn=one_is_late,
    )


def settings_of_late(learner: Learner) -> tuple[float, ...]:
    config = learner.config.get_config_for_module("late")
    lr = learner.get_optimizer("late").param_groups[0]["lr"]
    return lr, config.clip_param, learner.entropy_coeff("late")


def test_a_module_that_comes_again_has_its_own_settings() -> None:
    config = small_config(ComingAndGoing, lr=0.01)
    with built(config.multi_agent(policies={"all"}, policy_mapping_fn=all_are_one)) as algo:
        asked_for = (
            ({"lr": 0.05, "clip_param": 0.1}, (0.05, 0.1, 0.0)),
            ({"lr": 0.002, "entropy_coeff": 0.5}, (0.002, 0.2, 0.5)),
            ({}, (0.01, 0.2, 0.0)),
        )
        for overrides, expected in asked_for:
            add_late(algo, **overrides)
            algo.train()
            assert each_learner(algo, settings_of_late) == [pytest.approx(expected)]
            algo.remove_module("late", new_agent_to_module_mapping_fn=all_are_one)


def test_pytorchs_schedules_of_a_removed_module_go_with_it(tmp_path: Path) -> None:
    """They are in no checkpoint, and one of that name that comes later has its own."""
    config = small_config(ComingAndGoing, lr=0.01)
    config.multi_agent(policies={"all"}, policy_mapping_fn=all_are_one).experimental(
        _torch_lr_scheduler_classes=[partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)]
    )
    with built(config) as algo:
        add_late(algo)
        algo.train()
        older = algo.save_to_path(tmp_path / "with")
        algo.remove_module("late", new_agent_to_module_mapping_fn=all_are_one)
        algo.train()
        algo.restore_from_path(algo.save_to_path(tmp_path / "without"))
        add_late(algo)
        for _ in range(2):
            algo.train()
        ((lr, *_),) = each_learner(algo, settings_of_late)
        assert lr == pytest.approx(0.01 * 0.5**2)
        algo.remove_module("late", new_agent_to_module_mapping_fn=all_are_one)
        with logged_warnings() as warnings:
            algo.restore_from_path(older)
        algo.train()
    (named,) = (text for text in warnings if "modules that this algorithm hasn't" in text)
    assert "late" in named and "GPG.from_checkpoint" in named


def test_adding_and_removing_modules_leaves_the_pieces_as_they_are() -> None:
    config = scaled_config(ComingAndGoing)
    config.multi_agent(policies={"all"}, policy_mapping_fn=lambda *args, **kwargs: "all")
    with built(config) as algo:
        seen = [factors(algo.train())]
        algo.add_module("late", RLModuleSpec.from_module(algo.get_module("all")))
        seen.append(factors(algo.train()))
        algo.remove_module("late")
        seen.append(factors(algo.train()))
    assert seen == [(1, 1), (2, 3), (4, 9)]


class Backwards(ConnectorV2):
    """Turns the rows of a batch round, all columns alike."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        return {
            module_id: {name: column.flip(0) for name, column in columns.items()}
            for module_id, columns in batch.items()
        }


class MovesSteps(GPGTorchLearner):
    def build(self) -> None:
        super().build()
        pieces = self._learner_connector.connectors
        (at,) = (i for i, p in enumerate(pieces) if isinstance(p, GroupAdvantageEstimation))
        pieces.insert(at, Backwards())


def test_a_piece_that_moves_steps_is_refused() -> None:
    """Each step would have the advantage of another."""
    with (
        built(small_config(Identity, learner_class=MovesSteps)) as algo,
        pytest.raises(ValueError, match="in another order"),
    ):
        algo.train()

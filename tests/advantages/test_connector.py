"""`GroupAdvantageEstimation` in RLlib's learner pipeline, on sampled episodes."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.common.numpy_to_tensor import NumpyToTensor
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.examples.algorithms.classes.vpg import VPGConfig
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_gpg import GPGConfig
from rllib_gpg.advantages import (
    GroupAdvantageEstimation,
    SpatialTimeBinning,
    StateBinning,
    estimate_advantages,
)
from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.sampling import GroupEnvRunner
from tests.envs import Identity, MultiShortOrLong, ShortOrLong
from tests.helpers import (
    GROUP_METRICS,
    SMALL_NET,
    PlusTheStep,
    built,
    each_learner,
    module_results,
    run_pipeline,
    sample_group,
    small_config,
    whole_group,
)

pytestmark = pytest.mark.usefixtures("ray_session")


def by_hand(episodes: list[Any], **settings: Any) -> np.ndarray:
    """What `estimate_advantages` makes of the episodes' own columns, in batch order."""
    advantages = estimate_advantages(
        [episode.get_observations()[:-1] for episode in episodes],
        [episode.get_rewards() for episode in episodes],
        **{"gamma": 0.99, "binning": "time", "normalize": True, **settings},
    )
    return np.concatenate(advantages)


# Advantages in the batch.


@pytest.mark.parametrize(
    ("training", "settings"),
    [
        ({}, {}),
        ({"gamma": 0.9}, {"gamma": 0.9}),
        ({"binning": "universal"}, {"binning": "universal"}),
        ({"binning": StateBinning()}, {"binning": "state"}),
        (
            {"binning": SpatialTimeBinning([0.5, 3.0])},
            {"binning": SpatialTimeBinning([0.5, 3.0])},
        ),
        ({"leave_one_out": True}, {"leave_one_out": True}),
        ({"baseline": "ridge", "lambda_": 0.9}, {"baseline": "ridge", "lambda_": 0.9}),
        (
            {"baseline_decay": 0.5, "normalize_advantages": False},
            {"leave_one_out": True, "normalize": False},
        ),
        ({"normalize_advantages": False}, {"normalize": False}),
        (
            {"leave_one_out": True, "normalize_advantages": False},
            {"leave_one_out": True, "normalize": False},
        ),
    ],
    ids=[
        "default",
        "gamma",
        "universal",
        "state",
        "spatial-time",
        "loo",
        "ridge",
        "decay",
        "raw",
        "loo-raw",
    ],
)
# The two bits of `Identity` repeat exactly, which the binning can't know.
@pytest.mark.filterwarnings("ignore:StateBinning.* on float32:UserWarning:rllib_gpg")
def test_the_pipeline_gives_the_estimators_advantages_row_by_row(
    training: dict[str, Any], settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """`ShortOrLong` counts its steps and names its episodes, so rows can be told apart."""
    env = Identity if "state" in request.node.callspec.id else ShortOrLong
    with built(small_config(env, **training)) as algo:
        group = sample_group(algo)
        batch = run_pipeline(algo, group)
        observations = np.concatenate([episode.get_observations()[:-1] for episode in group])
        np.testing.assert_array_equal(batch[Columns.OBS], observations)
        assert batch[Columns.ADVANTAGES].dtype == torch.float32
        expected = by_hand(group, **{"gamma": algo.config.gamma, **settings})
        np.testing.assert_allclose(batch[Columns.ADVANTAGES], expected, atol=1e-4)
        # The settings do make a difference: no test of zeros.
        assert expected.std() > 0.01


def test_settings_of_the_estimator_change_what_it_gives() -> None:
    with built(small_config(ShortOrLong)) as algo:
        group = sample_group(algo)
        plain = by_hand(group)
        for settings in (
            {"gamma": 0.9},
            {"binning": "universal"},
            {"leave_one_out": True, "normalize": False},
            {"normalize": False},
        ):
            assert not np.allclose(by_hand(group, **settings), plain)


def test_advantages_of_a_recurrent_module_are_zero_padded_like_all_columns() -> None:
    """Sequences of 4 steps: 5 steps of an episode make 4 + 1, and three zeros; 200 make 50 x 4."""
    lstm = {**SMALL_NET, "use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4}
    with built(small_config(ShortOrLong).rl_module(model_config=lstm)) as algo:
        group = sample_group(algo)
        batch = run_pipeline(algo, group)
    lengths = [len(episode) for episode in group]
    assert set(lengths) == {5, 200}
    mask = batch[Columns.LOSS_MASK]
    num_sequences = sum(2 if length == 5 else 50 for length in lengths)
    assert batch[Columns.ADVANTAGES].shape == mask.shape == (num_sequences, 4)
    # Baselines and normalisation as if there were no padding.
    expected = by_hand(group, gamma=algo.config.gamma)
    np.testing.assert_allclose(batch[Columns.ADVANTAGES][mask], expected, atol=1e-4)
    assert (batch[Columns.ADVANTAGES][~mask] == 0.0).all()


def test_overrides_of_a_module_reach_the_estimator() -> None:
    overrides = {"gamma": 0.5, "normalize_advantages": False, "leave_one_out": True}
    config = small_config(Identity).rl_module(
        algorithm_config_overrides_per_module={DEFAULT_MODULE_ID: overrides}
    )
    with built(config) as algo:
        group = sample_group(algo)
        batch = run_pipeline(algo, group)
    expected = by_hand(group, gamma=0.5, normalize=False, leave_one_out=True)
    np.testing.assert_allclose(batch[Columns.ADVANTAGES], expected, atol=1e-5)


def test_overrides_are_spelled_as_rllib_spells_them() -> None:
    """Its configs take "lambda" as well, and its results show it."""
    for name in ("lambda", "lambda_"):
        config = small_config(Identity, baseline="ridge").rl_module(
            algorithm_config_overrides_per_module={DEFAULT_MODULE_ID: {name: 0.5}}
        )
        with built(config) as algo:
            pieces = each_learner(algo, lambda learner: [*learner._learner_connector])[0]
            (piece,) = [one for one in pieces if isinstance(one, GroupAdvantageEstimation)]
            assert piece._settings_of(DEFAULT_MODULE_ID)[0]["lambda_"] == 0.5


# Custom pieces in front.


class Halved(ConnectorV2):
    """Replaces observations by half of what they are."""

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for episode in self.single_agent_episode_iterator(episodes):
            episode.set_observations(new_data=episode.get_observations() * 0.5)
        return batch


def test_returns_see_the_rewards_that_a_custom_piece_shaped() -> None:
    config = small_config(ShortOrLong, normalize_advantages=False, gamma=1.0)
    config.learners(learner_connector=lambda obs_space, act_space: PlusTheStep())
    with built(config) as algo:
        group = sample_group(algo)
        lengths = [len(episode) for episode in group]
        assert len(set(lengths)) == 2
        batch = run_pipeline(algo, group)
        # The return at step 0 of an episode of T steps: T rewards of 1, and 1 + .. + T.
        returns = np.array([length + length * (length + 1) / 2 for length in lengths])
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        np.testing.assert_allclose(
            batch[Columns.ADVANTAGES][first], returns - returns.mean(), rtol=1e-5
        )
        # And so do the metrics of a whole iteration: returns are 5 + 15 or 200 + 20100.
        results = module_results(algo.train())
        num_long = (results["group_num_env_steps"] - 8 * 5) / 195
        expected = (num_long * 20300 + (8 - num_long) * 20) / 8
        assert results["group_return_mean"] == pytest.approx(expected)


def test_bins_see_the_observations_that_a_custom_piece_left() -> None:
    seen: list[np.ndarray] = []

    def spy(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
        seen.append(observations.copy())
        return timesteps

    config = small_config(Identity, binning=spy)
    config.learners(learner_connector=lambda obs_space, act_space: Halved())
    with built(config) as algo:
        batch = run_pipeline(algo, sample_group(algo))
    assert set(np.concatenate(seen).flatten()) == {-0.5, 0.5}
    assert set(batch[Columns.OBS].flatten().tolist()) == {-0.5, 0.5}


# At the end of the pipeline, behind pieces that change the batch.


class CountsInTheBatch(ConnectorV2):
    """Adds the step, which `ShortOrLong` shows, to the rewards of a finished batch.

    And a lot to padding, which nobody may read.
    """

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        for columns in batch.values():
            rewards = columns[Columns.REWARDS] + columns[Columns.OBS][..., 1]
            if Columns.LOSS_MASK in columns:
                rewards[~columns[Columns.LOSS_MASK]] = 1000.0
            columns[Columns.REWARDS] = rewards
        return batch


class ShapesTheBatch(GPGTorchLearner):
    def build(self) -> None:
        super().build()
        self._learner_connector.insert_after(NumpyToTensor, CountsInTheBatch())


@pytest.mark.parametrize("module", ["stateless", "recurrent", "several"])
def test_returns_see_the_rewards_that_a_piece_left_in_the_batch(module: str) -> None:
    env = MultiShortOrLong if module == "several" else ShortOrLong
    config = small_config(env, normalize_advantages=False).learners(learner_class=ShapesTheBatch)
    if module == "recurrent":
        config.rl_module(model_config={"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 4})
    if module == "several":
        config.environment(env_config={"num_agents": 3})
        config.multi_agent(
            policies={"0", "others"},
            policy_mapping_fn=lambda agent, episode, **kwargs: "others" if agent else "0",
        )
    with built(config) as algo:
        group = sample_group(algo)
        batch = whole_group(algo, copy.deepcopy(group))
    members: dict[str, list[SingleAgentEpisode]] = defaultdict(list)
    for episode in ConnectorV2.single_agent_episode_iterator(group, False):
        members[episode.module_id or DEFAULT_MODULE_ID].append(episode)
    assert len(members) == (2 if module == "several" else 1)
    for module_id, episodes in members.items():
        assert len({len(episode) for episode in episodes}) == 2
        expected = estimate_advantages(
            [episode.get_observations()[:-1] for episode in episodes],
            [episode.get_rewards() + np.arange(len(episode)) for episode in episodes],
            gamma=0.99,
            binning="time",
        )
        columns = batch[module_id]
        mask = columns.get(Columns.LOSS_MASK, torch.ones(len(columns[Columns.ADVANTAGES]))) > 0
        advantages = columns[Columns.ADVANTAGES]
        assert advantages.dtype == torch.float32
        np.testing.assert_allclose(advantages[mask], np.concatenate(expected), rtol=1e-4, atol=0.01)
        assert (advantages[~mask] == 0.0).all()


def two_episodes() -> list[SingleAgentEpisode]:
    """Of 3 and 2 steps; a reward is 0.1, which single precision can't hold."""
    return [
        SingleAgentEpisode(
            observations=[np.zeros(1)] * (length + 1),
            actions=[0] * length,
            rewards=[0.1] * length,
            terminated=True,
            len_lookback_buffer=0,
        )
        for length in (3, 2)
    ]


def estimate_behind(rewards: torch.Tensor) -> tuple[Any, float]:
    """The advantages of `two_episodes` with this rewards column, and the mean of the returns."""
    piece = GroupAdvantageEstimation(gamma=1.0, normalize_advantages=False)
    batch = {DEFAULT_MODULE_ID: {Columns.REWARDS: rewards}}
    metrics = MetricsLogger(root=False)
    piece(rl_module=None, batch=batch, episodes=two_episodes(), metrics=metrics)
    mean = metrics.peek((DEFAULT_MODULE_ID, "group_return_mean"))
    return batch[DEFAULT_MODULE_ID][Columns.ADVANTAGES].tolist(), float(mean)


def test_rewards_that_no_piece_changed_keep_their_precision() -> None:
    _, mean = estimate_behind(torch.full((5,), 0.1))
    assert mean == pytest.approx(0.25, rel=1e-12)
    # Time bins: returns are .3, .2, .1 and .2, .1.
    changed, mean = estimate_behind(torch.tensor([0.1, 0.1, 0.1, 0.1, 2.1]))
    assert mean == pytest.approx((0.3 + 2.2) / 2, rel=1e-6)
    assert changed == pytest.approx([-0.95, -0.95, 0.0, 0.95, 0.95])


def test_a_column_of_whole_rewards_does_not_round_advantages() -> None:
    advantages, mean = estimate_behind(torch.tensor([1, 0, 0, 0, 0]))
    assert mean == 0.5
    assert advantages == [0.5, 0.0, 0.0, -0.5, 0.0]


@pytest.mark.parametrize("num_rewards", [4, 6])
def test_a_batch_of_other_steps_than_the_episodes_is_refused(num_rewards: int) -> None:
    with pytest.raises(ValueError, match=rf"has {num_rewards} steps, the episodes have 5"):
        estimate_behind(torch.zeros(num_rewards))


# What is no group.


@pytest.mark.parametrize("with_env_runner", [True, False])
def test_fragments_are_refused(with_env_runner: bool) -> None:
    with built(small_config(ShortOrLong)) as algo:
        if with_env_runner:
            episodes = algo.env_runner.sample(num_timesteps=12)
        else:
            whole = max(sample_group(algo), key=len)
            episodes = [whole[:100], whole[100:]]
        with pytest.raises(ValueError, match=r"Episode \w+ is a fragment.*whole episodes"):
            run_pipeline(algo, episodes)


def test_the_end_of_an_episode_alone_is_refused_too() -> None:
    with built(small_config(ShortOrLong)) as algo:
        whole = max(sample_group(algo), key=len)
        with pytest.raises(ValueError, match=r"fragment \(steps 100 to 200, done: True\)"):
            run_pipeline(algo, [whole[100:]])


# Metrics.


def test_the_metrics_of_a_group_are_right_from_the_first_iteration() -> None:
    groups: list[list[SingleAgentEpisode]] = []
    config = small_config(ShortOrLong, group_size=6)
    with built(config) as algo:
        sample = algo._sample_group

        def remember(weights: Any) -> Any:
            groups.append(sample(weights))
            return groups[-1]

        algo._sample_group = remember  # type: ignore[method-assign]
        for _ in range(2):
            results = module_results(algo.train())
            lengths = np.array([len(episode) for episode in groups[-1]])
            assert results["group_num_episodes"] == 6
            assert results["group_num_env_steps"] == lengths.sum()
            # Rewards are 1: a return is a length.
            assert results["group_return_mean"] == pytest.approx(lengths.mean())
            assert results["group_return_std"] == pytest.approx(lengths.std())
            # Of 6 sorted returns, the quantiles are in the middle of the outer two on either side.
            outer = np.sort(lengths)[[0, 1, -2, -1]].reshape(2, 2).mean(1)
            assert results["group_return_p10"] == pytest.approx(outer[0])
            assert results["group_return_p90"] == pytest.approx(outer[1])
            # Time bins: one per step of the longest episode.
            assert results["group_num_bins"] == lengths.max()
            num_long = int((lengths == 200).sum())
            # Steps 5 to 199 are visited by the long ones only.
            singletons = 195 if num_long == 1 else 0
            assert results["group_singleton_fraction"] == pytest.approx(singletons / lengths.sum())
            # Over the steps that have company, each predicted by the others.
            timesteps = np.concatenate([np.arange(length) for length in lengths])
            company = (timesteps < 5) | (num_long > 1)
            returns = np.concatenate([algo_returns(length) for length in lengths])[company]
            errors = by_hand(
                groups[-1], gamma=algo.config.gamma, normalize=False, leave_one_out=True
            )[company]
            for name in ("baseline_explained_variance", "bins_explained_variance"):
                expected = 1.0 - errors.var() / returns.var()
                assert results[name] == pytest.approx(expected, abs=1e-4)


def algo_returns(length: int) -> np.ndarray:
    """(1 - gamma^n) / (1 - gamma) with n steps to go, gamma 0.99."""
    to_go = np.arange(length, 0, -1)
    return (1.0 - 0.99**to_go) / 0.01


def test_all_metrics_that_the_documentation_names_are_there() -> None:
    with built(small_config(Identity)) as algo:
        results = module_results(algo.train())
    assert set(results) >= GROUP_METRICS


@pytest.mark.filterwarnings("ignore:group_size=1 with time bins:UserWarning:rllib_gpg")
def test_a_group_of_singletons_is_told_by_its_metrics() -> None:
    with built(small_config(Identity, group_size=1)) as algo:
        results = module_results(algo.train())
    assert results["group_singleton_fraction"] == 1.0
    assert results["group_num_bins"] == results["group_num_env_steps"] == 10


# Alone, in the pipeline of an algorithm that knows nothing of GPG.


class AdvantageLoss(TorchLearner):
    """The plain policy gradient of whatever stands in the advantages column."""

    def compute_loss_for_module(
        self, *, module_id: str, batch: Any, fwd_out: Any, **kwargs: Any
    ) -> torch.Tensor:
        dist_class = self.module[module_id].get_train_action_dist_cls()
        dist = dist_class.from_logits(fwd_out[Columns.ACTION_DIST_INPUTS])
        self.metrics.log_value((module_id, "rows"), len(batch[Columns.ADVANTAGES]), window=1)
        return -(dist.logp(batch[Columns.ACTIONS]) * batch[Columns.ADVANTAGES]).mean()


def vpg_config(env: Any = Identity) -> VPGConfig:
    return (
        VPGConfig()
        .environment(env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, env_runner_cls=GroupEnvRunner)
        .training(num_episodes_per_train_batch=32, lr=0.02, gamma=0.0)
        .learners(
            learner_class=AdvantageLoss,
            learner_connector=lambda obs_space, act_space: GroupAdvantageEstimation(gamma=0.0),
        )
        .debugging(seed=1, log_sys_usage=False)
    )


def test_the_piece_works_alone_in_the_pipeline_of_another_algorithm() -> None:
    with built(vpg_config()) as algo:  # type: ignore[arg-type]
        results = algo.train()["learners"][DEFAULT_MODULE_ID]
        assert results["rows"] == results["group_num_env_steps"] == 320
        assert results["group_num_episodes"] == 32
        first = results["group_return_mean"]
        for _ in range(14):
            results = algo.train()["learners"][DEFAULT_MODULE_ID]
    # It learns: chance gives 5, the best return is 10.
    assert results["group_return_mean"] > max(8.0, first + 2.0)


def test_the_piece_remembers_in_the_pipeline_of_another_algorithm() -> None:
    config = vpg_config().learners(
        learner_connector=lambda obs_space, act_space: GroupAdvantageEstimation(
            gamma=0.9, baseline="ridge", lambda_=0.9
        )
    )
    with built(config) as algo:  # type: ignore[arg-type]
        results = [algo.train()["learners"][DEFAULT_MODULE_ID] for _ in range(4)]
    assert results[0]["baseline_ridge_share"] == 0.0
    assert results[0]["baseline_explained_variance"] == results[0]["bins_explained_variance"]
    assert results[-1]["baseline_explained_variance"] != results[-1]["bins_explained_variance"]


def test_the_piece_alone_refuses_the_fragments_of_another_algorithm() -> None:
    with built(vpg_config(ShortOrLong)) as algo:  # type: ignore[arg-type]
        fragments = algo.env_runner.sample(num_timesteps=12)
        with pytest.raises(ValueError, match="is a fragment"):
            algo.learner_group.update(episodes=fragments, timesteps={})


def test_the_piece_alone_refuses_a_learner_whose_critic_has_the_last_word() -> None:
    config = (
        PPOConfig()
        .environment(Identity)
        .env_runners(num_env_runners=0, batch_mode="complete_episodes")
        .learners(
            learner_connector=lambda obs_space, act_space: GroupAdvantageEstimation(gamma=0.99)
        )
        .training(train_batch_size_per_learner=40, minibatch_size=20, num_epochs=1)
    )
    with (
        built(config) as algo,  # type: ignore[arg-type]
        pytest.raises(ValueError, match=r"would replace those of the group. Use `GPGConfig`"),
    ):
        algo.train()


def test_the_piece_needs_no_metrics_logger() -> None:
    piece = GroupAdvantageEstimation(gamma=0.99)
    with built(small_config(Identity)) as algo:
        group = sample_group(algo)
        batch = piece(rl_module=algo.get_module(), batch={}, episodes=group)
    (advantages,) = (items for column, items in batch.items() if column == Columns.ADVANTAGES)
    assert sum(len(items) for items in advantages.values()) == 8


def test_the_default_pipeline_can_be_left_to_the_user() -> None:
    """`add_default_connectors_to_learner_pipeline=False` means it: the piece isn't added."""
    config: GPGConfig = small_config(Identity)
    config.learners(add_default_connectors_to_learner_pipeline=False)
    pipeline = config.build_learner_connector(None, None)
    assert not [p for p in pipeline.connectors if isinstance(p, GroupAdvantageEstimation)]

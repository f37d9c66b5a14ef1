"""How a group is dealt to learners, and how each goes through what it got."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from rllib_gpg.learning import GPGTorchLearner
from rllib_gpg.learning.batch import MinibatchPlan, plan_minibatches, shard
from tests.envs import Identity
from tests.helpers import SMALL_NET, built, small_config

pytestmark = pytest.mark.usefixtures("ray_session")


def flat(num_rows: int, offset: int = 0) -> dict[str, Any]:
    """The batch of a stateless module; every row is named by a number in each column."""
    names = torch.arange(offset, offset + num_rows)
    return {
        Columns.ADVANTAGES: names.float(),
        Columns.OBS: {"a": names[:, None], "b": (names, names)},
    }


def recurrent(num_rows: int, max_seq_len: int) -> dict[str, Any]:
    """The batch of a recurrent module: zero-padded sequences."""
    shape = (num_rows, max_seq_len)
    names = torch.arange(num_rows)
    return {
        Columns.ADVANTAGES: torch.zeros(shape),
        Columns.OBS: names[:, None].expand(shape),
        Columns.LOSS_MASK: torch.ones(shape, dtype=torch.bool),
        Columns.SEQ_LENS: torch.full((num_rows,), max_seq_len),
        Columns.STATE_IN: {"h": names[:, None].float()},
    }


def plan(group: dict[str, Any], **settings: Any) -> MinibatchPlan:
    shards = shard(group, settings.pop("num_learners", 1), np.random.default_rng(0))
    defaults = {"num_epochs": 1, "num_minibatches": 4, "minibatch_size": None}
    return plan_minibatches(shards, **{**defaults, **settings})


# The plan.


@pytest.mark.parametrize(
    ("num_rows", "settings", "expected"),
    [
        # 100 steps in 4 minibatches of 25.
        (100, {}, MinibatchPlan(25, 4)),
        (100, {"num_epochs": 3}, MinibatchPlan(25, 12)),
        # 101 steps: 26, so that 4 minibatches hold them all.
        (101, {}, MinibatchPlan(26, 4)),
        # 101 over 2 learners: 51 at most each, in 4 minibatches of 13.
        (101, {"num_learners": 2}, MinibatchPlan(13, 4)),
        # Fewer steps than minibatches: one step each.
        (3, {}, MinibatchPlan(1, 3)),
        # One minibatch per epoch: each learner takes its whole shard, 2 steps or 1.
        (3, {"num_learners": 2}, MinibatchPlan(None, 1)),
        (101, {"num_learners": 2, "num_minibatches": 1}, MinibatchPlan(None, 1)),
        # minibatch_size as in RLlib: steps per minibatch and learner; the last one wraps around.
        (100, {"minibatch_size": 32}, MinibatchPlan(32, 4)),
        (100, {"minibatch_size": 50, "num_epochs": 2}, MinibatchPlan(50, 4)),
        (100, {"minibatch_size": 20, "num_learners": 2}, MinibatchPlan(20, 3)),
        # Never more than there are.
        (100, {"minibatch_size": 1000, "num_epochs": 3}, MinibatchPlan(None, 3)),
    ],
)
def test_plan_of_a_stateless_module(
    num_rows: int, settings: dict[str, Any], expected: MinibatchPlan
) -> None:
    assert plan({"p": flat(num_rows)}, **settings) == expected


def test_the_module_with_the_most_steps_decides() -> None:
    group = {"small": flat(10), "large": flat(100), "middle": flat(50)}
    assert plan(group) == MinibatchPlan(25, 4)


def test_a_recurrent_module_is_dealt_in_whole_sequences() -> None:
    # 8 sequences x 5 steps = 40 steps in 4 minibatches of 10: 2 sequences each.
    assert plan({"p": recurrent(8, 5)}) == MinibatchPlan(10, 4)


def test_a_recurrent_module_never_has_more_minibatches_than_sequences() -> None:
    # 2 sequences x 5 steps: 2 minibatches of one sequence.
    assert plan({"p": recurrent(2, 5)}) == MinibatchPlan(5, 2)
    assert plan({"p": recurrent(2, 5)}, num_learners=2) == MinibatchPlan(None, 1)


# The shards.


def rows_of(batch: Any, module_id: str = "p") -> list[int]:
    return batch.policy_batches[module_id][Columns.ADVANTAGES].long().tolist()


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [7, 8, 100])
def test_every_row_is_dealt_exactly_once(num_rows: int, num_shards: int) -> None:
    shards = shard({"p": flat(num_rows)}, num_shards, np.random.default_rng(0))
    assert len(shards) == num_shards
    dealt = [rows_of(batch) for batch in shards]
    assert sorted(row for rows in dealt for row in rows) == list(range(num_rows))
    lengths = [len(rows) for rows in dealt]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(("num_rows", "num_shards"), [(1, 2), (1, 5), (3, 4)])
def test_no_shard_is_empty_with_fewer_rows_than_shards(num_rows: int, num_shards: int) -> None:
    shards = shard({"p": flat(num_rows)}, num_shards, np.random.default_rng(0))
    dealt = [rows_of(batch) for batch in shards]
    assert [len(rows) for rows in dealt] == [1] * num_shards
    assert {row for rows in dealt for row in rows} == set(range(num_rows))


def test_modules_are_dealt_apart() -> None:
    group = {"p": flat(10), "q": flat(4, offset=100)}
    shards = shard(group, 3, np.random.default_rng(0))
    for module_id, names in (("p", range(10)), ("q", range(100, 104))):
        dealt = [row for batch in shards for row in rows_of(batch, module_id)]
        assert sorted(dealt) == list(names)


def test_all_columns_of_a_row_stay_together() -> None:
    for batch in shard({"p": flat(20)}, 2, np.random.default_rng(0)):
        names = rows_of(batch)
        obs = batch.policy_batches["p"][Columns.OBS]
        assert obs["a"][:, 0].tolist() == obs["b"][0].tolist() == obs["b"][1].tolist() == names


def test_sequences_of_a_recurrent_module_stay_whole() -> None:
    shards = shard({"p": recurrent(5, 3)}, 2, np.random.default_rng(0))
    seen = []
    for batch in shards:
        columns = batch.policy_batches["p"]
        names = columns[Columns.OBS]
        assert (names == names[:, :1]).all()
        assert names[:, 0].tolist() == columns[Columns.STATE_IN]["h"][:, 0].long().tolist()
        seen += names[:, 0].tolist()
    assert sorted(seen) == list(range(5))


def test_rows_are_shuffled_by_the_generator_alone() -> None:
    """Rows come in episode order; the first minibatch must not be the first few episodes."""
    dealt = [rows_of(shard({"p": flat(50)}, 1, np.random.default_rng(s))[0]) for s in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]
    assert dealt[0] != list(range(50))


def test_env_steps_of_a_shard_are_its_own() -> None:
    shards = shard({"p": flat(7)}, 2, np.random.default_rng(0))
    assert [batch.env_steps() for batch in shards] == [4, 3]


# Through RLlib's minibatch iterator.


class Recorder(GPGTorchLearner):
    """Writes down the observations of each minibatch."""

    minibatches: list[list[tuple[float, ...]]]

    def build(self) -> None:
        super().build()
        self.minibatches = []

    def compute_loss_for_module(self, *, batch: dict[str, Any], **kwargs: Any) -> Any:
        logp = batch[Columns.ACTION_LOGP]
        rows = logp.reshape(len(logp), -1)
        self.minibatches.append([tuple(row) for row in rows.tolist()])
        return super().compute_loss_for_module(batch=batch, **kwargs)


def minibatches_of_one_epoch(config: Any) -> tuple[set[tuple[float, ...]], list[Any]]:
    """The rows of a group, and the rows of each minibatch; a row is known by its log-probs."""
    groups: list[Any] = []
    with built(config.training(num_epochs=1).learners(learner_class=Recorder)) as algo:
        estimate = algo._estimate_advantages

        def remember(episodes: Any) -> Any:
            groups.append(estimate(episodes))
            return groups[-1]

        algo._estimate_advantages = remember
        algo.train()
        learner = algo.learner_group.foreach_learner(lambda learner: learner.minibatches)
        minibatches = learner.result_or_errors[0].get()
    logp = groups[0].shards[0].policy_batches["default_policy"][Columns.ACTION_LOGP]
    return {tuple(row) for row in logp.reshape(len(logp), -1).tolist()}, minibatches


# Of 47 x 10 steps, 12 rows are 120 steps, but 47 * (120 / 470) is less than 12 in floating point.
@pytest.mark.parametrize("group_size", [5, 8, 47])
@pytest.mark.parametrize(
    ("max_seq_len", "rows_per_episode"),
    [
        pytest.param(None, 10, id="stateless"),
        # Episodes have 10 steps: sequences of 4, 4 and 2 steps,
        pytest.param(4, 3, id="recurrent"),
        # or one sequence, three quarters of which are padding.
        pytest.param(40, 1, id="recurrent-padded"),
    ],
)
def test_an_epoch_goes_over_every_row_about_once(
    max_seq_len: int | None, rows_per_episode: int, group_size: int
) -> None:
    config = small_config(Identity).training(group_size=group_size, num_minibatches=4)
    if max_seq_len is not None:
        lstm = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": max_seq_len}
        config.rl_module(model_config={**SMALL_NET, **lstm})
    rows, minibatches = minibatches_of_one_epoch(config)
    num_rows = group_size * rows_per_episode
    visits = Counter(row for minibatch in minibatches for row in minibatch)
    assert set(visits) == rows
    assert len(minibatches) == 4
    # All minibatches have the same number of rows; to fill the last one, rows come again.
    assert [len(minibatch) for minibatch in minibatches] == [-(-num_rows // 4)] * 4

"""From the learner connector's output to what each learner gets: shuffled, equal shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.learning.trajectories import TRAJECTORIES
from rllib_gpg.seeding import SHUFFLE, generator

ModuleBatch = dict[str, Any]
"""Columns of one module, their leaves tensors [B, ...], or [B, T, ...] if it is recurrent."""


@dataclass(frozen=True)
class MinibatchPlan:
    """How every learner goes through its shard: the same number of times, whatever its length.

    Learners that counted for themselves would wait for each other for ever, once their shards
    differ by one row.

    Attributes:
        minibatch_size: In steps, per learner; None: each learner's whole shard.
        num_total_minibatches: Over all epochs.
    """

    minibatch_size: int | None
    num_total_minibatches: int


def shuffle_generator(run_seed: int, group: int) -> np.random.Generator:
    """Returns the generator that shuffles the steps of group number `group` for the learners."""
    return generator(run_seed, SHUFFLE, group)


def num_rows(module_batch: ModuleBatch) -> int:
    """Returns B: the number of steps, or of zero-padded sequences for a recurrent module."""
    # Any column but the infos, which RLlib keeps as a list without padding. A module that has a
    # loss of its own, such as one that makes intrinsic rewards, needs no advantages.
    name = next(name for name in module_batch if name != Columns.INFOS)
    return len(tree.flatten(module_batch[name])[0])


def select_modules(
    group: dict[ModuleID, ModuleBatch], policies_to_train: Any
) -> dict[ModuleID, ModuleBatch]:
    """Leaves out the modules that aren't to be trained, once for all learners.

    Learners that asked for themselves might disagree, since each has another shard, and then wait
    for each other for ever. Nor should such a module decide how many minibatches there are.

    Args:
        group: The batch of the whole group.
        policies_to_train: The config's setting: None (all), a collection of module IDs, or a
            function of a module ID and a `MultiAgentBatch`, here of the whole group.
    """
    if policies_to_train is None:
        return group
    if callable(policies_to_train):
        batch = multi_agent_batch(group)
        return {mid: columns for mid, columns in group.items() if policies_to_train(mid, batch)}
    return {mid: columns for mid, columns in group.items() if mid in policies_to_train}


def plan_minibatches(
    shards: list[MultiAgentBatch],
    *,
    num_epochs: int,
    num_minibatches: int,
    minibatch_size: int | None,
) -> MinibatchPlan:
    """Works out the minibatches of one update, once for all learners.

    Args:
        shards: What each learner goes through. The module with the most steps decides; others go
            round more often, as in RLlib. None at all: there is nothing to go through.
        num_epochs: Passes over the group.
        num_minibatches: Minibatches per epoch, if `minibatch_size` is None.
        minibatch_size: Steps per minibatch and learner; at most the learner's whole shard.
    """
    if not shards:
        return MinibatchPlan(None, 0)
    largest = [max(batch.policy_batches.values(), key=len) for batch in shards]
    rows = [num_rows(module_batch) for module_batch in largest]
    most_steps = max(map(len, largest))
    if minibatch_size is None:
        per_epoch = min(num_minibatches, *rows)
        rows_each = [math.ceil(n / per_epoch) for n in rows]
        size = max(map(_size_of, rows_each, largest))
        # All minibatches have one size: to fill it, the smaller shards would repeat a row.
        return MinibatchPlan(size if per_epoch > 1 else None, num_epochs * per_epoch)
    # At least one sequence, on every learner.
    smallest = max(_size_of(1, module_batch) for module_batch in largest)
    size = max(smallest, min(minibatch_size, most_steps))
    # An epoch ends within a minibatch that begins the next, as in RLlib.
    in_all = math.ceil(num_epochs * most_steps / size)
    return MinibatchPlan(size if size < most_steps else None, in_all)


def _size_of(count: int, module_batch: SampleBatch) -> int:
    """Returns the minibatch size, in steps, with which RLlib takes so many rows of a shard."""
    rows, steps = num_rows(module_batch), len(module_batch)
    size = math.ceil(count * steps / rows)
    # Of a recurrent module, RLlib counts the steps without padding but takes whole rows: it works
    # out how many in floating point, which may come out below a whole number, and rounds down.
    if Columns.SEQ_LENS in module_batch and int(rows * (size / steps)) < count:
        size += 1
    return size


Rows = dict[ModuleID, np.ndarray]
"""Which rows of each module's batch, in which order."""


def deal(
    group: dict[ModuleID, ModuleBatch], num_shards: int, generator: np.random.Generator
) -> list[Rows]:
    """Shuffles each module's rows and deals them out.

    Rows come in episode order, and RLlib shuffles only after the first epoch: without this the
    first minibatches would each hold a few episodes only.

    Args:
        group: The batch of the whole group.
        num_shards: To how many learners.
        generator: The source of the permutations.

    Returns:
        The rows of `num_shards` shards. Their numbers differ by one at most; no shard is empty:
        with fewer rows than shards, rows are dealt twice. Where the loss asks for whole
        trajectories, these are dealt, and numbers of rows may differ by more.
    """
    dealt: dict[ModuleID, list[np.ndarray]] = {}
    for module_id, module_batch in group.items():
        if TRAJECTORIES in module_batch:
            # Their ratios are of whole trajectories.
            dealt[module_id] = _deal_trajectories(module_batch, num_shards, generator)
            continue
        rows = generator.permutation(num_rows(module_batch))
        rows = np.resize(rows, max(len(rows), num_shards))
        dealt[module_id] = np.array_split(rows, num_shards)
    return [{mid: of_shards[i] for mid, of_shards in dealt.items()} for i in range(num_shards)]


def shard(
    group: dict[ModuleID, ModuleBatch], num_shards: int, generator: np.random.Generator
) -> list[MultiAgentBatch]:
    """Deals out a group's rows; see `deal`. Shards are copies, to be sent."""
    return [
        multi_agent_batch({mid: take_rows(columns, rows[mid]) for mid, columns in group.items()})
        for rows in deal(group, num_shards, generator)
    ]


def _deal_trajectories(
    module_batch: ModuleBatch, num_shards: int, generator: np.random.Generator
) -> list[np.ndarray]:
    # Of a row of padded steps all are of one trajectory.
    number_B = module_batch[TRAJECTORIES].cpu().numpy().reshape(num_rows(module_batch), -1)[:, 0]
    numbers = generator.permutation(number_B.max() + 1)
    numbers = np.resize(numbers, max(len(numbers), num_shards))
    return [
        np.flatnonzero(np.isin(number_B, of_shard))
        for of_shard in np.array_split(numbers, num_shards)
    ]


def take_rows(module_batch: ModuleBatch, rows: np.ndarray) -> ModuleBatch:
    """Returns some rows of all columns, copied."""
    index = torch.from_numpy(rows)
    return {
        name: _take_infos(module_batch, rows)
        if name == Columns.INFOS
        else column[index]
        if isinstance(column, torch.Tensor)
        else tree.map_structure(lambda leaf: leaf[index], column)
        for name, column in module_batch.items()
    }


def _take_infos(module_batch: ModuleBatch, rows: np.ndarray) -> list[Any]:
    """RLlib keeps infos as a list: of one dict per step, without padding."""
    infos = module_batch[Columns.INFOS]
    if Columns.SEQ_LENS not in module_batch:
        return [infos[row] for row in rows]
    lengths = module_batch[Columns.SEQ_LENS].cpu().numpy()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    return [info for row in rows for info in infos[starts[row] : ends[row]]]


def multi_agent_batch(modules: dict[ModuleID, ModuleBatch]) -> MultiAgentBatch:
    """Returns the batches of modules as RLlib's learners take them."""
    batches = {
        module_id: SampleBatch(module_batch, _zero_padded=Columns.SEQ_LENS in module_batch)
        for module_id, module_batch in modules.items()
    }
    return MultiAgentBatch(batches, env_steps=max(map(len, batches.values())))

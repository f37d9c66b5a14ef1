"""The minibatches of an update, in RLlib's order, without RLlib's copies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.learning.batch import ModuleBatch, Rows, num_rows, take_rows
from rllib_gpg.nested import fresh


class Minibatches:
    """Goes through a batch, minibatch by minibatch: an iterator of one dict of columns per module.

    Each module has as many steps in a minibatch; who has fewer rows goes round more often. The
    order is that of RLlib's `MiniBatchCyclicIterator`, which shuffles the whole batch in memory
    after each pass, with the same draws from NumPy's global generator.

    Attributes:
        count: How many minibatches there have been.
        num_steps: Their steps, of each module.
    """

    def __init__(
        self,
        batch: MultiAgentBatch,
        *,
        size: int | None,
        num_epochs: int,
        num_total: int,
        shuffle: bool,
        order: Rows | None = None,
    ):
        """Takes what RLlib's iterator takes.

        Args:
            batch: The batch.
            size: Steps per minibatch and module; None: each minibatch is the whole batch, as it is.
            num_epochs: Passes over the batch of the module that is last to have made them.
            num_total: How many minibatches in all; 0: as many as the epochs take.
            shuffle: Whether to shuffle a module's rows after each pass over them.
            order: The order of each module's rows in the first pass. Default None: as they are.
        """
        self.count = 0
        self.num_steps: Counter[ModuleID] = Counter()
        self._modules = {
            module_id: _Module(
                columns, size, shuffle and num_epochs > 1, order[module_id] if order else None
            )
            for module_id, columns in batch.policy_batches.items()
        }
        # As many as the module needs that takes longest.
        epochs_take = [math.ceil(num_epochs * m.num_rows / m.size) for m in self._modules.values()]
        self._num_total = num_total or max(epochs_take, default=0)
        self._num_before_last_epoch = self._num_total - math.ceil(self._num_total / num_epochs)

    def __iter__(self) -> Iterator[dict[ModuleID, ModuleBatch]]:
        """Yields the minibatches."""
        while self._modules and self.count < self._num_total:
            minibatch = {mid: module.next() for mid, module in self._modules.items()}
            self.count += 1
            self.num_steps.update({mid: _num_steps(columns) for mid, columns in minibatch.items()})
            yield minibatch

    @property
    def in_last_epoch(self) -> bool:
        """Whether the minibatch that has been yielded last is of the last epoch."""
        return self.count > self._num_before_last_epoch


class _Module:
    """The rows of one module, steps or zero-padded sequences, gone through again and again."""

    def __init__(
        self, batch: SampleBatch, size: int | None, shuffle: bool, order: np.ndarray | None
    ):
        self._columns = dict(batch)
        self.num_rows = num_rows(self._columns)
        self._is_whole = size is None
        self.size = self.num_rows if size is None else size
        if size is not None and Columns.SEQ_LENS in batch:
            # Whole sequences, of which there are so many to the step; one at least.
            self.size = max(1, int(self.num_rows * (size / len(batch))))
        self._shuffle = shuffle
        self._order = np.arange(self.num_rows) if order is None else order
        self._start = 0

    def next(self) -> ModuleBatch:
        if self._is_whole:
            return fresh(self._columns)
        missing, parts = self.size, []
        while self._start + missing >= self.num_rows:
            parts.append(self._order[self._start :])
            missing -= len(parts[-1])
            self._start = 0
            if self._shuffle:
                self._order = self._order[np.random.permutation(self.num_rows)]
        parts.append(self._order[self._start : self._start + missing])
        self._start += missing
        return take_rows(self._columns, np.concatenate(parts))


def _num_steps(columns: dict[str, Any]) -> int:
    lengths = columns.get(Columns.SEQ_LENS)
    return num_rows(columns) if lengths is None else int(torch.as_tensor(lengths).sum())

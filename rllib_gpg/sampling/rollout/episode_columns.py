"""The steps of all running episodes, column by column, in memory that follows the data.

Array names carry their axes: E = envs, R = the envs concerned, K = vector steps of a block, T =
steps of one episode.

Rows may be tensors. Then so is the block, on their device, and episodes are NumPy's nevertheless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_gpg.nested import map_leaves, on_host

# A block of observations takes up about so many bytes, but has at least and at most so many steps.
_BLOCK_BYTES = 2**20
_FEWEST_STEPS, _MOST_STEPS = 8, 128


class EpisodeColumns:
    """Takes in whole vector steps, and gives out whole episodes.

    Steps are written to a block of arrays [K, E, ...]. When it is full, each running episode's part
    of it is copied out, and the block is used again: memory follows the steps of the episodes,
    not the longest of them times the number of envs.
    """

    def __init__(self, num_envs: int):
        """Starts without any running episode.

        Args:
            num_envs: E.
        """
        self._num_envs = num_envs
        self._num_steps = 0
        self._block: dict[str, Any] = {}
        # Where in the block the vector step is whose actions come next.
        self._now = -1
        # Where in the block the running episode of an env begins.
        self._first_E = [0] * num_envs
        # Per running episode and column, what earlier blocks held of it.
        self._earlier: dict[int, dict[str, list[Any]]] = {}

    def begin(self, envs: Sequence[int], obs_R: Any) -> None:
        """Begins an episode in each of the given envs, with its first observation."""
        if not self._num_steps:
            step_bytes = self._num_envs * obs_R[0].nbytes
            self._num_steps = int(
                np.clip(_BLOCK_BYTES // max(1, step_bytes), _FEWEST_STEPS, _MOST_STEPS)
            )
        self._write(self._now + 1, envs, {Columns.OBS: obs_R})
        for env in envs:
            self._first_E[env] = self._now + 1
            self._earlier[env] = defaultdict(list)

    def add(self, envs: np.ndarray, columns: dict[str, Any], next_obs_R: Any) -> None:
        """Adds one step to the episodes of the given envs, and the observation it led to."""
        self._write(self._now, envs, columns)
        self._write(self._now + 1, envs, {Columns.OBS: next_obs_R})

    def end(self, env: int) -> dict[str, Any]:
        """Returns the columns [T, ...] of an env's episode, with T + 1 observations."""
        earlier, first, end = self._earlier.pop(env), self._first_E[env], self._now + 1

        def whole(name: str) -> Any:
            # The final observation belongs to the episode too.
            last = self._part(name, env, first, end + (name == Columns.OBS))
            if not earlier:
                return map_leaves(_copy, last)
            last = on_host(last)
            return map_leaves(lambda *parts: np.concatenate(parts), *earlier[name], last)

        return {name: whole(name) for name in self._block}

    def advance(self) -> None:
        """Goes on to the next vector step."""
        self._now += 1
        if self._now == self._num_steps:
            for env, earlier in self._earlier.items():
                if self._first_E[env] < self._now:
                    for name in self._block:
                        part = self._part(name, env, self._first_E[env], self._now)
                        earlier[name].append(map_leaves(_copy, part))
                self._first_E[env] = 0
            obs_KE = self._block[Columns.OBS]
            obs_KE[0] = obs_KE[self._now]
            self._now = 0

    def observations(self, envs: Sequence[int] | np.ndarray) -> np.ndarray | Tensor:
        """Returns what the given envs show now, [R, ...], not to be written to."""
        return self._block[Columns.OBS][self._index(self._now, envs)]

    def _part(self, name: str, env: int, first: int, end: int) -> Any:
        return map_leaves(lambda column_KE: column_KE[first:end, env], self._block[name])

    def _write(self, k: int, envs: Sequence[int] | np.ndarray, rows: dict[str, Any]) -> None:
        index = self._index(k, envs)

        def write(column_KE: Any, row_R: Any) -> None:
            column_KE[index] = row_R

        for name, row_R in rows.items():
            if name not in self._block:
                self._block[name] = map_leaves(self._empty, row_R)
            map_leaves(write, self._block[name], row_R)

    def _index(self, k: int, envs: Sequence[int] | np.ndarray) -> Any:
        # Envs come in order, so all of them are the whole row, which is faster to address.
        return k if len(envs) == self._num_envs else (k, envs)

    def _empty(self, row_R: np.ndarray | Tensor) -> np.ndarray | Tensor:
        # One more than there are steps: observations are one ahead of everything else.
        shape = (self._num_steps + 1, self._num_envs, *row_R.shape[1:])
        if isinstance(row_R, Tensor):
            return row_R.new_empty(shape)
        return np.empty(shape, row_R.dtype)


def _copy(part: np.ndarray | Tensor) -> np.ndarray:
    return np.array(on_host(part))

"""The infos of an episode: most of them empty, or left behind where they were sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.annotations import override


class SparseInfos(InfiniteLookbackBuffer):
    """A list of dicts, one per observation, that is made when somebody looks at it.

    Many envs have nothing to say at most steps, and nobody looks. To make a dict for each of these
    steps, and to have Python's garbage collector go through them, took a tenth of the time in which
    CartPole is sampled; and they would travel to the learners.
    """

    def __init__(self, filled: Mapping[int, dict[str, Any]], num_infos: int):
        """Takes the infos that aren't empty.

        Args:
            filled: Timestep -> info.
            num_infos: How many there are with the empty ones.
        """
        self._filled = filled
        self._num_infos = num_infos
        self._list: list[dict[str, Any]] | None = None
        self.lookback, self.finalized, self.space = 0, False, None

    @property
    def data(self) -> Any:
        """All infos, as RLlib's buffers hold them."""
        if self._list is None:
            self._list = [self._filled.get(t) or {} for t in range(self._num_infos)]
        return self._list

    @data.setter
    def data(self, data: Any) -> None:
        self._list = data

    @override(InfiniteLookbackBuffer)
    def __len__(self) -> int:
        """How many infos there are, without making them."""
        return self._num_infos if self._list is None else super().__len__()


class InfosLeftBehind(InfiniteLookbackBuffer):
    """In the place of the infos of an episode that was sent without them.

    Whoever reads one after all is told why there are none, instead of going on with empty ones.
    """

    def __init__(self, num_infos: int, lookback: int):
        """Takes how many there were, without those to look back at, and how many of the latter."""
        self._num_infos = num_infos
        self.lookback, self.finalized, self.space = lookback, False, None

    @property
    def data(self) -> NoReturn:
        """Raises an error."""
        raise RuntimeError(
            "The infos of this episode stayed on its env runner, because nothing said that it "
            "reads them. Learner connector pieces of one's own are given infos, unless their class "
            "says `reads_infos = False`."
        )

    @override(InfiniteLookbackBuffer)
    def __len__(self) -> int:
        """How many infos there were."""
        return self._num_infos

    @override(InfiniteLookbackBuffer)
    def len_incl_lookback(self) -> int:
        """How many infos there were, with those to look back at."""
        return self._num_infos + self.lookback

    @override(InfiniteLookbackBuffer)
    def __repr__(self) -> str:
        """Says how many there were."""
        return f"{type(self).__name__}({self._num_infos})"

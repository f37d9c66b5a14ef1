"""Episodes on their way from an env runner: a few arrays, and objects again where they are read.

An episode of RLlib is some forty objects and an array per column; to make those of a share took
the algorithm's process longer than anything else that it does for it. What travels instead are
columns, each the arrays of one type and row shape of all episodes, one behind the other, and bytes
that nobody opens until somebody looks at an episode.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import gymnasium as gym
import numpy as np
from ray import cloudpickle
from ray.cloudpickle import CloudPickler
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import EpisodeType

from rllib_gpg.sampling.rollout.sparse_infos import InfosLeftBehind

# An array of so many bytes, such as an episode of images, travels as it is: to put it behind others
# would cost more than it spares. Ray hands it on without a copy.
_LARGE_BYTES = 2**16


@dataclass(frozen=True)
class PackedEpisodes:
    """The episodes of a share, as they travel.

    Attributes:
        ids: The ids of the episodes.
        lengths: Their numbers of steps.
        columns: Arrays [rows of all episodes, ...].
        large: Arrays of at least 64 kB, as they were.
        spaces: The spaces that they name, pickled; alike in most shares of a group.
        objects: All else, pickled, with references to rows of columns, to arrays and to spaces.
    """

    ids: list[str]
    lengths: list[int]
    columns: list[np.ndarray]
    large: list[np.ndarray]
    spaces: bytes
    objects: bytes

    def open(self, known_spaces: dict[bytes, list[gym.Space]]) -> list[EpisodeType]:
        """Returns the episodes as they were packed; all but large arrays can be written to.

        Args:
            known_spaces: The spaces that have been unpickled so far; those of these come to it.
        """
        if self.spaces not in known_spaces:
            known_spaces[self.spaces] = pickle.loads(self.spaces)
        # Ray's are read-only.
        columns = [c if c.flags.writeable else c.copy() for c in self.columns]
        stand_ins: dict[Callable[..., Any], Callable[..., Any]] = {
            _rows: lambda column, first, end: columns[column][first:end],
            _large: self.large.__getitem__,
            _space: known_spaces[self.spaces].__getitem__,
        }
        opener = _Opener(io.BytesIO(self.objects), stand_ins)
        episodes: list[EpisodeType] = opener.load()
        return episodes


def pack(episodes: list[EpisodeType], *, infos: bool) -> PackedEpisodes:
    """Packs the episodes of a share.

    Args:
        episodes: Whole episodes, or pieces, of one agent or of several.
        infos: Whether to take the infos along. Without them, reading one raises an error.

    Raises:
        Exception: Whatever objects raise that can't be pickled.
    """
    objects = io.BytesIO()
    packer = _Packer(objects, infos=infos)
    packer.dump(episodes)
    return PackedEpisodes(
        [episode.id_ for episode in episodes],
        [len(episode) for episode in episodes],
        [np.concatenate(arrays) for arrays in packer.columns],
        packer.large,
        cloudpickle.dumps(packer.spaces, protocol=5),
        objects.getvalue(),
    )


def ids_of(episodes: PackedEpisodes | Sequence[EpisodeType]) -> list[str]:
    """Returns the ids of episodes; nothing is opened for them."""
    if isinstance(episodes, PackedEpisodes | Episodes):
        return episodes.ids
    return [episode.id_ for episode in episodes]


class Episodes(Sequence[EpisodeType]):
    """The episodes of a group, some of them packed until somebody looks at one.

    The same objects at each look. It travels packed, unless it has been opened: what is done to
    the objects travels too.
    """

    def __init__(self, parts: Sequence[PackedEpisodes | list[EpisodeType]]):
        """Takes the episodes, share by share."""
        self._parts = list(parts)
        self._num = len(self.ids)
        self._opened: list[EpisodeType] | None = None

    @property
    def ids(self) -> list[str]:
        """The ids of all episodes; nothing is opened for them."""
        return [id_ for part in self._parts for id_ in ids_of(part)]

    @override(Sequence)
    def __len__(self) -> int:
        """How many there are, without opening any."""
        return self._num

    @override(Sequence)
    def __iter__(self) -> Iterator[EpisodeType]:
        """Goes through the episodes, in the order of the shares."""
        return iter(self._open())

    @overload
    def __getitem__(self, index: int) -> EpisodeType: ...

    @overload
    def __getitem__(self, index: slice) -> list[EpisodeType]: ...

    @override(Sequence)
    def __getitem__(self, index: int | slice) -> EpisodeType | list[EpisodeType]:
        """Returns one episode, or a list of several."""
        return self._open()[index]

    def _open(self) -> list[EpisodeType]:
        if self._opened is None:
            spaces: dict[bytes, list[gym.Space]] = {}
            self._opened = [
                episode
                for part in self._parts
                for episode in (part.open(spaces) if isinstance(part, PackedEpisodes) else part)
            ]
            # What is open needs no second copy.
            self._parts = [self._opened]
        return self._opened


# What stands in `PackedEpisodes.objects` in the place of arrays and spaces. Never called: what
# they stand for is put in their place as the objects are unpickled.


def _rows(column: int, first: int, end: int) -> np.ndarray:
    raise NotImplementedError


def _large(number: int) -> np.ndarray:
    raise NotImplementedError


def _space(number: int) -> gym.Space:
    raise NotImplementedError


class _Packer(CloudPickler):
    """Pickles episodes, and puts arrays and spaces aside."""

    def __init__(self, file: io.BytesIO, *, infos: bool):
        super().__init__(file, protocol=5)
        self.columns: list[list[np.ndarray]] = []
        self.large: list[np.ndarray] = []
        self.spaces: list[gym.Space] = []
        self._infos = infos
        # By type and row shape, the number of a column and how many rows it has.
        self._places: dict[Any, tuple[int, int]] = {}

    def reducer_override(self, value: Any) -> Any:
        """Is asked about each object that isn't of one of Python's plain types, once."""
        if type(value) is np.ndarray and _is_plain(value):
            return self._put_aside(value)
        if isinstance(value, gym.Space):
            self.spaces.append(value)
            return _space, (len(self.spaces) - 1,)
        if isinstance(value, SingleAgentEpisode) and not self._infos:
            return _without_infos(value)
        return super().reducer_override(value)

    def _put_aside(self, array: np.ndarray) -> Any:
        if array.nbytes >= _LARGE_BYTES:
            self.large.append(array)
            return _large, (len(self.large) - 1,)
        key = array.dtype, array.shape[1:]
        column, first = self._places.get(key, (len(self.columns), 0))
        if first == 0 and column == len(self.columns):
            self.columns.append([])
        self.columns[column].append(array)
        end = first + len(array)
        self._places[key] = column, end
        return _rows, (column, first, end)


def _is_plain(array: np.ndarray) -> bool:
    """Whether an array, once it has been rows of a column, is what it was."""
    # Another order in memory may be somebody's choice.
    return array.ndim > 0 and not array.dtype.hasobject and array.flags.c_contiguous


def _without_infos(episode: SingleAgentEpisode) -> Any:
    """Returns how an episode is pickled, but for its infos."""
    create, arguments, (others, slots) = episode.__reduce_ex__(2)[:3]
    infos = InfosLeftBehind(len(episode.infos), episode.infos.lookback)
    return create, arguments, (others, {**slots, "infos": infos, "_last_added_infos": None})


class _Opener(pickle.Unpickler):
    """Unpickles what a `_Packer` has pickled."""

    def __init__(self, file: io.BytesIO, stand_ins: dict[Callable[..., Any], Callable[..., Any]]):
        super().__init__(file)
        self._by_name = {stand_in.__name__: function for stand_in, function in stand_ins.items()}

    @override(pickle.Unpickler)
    def find_class(self, module: str, name: str) -> Any:
        """Is asked for each class and function by name, once."""
        if module == __name__ and name in self._by_name:
            return self._by_name[name]
        return super().find_class(module, name)

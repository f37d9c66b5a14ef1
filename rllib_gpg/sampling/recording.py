"""Records the episodes that are trained on, in the forms in which RLlib reads offline data."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from ray.rllib.utils.compression import pack_if_needed
from ray.rllib.utils.spaces.space_utils import unbatch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class EpisodeRecorder:
    """Writes each group once, as `AlgorithmConfig.offline_data(output=..)` says.

    RLlib's `OfflineSingleAgentEnvRunner` writes where an episode is sampled: also one that is lost
    afterwards and sampled again. Here the algorithm writes what it has trained on.

    A row is an episode (`output_write_episodes=True`, the default) or a step. Each file is in a
    folder of its own, `<output>/<env>/run-<id>-<number>`, with an id of this recorder: what has
    been written there before stays, and a file whose writing was interrupted is replaced.
    """

    def __init__(self, config: AlgorithmConfig):
        """Does nothing from now on if there is no `config.output`.

        Args:
            config: The algorithm's config; all of its `output` settings for the new API stack.

        Raises:
            ValueError: If the filesystem is none that RLlib knows.
        """
        self._config = config
        self._id = uuid.uuid4().hex[:12]
        self._num_files = 0
        # Of the last group, until it has been trained on; and what waits for a full file.
        self._group: list[Any] = []
        self._rows: list[Any] = []
        if config.output:
            self._folder = f"{_located(config)}/{_env_name(config.env)}"
            self._write_kwargs = _filesystem(config) | config.output_write_method_kwargs

    def take(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        """Takes down a group as it was sampled; learner connectors may change episodes.

        It replaces a group that was never trained on, because its iteration was interrupted.
        """
        if not self._config.output:
            return
        if self._config.output_write_episodes:
            self._group = [_packed(episode) for episode in episodes]
        else:
            compressed = self._config.output_compress_columns
            self._group = [row for episode in episodes for row in _steps(episode, compressed)]

    def commit(self) -> None:
        """Keeps the group: it has been trained on."""
        self._rows, self._group = self._rows + self._group, []

    def write(self) -> None:
        """Writes the groups that have been trained on, or as much of them as fills whole files."""
        size = self._config.output_max_rows_per_file or len(self._rows)
        while self._rows and len(self._rows) >= size:
            self._write_file(self._rows[:size])
            # All at once: an interrupt comes before it or after it.
            self._rows, self._num_files = self._rows[size:], self._num_files + 1

    def close(self) -> None:
        """Writes what fills no whole file, with `output_write_remaining_data=True`."""
        if self._rows and self._config.output_write_remaining_data:
            self._write_file(self._rows)
        self._rows = []

    def _write_file(self, rows: list[Any]) -> None:
        dataset = ray.data.from_items(rows, override_num_blocks=1)
        dataset.context.enable_progress_bars = False
        dataset.context.print_on_execution_start = False
        method = self._config.output_write_method
        path = f"{self._folder}/run-{self._id}-{self._num_files + 1:06}"
        # Written here, wherever in a cluster that is; and without a CPU: env runners may have taken
        # all there are for as long as the algorithm waits.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        kwargs = {
            "ray_remote_args": {"num_cpus": 0, "scheduling_strategy": here},
            "mode": ray.data.SaveMode.OVERWRITE,
        }
        getattr(dataset, method)(path, **(kwargs | self._write_kwargs))


def _located(config: AlgorithmConfig) -> str:
    """Returns the path of the recording; a relative one is this process's own."""
    output = str(config.output).rstrip("/")
    if "://" in output or config.output_filesystem is not None:
        return output
    return str(Path(output).expanduser().absolute())


def _env_name(env: Any) -> str:
    return (env if isinstance(env, str) else env.__name__).lower()


def _filesystem(config: AlgorithmConfig) -> dict[str, Any]:
    """Returns the argument for one of the filesystems that RLlib knows; none by default."""
    name, kwargs = config.output_filesystem, config.output_filesystem_kwargs
    if name is None:
        return {}
    if name == "gcs":
        import gcsfs

        return {"filesystem": gcsfs.GCSFileSystem(**kwargs)}
    if name == "s3":
        from pyarrow import fs

        return {"filesystem": fs.S3FileSystem(**kwargs)}
    if name == "abs":
        import adlfs

        return {"filesystem": adlfs.AzureBlobFileSystem(**kwargs)}
    raise ValueError(
        f"`output_filesystem` must be 'gcs' for GCS, 's3' for S3 or 'abs' for Azure, got {name!r}."
    )


def _packed(episode: SingleAgentEpisode) -> bytes:
    """Packs an episode as RLlib does: step by step, so that it could be gone on with."""
    # Packages that only this needs.
    import msgpack
    import msgpack_numpy

    state = episode.get_state()
    for name in ("observations", "actions", "rewards"):
        state[name] = _by_step(state[name])
    outputs = state["extra_model_outputs"] or {}
    state["extra_model_outputs"] = {name: _by_step(buffer) for name, buffer in outputs.items()}
    return msgpack.packb(state, default=msgpack_numpy.encode)


def _by_step(buffer: dict[str, Any]) -> dict[str, Any]:
    """Turns the state of a buffer of arrays into that of one that holds a list of steps."""
    return {**buffer, "data": _rows(buffer["data"]), "finalized": False}


def _steps(episode: SingleAgentEpisode, compressed: list[str]) -> list[dict[str, Any]]:
    """Returns the rows of an episode, with RLlib's columns."""

    def column(name: str, buffer: InfiniteLookbackBuffer) -> list[Any]:
        rows = _rows(buffer.get())
        return [pack_if_needed(row) for row in rows] if name in compressed else rows

    observations = column(Columns.OBS, episode.observations)
    columns = {
        Columns.OBS: observations[:-1],
        Columns.ACTIONS: column(Columns.ACTIONS, episode.actions),
        Columns.REWARDS: column(Columns.REWARDS, episode.rewards),
        Columns.NEXT_OBS: observations[1:],
        **{name: column(name, buffer) for name, buffer in episode.extra_model_outputs.items()},
    }
    common = {
        Columns.EPS_ID: episode.id_,
        Columns.AGENT_ID: episode.agent_id,
        Columns.MODULE_ID: episode.module_id,
        Columns.TERMINATEDS: False,
        Columns.TRUNCATEDS: False,
    }
    rows = [
        {**common, **dict(zip(columns, values, strict=True))}
        for values in zip(*columns.values(), strict=True)
    ]
    rows[-1] |= {
        Columns.TERMINATEDS: episode.is_terminated,
        Columns.TRUNCATEDS: episode.is_truncated,
    }
    return rows


def _rows(column: Any) -> list[Any]:
    return column if isinstance(column, list) else unbatch(column)

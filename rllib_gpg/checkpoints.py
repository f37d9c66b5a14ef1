"""Checkpoints are whole: saved whole or not at all, and refused if they aren't."""

from __future__ import annotations

import contextlib
import json
import pathlib
import pickletools
import shutil
from collections.abc import Iterator
from typing import IO, Any

import msgpack
import pyarrow.fs
from ray import cloudpickle
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.checkpoints import Checkpointable

from rllib_gpg.sampling.group import episodes_per_share, num_envs_of_rollouts

_METADATA = ("rllib_checkpoint.json", Checkpointable.METADATA_FILE_NAME)
_CONSTRUCTOR = Checkpointable.CLASS_AND_CTOR_ARGS_FILE_NAME
_MODULES = "learner_group/learner/rl_module"
# Where a checkpoint is until it is whole.
_UNFINISHED = ".unfinished"


@contextlib.contextmanager
def saved_whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Puts a checkpoint into a local folder once it is whole.

    RLlib writes file by file into the folder itself: a full disk would leave half of one, and
    nothing of the one that was there before.

    Args:
        folder: New or not. What else is in it stays.

    Yields:
        The folder to save to instead, of the same filesystem.

    Raises:
        OSError: What came of saving, with a note that says what there is now.
    """
    is_new = not folder.exists()
    unfinished = folder / _UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        _move_into(folder, unfinished)
    except BaseException as error:
        shutil.rmtree(folder if is_new else unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            error.add_note(
                f"No checkpoint was saved to {folder}; earlier ones, there too, are as they were."
            )
        raise


def _move_into(folder: pathlib.Path, unfinished: pathlib.Path) -> None:
    # Nothing but names changes here, so a full disk has no say in it.
    replaced = unfinished / _UNFINISHED
    replaced.mkdir()
    for new in [entry for entry in unfinished.iterdir() if entry != replaced]:
        old = folder / new.name
        if old.exists():
            old.rename(replaced / new.name)
        new.rename(old)
    shutil.rmtree(unfinished)


def check_checkpoint(
    path: Any,
    *,
    component: str | None = None,
    filesystem: Any = None,
    to_build: bool = False,
    with_config: bool = False,
) -> None:
    """Refuses a checkpoint that was interrupted while it was saved, or damaged later.

    RLlib's own restore skips what is missing and stops half-way at what it can't read; of what
    remote learners can't read it says nothing.

    Args:
        path: The folder of the checkpoint.
        component: The component that `path` is the checkpoint of. None: the whole algorithm.
        filesystem: The filesystem of `path`. None: follows from `path`.
        to_build: Whether a new algorithm is to be built from it, which takes its config.
        with_config: Whether it is built with another config instead.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If something is missing in it, or can't be read; or if the path is relative.
        ImportError: If its config names a module that isn't known here: that of an env, mostly.
    """
    filesystem, root = _located(path, filesystem)
    selector = pyarrow.fs.FileSelector(root.as_posix(), recursive=True)
    infos = filesystem.get_file_info(selector)
    files = [pathlib.PurePath(info.path) for info in infos if info.is_file]
    # A process that was killed while it saved leaves the earlier checkpoint, and this.
    files = [file for file in files if root / _UNFINISHED not in file.parents]
    states = {f for f in files if f.stem.endswith("state") and f.suffix in (".pkl", ".msgpack")}
    # RLlib writes the metadata of each part first and its state last; a user's may be beside it.
    metadata = [file for file in files if file.name in _METADATA]
    parts = {root, *(file.parent for file in metadata if _is_rllibs(file, filesystem))}
    for part in sorted(parts - {state.parent for state in states}):
        raise _not_whole(path, f"{part} has no state")
    modules = root / _MODULES
    if component is None and not any(state.parent.parent == modules for state in states):
        raise _not_whole(path, f"{modules} has no module")
    to_read = states
    if to_build:
        to_read |= {root / _METADATA[0], root / _CONSTRUCTOR}
        for missing in sorted(to_read - {*files}):
            raise _not_whole(path, f"{missing} is missing")
    for file in sorted(to_read):
        _check_file(file, filesystem)
    if to_build and not with_config:
        _constructor_arguments(path, filesystem, root)


def check_saved(path: Any, filesystem: Any = None) -> None:
    """Refuses a checkpoint of remote learners that has just been saved, if it isn't whole.

    RLlib passes over what they raise.

    Raises:
        OSError: Says what is missing.
    """
    try:
        check_checkpoint(path, filesystem=filesystem)
    except ValueError as error:
        raise OSError(
            f"A remote learner couldn't save its part; its log says why. {error}"
        ) from error


def modules_in(path: Any, filesystem: pyarrow.fs.FileSystem | None = None) -> set[str]:
    """Returns the IDs of the modules that a whole checkpoint has."""
    filesystem, root = _located(path, filesystem)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector((root / _MODULES).as_posix()))
    return {info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory}


def config_in_one_process(path: Any) -> AlgorithmConfig:
    """Returns the config of a checkpoint, without the cluster and the GPUs of its run.

    So that `GPG.from_checkpoint(path, config=config_in_one_process(path))` has a policy to look at
    on any machine. Its groups are those of the run, in the same shares; but `sample_ahead` is off.

    Args:
        path: The folder of the checkpoint, or a URI.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `check_checkpoint` does, of the config alone.
    """
    filesystem, root = _located(path, None)
    file = root / _CONSTRUCTOR
    if filesystem.get_file_info(file.as_posix()).type != pyarrow.fs.FileType.File:
        raise _not_whole(path, f"{file} is missing")
    _check_file(file, filesystem)
    (state,) = _constructor_arguments(path, filesystem, root)
    config = AlgorithmConfig.from_state(state)
    if config.num_env_runners > 0:
        config.env_runners(episodes_per_share=episodes_per_share(config))
    config.env_runners(num_env_runners=0, num_gpus_per_env_runner=0, duplicate_last_shares=False)
    if config.batch_mode == "truncate_episodes":
        # Each rollout has an env of its own, and all of them are here now.
        num_envs = max(config.num_envs_per_env_runner, num_envs_of_rollouts(config))
        config.env_runners(num_envs_per_env_runner=num_envs)
    config.learners(num_learners=0, num_gpus_per_learner=0).training(sample_ahead=0)
    return config.evaluation(
        evaluation_interval=None,
        evaluation_num_env_runners=0,
        evaluation_parallel_to_training=False,
    )


def check_absolute(path: str) -> None:
    """Refuses the path of a checkpoint that means something else in another process.

    Raises:
        ValueError: With the path that was probably meant.
    """
    if "://" not in path and not pathlib.Path(path).is_absolute():
        raise ValueError(
            f"The path of a checkpoint must be absolute or a URI: {path!r} isn't; did you mean "
            f"{str(pathlib.Path(path).absolute())!r}?"
        )


def _located(
    path: Any, filesystem: pyarrow.fs.FileSystem | None
) -> tuple[pyarrow.fs.FileSystem, pathlib.PurePath]:
    """Returns the filesystem of a checkpoint, and its folder there.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the path is relative.
    """
    folder = str(path)
    if filesystem is None:
        check_absolute(folder)
        filesystem, folder = pyarrow.fs.FileSystem.from_uri(folder)
    if filesystem.get_file_info(folder).type != pyarrow.fs.FileType.Directory:
        raise FileNotFoundError(f"There is no checkpoint at {path}: not a folder.")
    return filesystem, pathlib.PurePath(folder)


def _is_rllibs(metadata: pathlib.PurePath, filesystem: pyarrow.fs.FileSystem) -> bool:
    """Whether RLlib has written a file of metadata, or begun to."""
    with filesystem.open_input_file(metadata.as_posix()) as stream:
        content = stream.read()
    try:
        return "ray_version" in json.loads(content)
    except ValueError:
        return True


def _check_file(file: pathlib.PurePath, filesystem: pyarrow.fs.FileSystem) -> None:
    """Refuses a file that can't be read to its end."""
    with filesystem.open_input_file(file.as_posix()) as stream:
        try:
            _read_through(file, stream)
        except ValueError as error:
            raise _not_whole(file, str(error)) from error


def _read_through(file: pathlib.PurePath, stream: IO[bytes]) -> None:
    """Reads a file to its end without making anything of it; restoring does that.

    Raises:
        ValueError: If it is cut off.
    """
    if file.suffix == ".json":
        json.load(stream)
    elif file.suffix == ".pkl":
        for _ in pickletools.genops(stream):
            pass
    elif file.suffix == ".msgpack":
        try:
            # 0: of any size.
            msgpack.Unpacker(stream, max_buffer_size=0).skip()
        except msgpack.OutOfData as error:
            raise ValueError("it is cut off") from error


def _constructor_arguments(
    path: Any, filesystem: pyarrow.fs.FileSystem, root: pathlib.PurePath
) -> tuple[Any, ...]:
    """Returns the arguments that a checkpoint's algorithm was made with.

    Raises:
        ImportError: If they name something that isn't known here. RLlib passes over it, to fail
            later without a config.
    """
    with filesystem.open_input_file((root / _CONSTRUCTOR).as_posix()) as stream:
        try:
            arguments: tuple[Any, ...] = cloudpickle.load(stream)["ctor_args_and_kwargs"][0]
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"The checkpoint at {path} needs something of the run that saved it: {error}. Call "
                "this from a script of yours that can import it, or put its folder into PYTHONPATH."
            ) from error
    return arguments


def _not_whole(path: Any, why: str) -> ValueError:
    return ValueError(
        f"The checkpoint at {path} isn't whole: {why}. Saving or copying it was probably "
        "interrupted. Restore an earlier one; nothing of this one has been."
    )

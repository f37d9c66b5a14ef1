"""Settings of the update: how the policy is moved."""

from __future__ import annotations

from collections.abc import Iterator

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_gpg.checkpoints import check_absolute
from rllib_gpg.learning.surrogates import resolve_surrogate
from rllib_gpg.learning.trajectories import OVER_STEPS, OVER_TRAJECTORIES, STEP, TRAJECTORY
from rllib_gpg.validation.checks import count, is_number, schedule


def of_the_loss(config: AlgorithmConfig, of: str) -> Iterator[str]:
    """Yields what is wrong with how the policy is to be moved."""
    for name in ("lr", "entropy_coeff"):
        yield from schedule(config, name, of)
    for name in ("kl_target", "max_kl"):
        value = getattr(config, name)
        if not is_number(value) or value <= 0.0:
            yield f"`{name}`{of} must be a number > 0, got {value!r}."
    if config.grad_clip is not None and not (is_number(config.grad_clip) and config.grad_clip > 0):
        yield (
            f"`grad_clip`{of} must be a number > 0, or None to leave gradients as they are; got "
            f"{config.grad_clip!r}."
        )
    yield from count(config, "cg_iterations", of=of)
    for name in ("kl_coeff", "reference_kl_coeff", "cg_damping"):
        value = getattr(config, name)
        if not is_number(value) or value < 0.0:
            yield f"`{name}`{of} must be a number >= 0, got {value!r}."
    if config.reference is not None:
        try:
            check_absolute(str(config.reference))
        except ValueError as error:
            yield f"`reference`{of}: {error}"
    if config.reference_refresh is not None:
        yield from count(config, "reference_refresh", of=of)
    yield from _of_the_surrogate(config, of)
    yield from _of_trajectories(config, of)


def _of_the_surrogate(config: AlgorithmConfig, of: str) -> Iterator[str]:
    bounds = config.clip_param
    pair = bounds if isinstance(bounds, tuple | list) else (bounds, bounds)
    if len(pair) != 2 or not all(is_number(bound) and bound > 0.0 for bound in pair):
        yield f"`clip_param`{of} must be a number > 0, or two: (lower, upper); got {bounds!r}."
        return
    try:
        surrogate = resolve_surrogate(config.surrogate, config.clip_param)
    except (ValueError, TypeError) as error:
        yield f"`surrogate`{of}: {error}"
        return
    if not (surrogate.bounds_ratio or config.use_kl_loss or _updates_once(config)):
        yield (
            f"`surrogate={config.surrogate!r}`{of} holds the policy back by nothing: after the "
            "first update of a group, the estimate is of another policy. Set `num_epochs=1, "
            "num_minibatches=1` or `use_kl_loss=True`, or take surrogate='clip'."
        )


def _of_trajectories(config: AlgorithmConfig, of: str) -> Iterator[str]:
    if config.ratio_level not in (STEP, TRAJECTORY):
        yield f"`ratio_level`{of} must be 'step' or 'trajectory', got {config.ratio_level!r}."
    elif config.ratio_level == TRAJECTORY and not _is_one_minibatch(config):
        yield (
            f"`ratio_level='trajectory'`{of} needs all steps of a trajectory at once, and "
            "minibatches split trajectories. Set `num_minibatches=1`, and `minibatch_size` to None."
        )
    averaging = config.loss_averaging
    is_constant = is_number(averaging) and averaging > 0.0
    if not is_constant and averaging not in (OVER_STEPS, OVER_TRAJECTORIES):
        yield (
            f"`loss_averaging`{of} must be 'steps', 'trajectories' or a number > 0, got "
            f"{averaging!r}."
        )


def _is_one_minibatch(config: AlgorithmConfig) -> bool:
    return config.num_minibatches == 1 and config.minibatch_size is None


def _updates_once(config: AlgorithmConfig) -> bool:
    return config.num_epochs == 1 and _is_one_minibatch(config)

"""Settings of the group and of the estimator: numbers, or what stands for some."""

from __future__ import annotations

from collections.abc import Iterator

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_gpg.advantages.baselines import Baseline, resolve_baseline
from rllib_gpg.advantages.baselines.choice import check_uses
from rllib_gpg.advantages.binning import resolve_binning
from rllib_gpg.advantages.credit import check_credit
from rllib_gpg.advantages.levels import check_level
from rllib_gpg.advantages.units import is_unit
from rllib_gpg.validation.checks import count, is_count, is_number

# Far more gradient steps per epoch than make sense.
_MAX_NUM_MINIBATCHES = 10_000


def of_the_group(config: AlgorithmConfig) -> Iterator[str]:
    """Yields what is wrong with the size of the group and of its parts."""
    yield from count(config, "group_size", "It is how many whole episodes one update learns from.")
    yield from _of_starts(config)
    yield from count(config, "num_epochs")
    yield from count(config, "max_share_failures")
    if config.sample_ahead not in (0, 1) or isinstance(config.sample_ahead, bool):
        yield (
            f"`sample_ahead` must be 0 or 1, got {config.sample_ahead!r}: groups that are further "
            "behind the policy that learns from them teach it little."
        )
    for name in ("episodes_per_share", "max_episode_steps", "num_minibatches", "minibatch_size"):
        if getattr(config, name) is not None:
            yield from count(config, name)


def _of_starts(config: AlgorithmConfig) -> Iterator[str]:
    size, per_start, extra = config.group_size, config.episodes_per_start, config.max_extra_starts
    if not is_count(per_start):
        yield from count(config, "episodes_per_start", "With 1 each episode has its own start.")
    elif is_count(size) and size % per_start:
        below, above = size // per_start * per_start, (size // per_start + 1) * per_start
        yield (
            f"`group_size` must be a multiple of `episodes_per_start`: with {per_start} episodes "
            f"per start, set {f'{below} or ' if below else ''}{above} instead of {size}."
        )
    if not is_count(extra) and (extra != 0 or isinstance(extra, bool)):
        yield f"`max_extra_starts` must be an integer >= 0, got {extra!r}."
    elif extra != 0 and per_start == 1:
        yield (
            f"`max_extra_starts` = {extra} replaces starts whose episodes all have the same "
            "return, and a single episode always has: set `episodes_per_start` above 1, or remove "
            "the setting."
        )


def of_the_batch(config: AlgorithmConfig) -> Iterator[str]:
    """Yields what doesn't apply, because the batch is a group of episodes or rollouts."""
    default = type(config)()
    for name in ("_train_batch_size_per_learner", "train_batch_size"):
        if getattr(config, name) != getattr(default, name):
            yield (
                f"`{name.removeprefix('_')}` doesn't apply: GPG learns from whole episodes, so the "
                "number of steps per update follows from their length. Set `group_size`, the "
                "number of episodes per update, instead."
            )
    if config.batch_mode == "complete_episodes" and config.rollout_fragment_length != "auto":
        yield (
            "`rollout_fragment_length` doesn't apply: GPG learns from `group_size` whole episodes. "
            "For as many rollouts of so many steps, which cut episodes, set "
            "`batch_mode='truncate_episodes'` as well."
        )
    if config.batch_mode == "truncate_episodes":
        if config.rollout_fragment_length == "auto":
            yield (
                "`batch_mode='truncate_episodes'` needs `rollout_fragment_length`: how many steps "
                "each of the `group_size` rollouts makes. Remove it to learn from whole episodes."
            )
        else:
            yield from count(config, "rollout_fragment_length")
    if config.minibatch_size is not None and config.num_minibatches is not None:
        yield (
            "Set `minibatch_size` or `num_minibatches`, not both: one follows from the other and "
            "the number of steps in the group."
        )
    elif is_number(config.num_minibatches) and config.num_minibatches > _MAX_NUM_MINIBATCHES:
        yield (
            f"`num_minibatches` is how many minibatches there are per epoch, not their size; "
            f"{config.num_minibatches} would take minutes per update. At most "
            f"{_MAX_NUM_MINIBATCHES} make sense. Set `minibatch_size` for a number of steps."
        )


def of_the_estimator(config: AlgorithmConfig, of: str) -> Iterator[str]:
    """Yields what is wrong with how advantages are to be estimated."""
    if not is_number(config.gamma) or not 0.0 <= config.gamma <= 1.0:
        yield f"`gamma`{of} must be between 0 and 1, got {config.gamma!r}."
    for name in ("bootstrap_truncated", "leave_one_out"):
        if not isinstance(getattr(config, name), bool):
            yield f"`{name}`{of} must be True or False, got {getattr(config, name)!r}."
    if not is_unit(config.normalize_advantages):
        yield (
            f"`normalize_advantages`{of} must be True, False or 'bins', got "
            f"{config.normalize_advantages!r}."
        )
    of_these = {
        "bootstrap": config.bootstrap_truncated is True,
        "of_pieces": config.batch_mode == "truncate_episodes",
    }
    try:
        check_level(config.second_level, **of_these)
    except (ValueError, TypeError) as error:
        yield f"`second_level`{of}: {error}"
    try:
        check_credit(config.credit, lambda_=config.lambda_, **of_these)
    except (ValueError, TypeError) as error:
        yield f"`credit`{of}: {error}"
    try:
        binning = resolve_binning(config.binning)
    except (ValueError, TypeError) as error:
        yield f"`binning`{of}: {error}"
        return
    try:
        check_uses(
            baseline_of(config),
            binning,
            lambda_=config.lambda_,
            normalize=config.normalize_advantages,
            bootstrap=config.bootstrap_truncated,
            of_starts=config.episodes_per_start != 1,
        )
    except (ValueError, TypeError) as error:
        yield f"`baseline`{of}: {error}"
    if config.bootstrap_truncated and config.gamma == 1.0:
        yield (
            f"`bootstrap_truncated`{of} needs `gamma` < 1: undiscounted, an episode that is "
            "continued for ever has no finite return."
        )


def baseline_of(config: AlgorithmConfig) -> Baseline:
    """Returns the baseline that a config, of one module, stands for.

    Raises:
        TypeError, ValueError: As `resolve_baseline` does.
    """
    return resolve_baseline(
        config.baseline, decay=config.baseline_decay, leave_one_out=config.leave_one_out
    )

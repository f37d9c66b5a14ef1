"""Which settings mean something to the learner, or beside the others."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_gpg.advantages.credit import PROCESS
from rllib_gpg.advantages.units import BINS
from rllib_gpg.learning import GPGTRPOTorchLearner
from rllib_gpg.learning.surrogates import Clip, ClippedWeight

_OF_KL_LOSS = ("kl_coeff", "kl_target")
_OF_REFERENCE = ("reference", "reference_refresh")
_OF_PPO = (
    "surrogate",
    "clip_param",
    "ratio_level",
    "grad_clip",
    "lr",
    "use_kl_loss",
    "reference_kl_coeff",
    *_OF_KL_LOSS,
    *_OF_REFERENCE,
)
# By name; an object has bounds of its own.
_WITH_BOUNDS = ("clip", "clipped_weight")
_OF_TRPO = ("cg_damping", "cg_iterations", "max_kl")


def problems(config: AlgorithmConfig) -> Iterator[str]:
    """Yields what TRPO can't do."""
    is_class = isinstance(config.learner_class, type)  # If not, that is said elsewhere.
    if not (is_class and issubclass(config.learner_class, GPGTRPOTorchLearner)):
        return
    # The others mean nothing to it, but it would make a step per minibatch and epoch, each from
    # the policy that the last one left, and so pass the bound.
    if (config.num_epochs, config.num_minibatches, config.minibatch_size) != (1, 1, None):
        yield (
            "TRPO makes one step per group, over the whole of it: set `num_epochs=1` and "
            f"`num_minibatches=1`, and no `minibatch_size`; got {config.num_epochs}, "
            f"{config.num_minibatches} and {config.minibatch_size}."
        )
    if config.torch_compile_learner:
        yield (
            "PyTorch can't differentiate compiled modules twice, as TRPO has to. Remove "
            "`torch_compile_learner` from `framework(..)`."
        )


def warn_of_idle_settings(config: AlgorithmConfig, of: str) -> None:
    """Warns of settings that are in order but do nothing."""
    default = type(config)()

    def warn(names: tuple[str, ...], why: str) -> None:
        changed = [f"`{name}`" for name in names if getattr(config, name) != getattr(default, name)]
        if changed:
            *others, last = changed
            do = f"{', '.join(others)} and {last}{of} do" if others else f"{last}{of} does"
            warnings.warn(f"{do} nothing {why}", stacklevel=3)

    if not _compares_starts(config):
        warn(("episodes_per_start",), "with `baseline='none'`, which compares with nothing.")
    if issubclass(config.learner_class, GPGTRPOTorchLearner):
        warn(_OF_PPO, "with `GPGTRPOTorchLearner`: `max_kl` bounds its step.")
        return
    if config.surrogate not in _WITH_BOUNDS:
        hint = ", whose bounds are its own" * isinstance(config.surrogate, Clip | ClippedWeight)
        warn(("clip_param",), f"with `surrogate={config.surrogate!r}`{hint}.")
    warn(_OF_TRPO, "without `learner_class=GPGTRPOTorchLearner`.")
    if config.reference_kl_coeff == 0.0:
        warn(_OF_REFERENCE, "with `reference_kl_coeff=0`, its default.")
    if not config.use_kl_loss:
        warn(_OF_KL_LOSS, "without `use_kl_loss=True`, which is off by default in GPG.")


def _compares_starts(config: AlgorithmConfig) -> bool:
    """Whether it makes a difference which episodes share a start."""
    return (
        config.baseline != "none"
        or config.credit == PROCESS
        or config.normalize_advantages == BINS
        or config.second_level is not None
        or config.max_extra_starts > 0
    )

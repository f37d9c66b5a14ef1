"""Which names are settings, and which setting is nearest to a name that is none."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided

# PPO's, without a meaning for GPG.
CRITIC_SETTINGS = frozenset(
    {"use_critic", "use_gae", "vf_loss_coeff", "vf_clip_param", "vf_share_layers"}
)

# What Stable-Baselines3's PPO calls its settings. By its letters another may be nearer.
_OF_STABLE_BASELINES3 = {
    "batch_size": "minibatch_size",
    "clip_range": "clip_param",
    "clip_range_vf": "vf_clip_param",
    "ent_coef": "entropy_coeff",
    "gae_lambda": "lambda_",
    "learning_rate": "lr",
    "max_grad_norm": "grad_clip",
    "n_envs": "num_envs_per_env_runner",
    "n_epochs": "num_epochs",
    "n_steps": "group_size",
    "vf_coef": "vf_loss_coeff",
}

# Keys that RLlib translates, but that aren't attributes or are methods as well.
_TRANSLATED = frozenset({"callbacks", "framework", "lambda", "multiagent"})
# What RLlib leaves in a config that it restores from a checkpoint.
_RESTORED = "class"


def with_nearest(name: str, known: Mapping[str, str]) -> str:
    """Returns the name and, if there is one, the known name it may have been meant to be.

    That is the nearest by its letters, or what Stable-Baselines3 means by it.

    Args:
        name: The name that isn't known.
        known: The known ones, and how to show them.
    """
    same = _OF_STABLE_BASELINES3.get(name, "")
    nearest = [same] if same in known else difflib.get_close_matches(name, known, n=1)
    unit = ", in whole episodes" if (name, nearest) == ("n_steps", ["group_size"]) else ""
    return f"{name!r}" + (f" (did you mean {known[nearest[0]]!r}{unit}?)" if nearest else "")


def is_said(name: str, given: Mapping[str, Any], everything: Mapping[str, Any]) -> bool:
    """Whether settings say something about one of them.

    Args:
        name: The setting.
        given: The settings. Where RLlib has put them together, all there are are in it, and what
            is as by default says nothing.
        everything: All there are, as they are by default.
    """
    by_default = given.keys() >= everything.keys() and given[name] == everything[name]
    return name in given and not by_default


def unknown_keys(config: AlgorithmConfig, keys: Iterable[str], what: str) -> Iterator[str]:
    """Yields a sentence if some keys of a dict config are no settings."""
    unknown = [key for key in keys if not _is_setting(config, key)]
    if unknown:
        names = (*vars(config), *CRITIC_SETTINGS)
        known = {name: name for name in names if not name.startswith("_")}
        yield f"{what}: {', '.join(with_nearest(key, known) for key in unknown)}."


def unknown_attributes(config: AlgorithmConfig) -> Iterator[str]:
    """Yields a sentence if attributes were set that are no settings, misspelled ones for instance.

    A restored config may be of another version of RLlib, with other settings.
    """
    if _RESTORED not in vars(config):
        what = "Unknown settings set as attributes of the config"
        yield from unknown_keys(type(config)(), vars(config), what)


def _is_setting(config: AlgorithmConfig, key: str) -> bool:
    # RLlib's own private settings, and what Ray Tune adds to a trial's config ("__...__").
    if key.startswith("_") or key in CRITIC_SETTINGS | _TRANSLATED | {_RESTORED}:
        return True
    # Some settings are properties; methods, such as `training`, are none.
    if hasattr(type(config), key):
        setting = getattr(type(config), key)
        return isinstance(setting, property) and setting.fset is not None
    # `in` knows the names that RLlib translates, such as "num_workers".
    return key in config


def check_arguments(config: AlgorithmConfig, method: str, given: Collection[str]) -> None:
    """Refuses arguments that a method of a config doesn't take.

    Raises:
        TypeError: Names each and the nearest setting, whichever method that is an argument of.
    """
    taken, method_of = set(CRITIC_SETTINGS), dict.fromkeys(CRITIC_SETTINGS, "training")
    for base in type(config).__mro__:
        for name, function in vars(base).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                arguments = inspect.signature(function).parameters.values()
                taken |= {argument.name for argument in arguments if name == method}
                for argument in arguments:
                    if argument.default is NotProvided:
                        method_of.setdefault(argument.name, name)
    known = {argument: f"{name}({argument}=..)" for argument, name in method_of.items()}
    unknown = [with_nearest(argument, known) for argument in given if argument not in taken]
    if unknown:
        raise TypeError(f"{method}() has no setting {', '.join(unknown)}.")

"""The framework, modules and their settings, learners: what a critic was part of, and misspelt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo.ppo_catalog import PPOCatalog
from ray.rllib.algorithms.ppo.ppo_learner import PPOLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.typing import ModuleID

from rllib_gpg.learning import DefaultGPGTorchRLModule, GPGCatalog, GPGTorchLearner
from rllib_gpg.learning.rl_module import are_default
from rllib_gpg.validation.names import CRITIC_SETTINGS, is_said, with_nearest

_SHARED = "vf_share_layers"

# What all modules of one update have in common.
_COMMON_TO_MODULES = frozenset(
    {
        "group_size",
        "episodes_per_start",
        "max_extra_starts",
        "episodes_per_share",
        "duplicate_last_shares",
        "max_episode_steps",
        "num_epochs",
        "num_minibatches",
        "minibatch_size",
        "shuffle_batch_per_epoch",
        "reference",
        "learner_class",
        "sample_ahead",
    }
)

# What the default module and its catalog look at.
_ALL_OF_RLLIB = dataclasses.asdict(DefaultModelConfig())
_MODEL_SETTINGS = (*_ALL_OF_RLLIB, "normalize_observations")


def problems(config: AlgorithmConfig) -> Iterator[str]:
    """Yields what is wrong with the framework, the modules and the learner."""
    if config.framework_str != "torch":
        yield (
            f"GPG runs on PyTorch only, not on {config.framework_str!r}: remove the call of "
            "`framework(..)`, or set `framework('torch')`."
        )
    if not config.enable_rl_module_and_learner:
        yield "GPG runs on RLlib's new API stack only: remove the call of `api_stack(..)`."
    if config.num_aggregator_actors_per_learner:
        yield (
            "`num_aggregator_actors_per_learner` doesn't apply: the first learner runs the learner "
            "connectors, once over the whole group. Remove the setting."
        )
    yield from _catalogs(config)
    yield from _unknown_model_settings(config)
    learner_class = config.learner_class
    if not isinstance(learner_class, type):
        yield (
            "`learner_class` must be a class, such as "
            f"`rllib_gpg.learning.GPGTRPOTorchLearner`, got {learner_class!r}."
        )
    elif not issubclass(learner_class, GPGTorchLearner) or issubclass(learner_class, PPOLearner):
        yield (
            f"`learner_class` must be GPGTorchLearner or derive from it, and from none of PPO's, "
            f"which need a critic; got {learner_class}. Its methods have PPO's names: exchange "
            "the base class. See docs/from_ppo.md."
        )


def critic_settings(config: AlgorithmConfig, of: str) -> Iterator[str]:
    """Yields a sentence that names all settings that are only a critic's."""
    given = CRITIC_SETTINGS & vars(config).keys()
    if any(is_said(_SHARED, settings, _ALL_OF_RLLIB) for settings in _model_settings(config)):
        given |= {_SHARED}
    if given:
        yield (
            f"GPG has no critic, so these settings{of} mean nothing to it: "
            f"{', '.join(sorted(given))}. Remove them. What stands in place of the critic are "
            "`group_size`, `binning` and `baseline`."
        )


def common_settings(
    config: AlgorithmConfig, module_id: ModuleID, overrides: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a sentence if settings of the whole update are others for one module."""
    module_config = config.copy(copy_frozen=False).update_from_dict(dict(overrides))
    common = [
        name
        for name in sorted(_COMMON_TO_MODULES & overrides.keys())
        if getattr(module_config, name) != getattr(config, name)
    ]
    if common:
        yield (
            f"These settings can't differ from module to module, but are set for {module_id!r}: "
            f"{', '.join(common)}. Set them for the whole algorithm."
        )


def _catalogs(config: AlgorithmConfig) -> Iterator[str]:
    for spec in _specs(config):
        catalog = spec.catalog_class or GPGCatalog
        if issubclass(spec.module_class, DefaultGPGTorchRLModule) and issubclass(
            catalog, PPOCatalog
        ):
            yield (
                f"`catalog_class` {catalog.__name__} derives from PPO's, which builds a critic. "
                "Derive it from `rllib_gpg.learning.GPGCatalog`, where `build_encoder` is what "
                "`build_actor_critic_encoder` is in PPO's. See docs/from_ppo.md."
            )


def _unknown_model_settings(config: AlgorithmConfig) -> Iterator[str]:
    given = {name for settings in _model_settings(config) for name in settings}
    unknown = sorted(given - {*_MODEL_SETTINGS, _SHARED})
    if unknown:
        known = {name: name for name in _MODEL_SETTINGS}
        yield (
            "Unknown settings of the default module in `model_config`: "
            f"{', '.join(with_nearest(name, known) for name in unknown)}."
        )


def _model_settings(config: AlgorithmConfig) -> Iterator[Mapping[str, Any]]:
    """Yields the `model_config`s of default modules. Users' own may hold anything."""
    specs = _specs(config)
    of_default = [spec for spec in specs if are_default(spec)]
    if len(of_default) == len(specs):
        yield config.model_config
    for spec in of_default:
        given = spec.model_config
        yield dataclasses.asdict(given) if isinstance(given, DefaultModelConfig) else given or {}


def _specs(config: AlgorithmConfig) -> list[RLModuleSpec]:
    return list(config.rl_module_spec.as_multi_rl_module_spec().rl_module_specs.values())

"""From episodes to the module's input, and from its output to actions, as RLlib does it."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.metrics import (
    ENV_TO_MODULE_CONNECTOR,
    MODULE_TO_ENV_CONNECTOR,
    RLMODULE_INFERENCE_TIMER,
)
from ray.rllib.utils.typing import EpisodeType

from rllib_gpg.sampling.share_sampling import ShareSamplingEnvRunner


class ModulePipeline:
    """The module and the connector pipelines of an env runner, for one `sample` call."""

    def __init__(self, runner: ShareSamplingEnvRunner, *, explore: bool):
        """Prepares one `sample` call.

        Args:
            runner: The env runner whose module and connectors to use.
            explore: Whether to call the module's `forward_exploration` or `forward_inference`.
        """
        self._runner = runner
        self._explore = explore
        self._shared_data: dict[str, Any] = {}

    def _env_to_module(self, episodes: list[EpisodeType]) -> Any:
        if self._runner.module is None or not episodes:
            return None
        return self._runner.env_to_module(
            episodes=episodes,
            batch={},
            explore=self._explore,
            rl_module=self._runner.module,
            shared_data=self._shared_data,
            metrics=self._runner.metrics,
            metrics_prefix_key=(ENV_TO_MODULE_CONNECTOR,),
        )

    def _forward(self, to_module: Any) -> dict[str, Any]:
        module, metrics = self._runner.module, self._runner.metrics
        with metrics.log_time(RLMODULE_INFERENCE_TIMER):
            if self._explore:
                return module.forward_exploration(
                    to_module, t=self._runner.num_env_steps_sampled_lifetime
                )
            return module.forward_inference(to_module)

    def _module_to_env(
        self, outputs: dict[str, Any], episodes: list[EpisodeType]
    ) -> dict[str, Any]:
        return self._runner.module_to_env(
            rl_module=self._runner.module,
            batch=outputs,
            episodes=episodes,
            explore=self._explore,
            shared_data=self._shared_data,
            metrics=self._runner.metrics,
            metrics_prefix_key=(MODULE_TO_ENV_CONNECTOR,),
        )

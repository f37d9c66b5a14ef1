"""Who collects the group: exactly N whole episodes, by counting them as they are started."""

from rllib_gpg.sampling.env_runner import GroupEnvRunner
from rllib_gpg.sampling.group import SamplingError

__all__ = ["GroupEnvRunner", "SamplingError"]

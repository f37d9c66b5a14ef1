"""Who collects the group: exactly N whole episodes, by counting them as they are started."""

from rllib_gpg.sampling.env_runner import GroupEnvRunner
from rllib_gpg.sampling.group import SamplingError
from rllib_gpg.sampling.multi_agent import MultiAgentGroupEnvRunner

__all__ = ["GroupEnvRunner", "MultiAgentGroupEnvRunner", "SamplingError"]

"""Who collects the group: exactly N whole episodes, by counting them as they are started."""

from rllib_gpg.sampling.env_runner import GroupEnvRunner
from rllib_gpg.sampling.group import SamplingError
from rllib_gpg.sampling.multi_agent_env_runner import MultiAgentGroupEnvRunner

__all__ = ["GroupEnvRunner", "MultiAgentGroupEnvRunner", "SamplingError"]

"""How the policy moves: the module, the loss, the learner."""

from rllib_gpg.learning.rl_module import DefaultGPGTorchRLModule, GPGCatalog
from rllib_gpg.learning.torch_learner import GPGTorchLearner
from rllib_gpg.learning.trpo import GPGTRPOTorchLearner

__all__ = ["DefaultGPGTorchRLModule", "GPGCatalog", "GPGTRPOTorchLearner", "GPGTorchLearner"]

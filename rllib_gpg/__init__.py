"""Group Policy Gradient (GPG), PPO without a critic, as a Ray RLlib algorithm.

Importing this package registers the trainable "GPG" with Ray Tune.
"""

from ray import tune

from rllib_gpg.config import GPGConfig
from rllib_gpg.gpg import GPG

__all__ = ["GPG", "GPGConfig"]

tune.register_trainable("GPG", GPG)

"""Group Policy Gradient (GPG), PPO without a critic, as a Ray RLlib algorithm.

Importing this package registers the trainable "GPG" with Ray Tune.
"""

from rllib_gpg.compatibility import warn_of_another_ray

warn_of_another_ray()  # first: what follows may not even import on another Ray

from ray import tune  # noqa: E402

from rllib_gpg.config import GPGConfig  # noqa: E402
from rllib_gpg.gpg import GPG  # noqa: E402

__all__ = ["GPG", "GPGConfig"]

tune.register_trainable("GPG", GPG)

"""The methods on the road from REINFORCE to GRPO's successors, as settings of one algorithm.

Each is a dict for `GPGConfig.training`, and says all that methods differ in, epochs and minibatches
too, so that nothing is left of one that another follows on the same config:

    from rllib_gpg import GPGConfig, presets

    config = GPGConfig().environment("CartPole-v1").training(**presets.GRPO)

Learning rate, group size and gamma are the user's. What else is to differ from a preset is said
after it. `docs/methods.md` has the formulas, and what was seen.
"""

from __future__ import annotations

from typing import Any, Final

from rllib_gpg.advantages.baselines import RidgeBaseline
from rllib_gpg.advantages.levels import Level
from rllib_gpg.learning import GPGTRPOTorchLearner
from rllib_gpg.learning.surrogates import ClippedWeight

Preset = dict[str, Any]

# The paper's method: PPO's clip on returns less the mean of their timestep (arXiv 2510.03679).
GPG: Final[Preset] = {
    "credit": "returns",
    "binning": "time",
    "leave_one_out": False,
    "baseline": "bins",
    "baseline_decay": None,
    "lambda_": 1.0,
    "bootstrap_truncated": False,
    "second_level": None,
    "normalize_advantages": True,
    "surrogate": "clip",
    "clip_param": 0.2,
    "ratio_level": "step",
    "loss_averaging": "steps",
    "use_kl_loss": False,
    "reference_kl_coeff": 0.0,
    "learner_class": None,
    "episodes_per_start": 1,
    "max_extra_starts": 0,
    "num_epochs": 4,
    # 4, or what `minibatch_size` makes of a group.
    "num_minibatches": None,
}

# What this package recommends with few episodes: a regression inside the bins, and λ-returns.
RIDGE: Final[Preset] = {**GPG, "baseline": "ridge", "lambda_": 0.98}

# The same for continuous control with many env steps: of rollouts, too, whose ends it completes.
RIDGE_CONTINUOUS: Final[Preset] = {
    **GPG,
    "baseline": RidgeBaseline(num_features=512),
    "lambda_": 0.95,
    "bootstrap_truncated": True,
    "num_epochs": 10,
    # Of 8 rollouts of 256 steps, minibatches of 64, as in PPO's published settings.
    "num_minibatches": 32,
}

_ONE_UPDATE = {"surrogate": "unclipped", "num_epochs": 1, "num_minibatches": 1}
# Every trajectory's total reward, over mean and spread of the group.
_OUTCOME = {"credit": "outcome", "binning": "universal", "normalize_advantages": "bins"}

# Williams, 1992: returns as they are, one update per group.
REINFORCE: Final[Preset] = {
    **GPG,
    **_ONE_UPDATE,
    "baseline": "none",
    "normalize_advantages": False,
}

# The same, less the constant that makes the gradient vary least.
REINFORCE_BASELINE: Final[Preset] = {**REINFORCE, "baseline": "optimal"}

# Hu et al., 2025: returns, normalised over the group, with PPO's clip.
REINFORCE_PP: Final[Preset] = {**GPG, "baseline": "none"}

# Shao et al., 2024, outcome supervision: the mean over trajectories, and a KL to a reference.
GRPO: Final[Preset] = {
    **GPG,
    **_OUTCOME,
    "loss_averaging": "trajectories",
    "reference_kl_coeff": 0.04,
}

# The same, process supervision: with gamma 1, to the letter.
GRPO_PROCESS: Final[Preset] = {
    **GRPO,
    "credit": "process",
    "baseline": "none",
    "normalize_advantages": False,
}

# Liu et al., 2025: neither lengths nor spreads weigh in. The constant is the episodes' limit.
DR_GRPO: Final[Preset] = {
    **GPG,
    **_OUTCOME,
    "normalize_advantages": False,
    "loss_averaging": 1000.0,
}

# Yu et al., 2025: clip-higher, all steps count the same, and further starts in place of those whose
# episodes all have one return. The group's size has to be a multiple of 8.
DAPO: Final[Preset] = {
    **GPG,
    **_OUTCOME,
    "clip_param": (0.2, 0.28),
    "episodes_per_start": 8,
    "max_extra_starts": 8,
}

# Zheng et al., 2025: one ratio per trajectory, with the bounds that were published for it.
GSPO: Final[Preset] = {
    **GPG,
    **_OUTCOME,
    "ratio_level": "trajectory",
    "clip_param": (3e-4, 4e-4),
    "loss_averaging": "trajectories",
    "num_minibatches": 1,
}

# Gao et al., 2025: a smooth gate in place of the clip.
SAPO: Final[Preset] = {
    **GPG,
    **_OUTCOME,
    "surrogate": "soft_gate",
    "loss_averaging": "trajectories",
}

# MiniMax, 2025: a clipped weight, so that every step keeps its gradient.
CISPO: Final[Preset] = {**GPG, **_OUTCOME, "surrogate": ClippedWeight()}

# Feng et al., 2025: whole trajectories, and then what followed the same state in others.
GIGPO: Final[Preset] = {**GPG, **_OUTCOME, "second_level": Level("state")}

# arXiv 2609.19850: time bins, each in its own unit.
GR2PO: Final[Preset] = {**GPG, "normalize_advantages": "bins"}

# Schulman et al., 2017, section 4: an adaptive KL penalty in place of the clip.
PPO_PENALTY: Final[Preset] = {**GPG, "surrogate": "unclipped", "use_kl_loss": True}

# Schulman et al., 2015: one natural-gradient step per group, within a bound on the KL.
TRPO: Final[Preset] = {
    **GPG,
    "learner_class": GPGTRPOTorchLearner,
    "num_epochs": 1,
    "num_minibatches": 1,
}

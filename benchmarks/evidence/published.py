"""What others have published of PPO on these tasks: settings, and returns."""

from __future__ import annotations

from typing import Any

# CleanRL's: ppo.py and ppo_continuous_action.py. What else it takes is in cleanrl.py. One change:
# with continuous actions RLlib's PPO steps 8 envs at a time in place of 1, for the same number of
# env steps per update; with 1 it takes several times as long. `lin_` falls linearly to 0 over a
# run. CleanRL's value loss, weighed with 0.5, is half a squared error, RLlib's a whole one.
CLEANRL_DISCRETE: dict[str, Any] = {
    "num_envs": 4,
    "vf_loss_coeff": 0.25,
    "train_batch_size_per_learner": 512,
    "minibatch_size": 128,
    "num_epochs": 4,
    "lr": "lin_0.00025",
    "gamma": 0.99,
    "lambda_": 0.95,
    "entropy_coeff": 0.01,
}
CLEANRL_CONTINUOUS: dict[str, Any] = {
    "num_envs": 8,
    "vf_loss_coeff": 0.25,
    "train_batch_size_per_learner": 2048,
    "minibatch_size": 64,
    "num_epochs": 10,
    "lr": "lin_0.0003",
    "gamma": 0.99,
    "lambda_": 0.95,
    "entropy_coeff": 0.0,
}

# The Zoo's, below, in RLlib's words, for tasks of which CleanRL publishes nothing and whose
# settings are none of a benchmark for all of MuJoCo. RLlib has no state-dependent noise (Pendulum).
# Its value loss is a whole squared error.
ZOO_LUNAR_LANDER: dict[str, Any] = {
    "num_envs": 16,
    "vf_loss_coeff": 0.5,
    "train_batch_size_per_learner": 16 * 1024,
    "minibatch_size": 64,
    "num_epochs": 4,
    "lr": 3e-4,
    "gamma": 0.999,
    "lambda_": 0.98,
    "entropy_coeff": 0.01,
}
ZOO_PENDULUM: dict[str, Any] = {
    "num_envs": 4,
    "vf_loss_coeff": 0.5,
    "train_batch_size_per_learner": 4 * 1024,
    "minibatch_size": 64,
    "num_epochs": 10,
    "lr": 1e-3,
    "gamma": 0.9,
    "lambda_": 0.95,
    "entropy_coeff": 0.0,
}

# Stable-Baselines3's Zoo, hyperparams/ppo.yml.
_ZOO_WIDE = {
    "log_std_init": -2.0,
    "ortho_init": False,
    "activation_fn": "ReLU",
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
    "Acrobot-v1": {
        "normalize": True,
        "n_envs": 16,
        "n_steps": 256,
        "gae_lambda": 0.94,
        "gamma": 0.99,
        "n_epochs": 4,
    },
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "LunarLander-v3": {
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "Hopper-v5": {
        "normalize": True,
        "n_steps": 512,
        "batch_size": 32,
        "gamma": 0.999,
        "learning_rate": 9.80828e-05,
        "ent_coef": 0.00229519,
        "n_epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "vf_coef": 0.835671,
        "policy_kwargs": _ZOO_WIDE,
    },
    "Walker2d-v5": {
        "normalize": True,
        "n_steps": 512,
        "batch_size": 32,
        "gamma": 0.99,
        "learning_rate": 5.05041e-05,
        "ent_coef": 0.000585045,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.95,
        "max_grad_norm": 1.0,
        "vf_coef": 0.871923,
    },
    "HalfCheetah-v5": {
        "normalize": True,
        "n_steps": 512,
        "batch_size": 64,
        "gamma": 0.98,
        "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": _ZOO_WIDE,
    },
    "Ant-v5": {"normalize": True},
}

# What others report, to see whether contenders are what they are said to be: the Zoo's benchmark.md
# (one run each, likeliest actions, MuJoCo's v3 and LunarLander-v2; 100,000 env steps on CartPole
# and Pendulum, else 1,000,000), and CleanRL's docs (means of training; 500,000 env steps of classic
# control, 1,000,000 of MuJoCo's v4).
ZOO_RETURNS = {
    "CartPole-v1": 500.0,
    "Acrobot-v1": -73.5,
    "Pendulum-v1": -172.2,
    "LunarLander-v3": 242.1,
    "Hopper-v5": 2410.4,
    "Walker2d-v5": 3478.8,
    "HalfCheetah-v5": 5819.1,
    "Ant-v5": 1327.2,
}
CLEANRL_RETURNS = {
    "CartPole-v1": 488.8,
    "Acrobot-v1": -82.5,
    "Hopper-v5": 2382.9,
    "Walker2d-v5": 2288.0,
    "HalfCheetah-v5": 1442.6,
}

"""Stable-Baselines3's PPO with the settings of its Zoo, as its users run it."""

from __future__ import annotations

import time
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.cells import Cell
from benchmarks.evidence.protocol import EVALUATION_EPISODES, evaluation_seed
from benchmarks.evidence.published import ZOO
from benchmarks.training import Curve


class LearningCurve(BaseCallback):
    """Writes down one row per rollout."""

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()
        self.curve: Curve = {}
        self._start, self._start_of_clock = time.process_time(), time.monotonic()
        self._ended: list[tuple[float, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._ended.append((info["episode"]["r"], info["episode"]["l"]))
        return True

    def _on_rollout_start(self) -> None:
        # The one before has been learned from by now.
        if self.num_timesteps:
            self._write()

    def _on_training_end(self) -> None:
        self._write()

    def _write(self) -> None:
        number = len(self._ended)
        returns, lengths = (sum(episode[i] for episode in self._ended) for i in (0, 1))
        row = {
            "steps": self.num_timesteps,
            "return": round(returns / max(1, number), 3),
            "length": round(lengths / max(1, number), 1),
            "episodes": number,
            "cpu_seconds": round(time.process_time() - self._start, 2),
            "seconds": round(time.monotonic() - self._start_of_clock, 2),
        }
        self._ended.clear()
        for name, value in row.items():
            self.curve.setdefault(name, []).append(value)


def run(cell: Cell) -> dict[str, Any]:
    """Trains, evaluates; gives settings, learning curve, and the evaluation's returns."""
    model, callback = model_of(cell), LearningCurve()
    model.learn(cell.num_env_steps, callback=callback)
    evaluation = {
        name: _returns(model, cell, deterministic)
        for name, deterministic in (("sampled", False), ("greedy", True))
    }
    model.get_env().close()
    return {"settings": ZOO[cell.env], "curve": callback.curve, "evaluation": evaluation}


def model_of(cell: Cell) -> PPO:
    """The algorithm, with the Zoo's settings and envs."""
    settings = dict(ZOO[cell.env])
    num_envs, normalize = settings.pop("n_envs", 1), settings.pop("normalize", False)
    env: VecEnv = make_vec_env(cell.env, num_envs, seed=cell.seed, env_kwargs={"render_mode": None})
    if normalize:
        env = VecNormalize(env, gamma=settings.get("gamma", 0.99))
    return PPO("MlpPolicy", env, seed=cell.seed, device="cpu", **_for_sb3(settings))


def _for_sb3(settings: dict[str, Any]) -> dict[str, Any]:
    made = {name: _linear(value) for name, value in settings.items()}
    if "policy_kwargs" in made:
        network = dict(made["policy_kwargs"])
        made["policy_kwargs"] = {
            **network,
            "activation_fn": getattr(torch.nn, network["activation_fn"]),
        }
    return made


def _linear(value: Any) -> Any:
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    first = float(value.removeprefix("lin_"))
    return lambda left: left * first


class AsInTraining:
    """Predicts with state-dependent noise that is drawn as often as in training.

    Stable-Baselines3 evaluates with the noise that the last rollout has left, all the way.
    """

    def __init__(self, model: PPO) -> None:
        """Takes the algorithm."""
        self._model, self._steps = model, 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> Any:
        """Gives actions as the algorithm does."""
        often = self._model.sde_sample_freq
        if self._model.use_sde and (self._steps % often == 0 if often > 0 else self._steps == 0):
            self._model.policy.reset_noise(len(observation))
        self._steps += 1
        return self._model.predict(observation, state, episode_start, deterministic)


def _returns(model: PPO, cell: Cell, deterministic: bool) -> list[float]:
    """The returns of fresh episodes; SB3 fixes beforehand how many each env plays."""
    env: VecEnv = make_vec_env(
        cell.env,
        EVALUATION_EPISODES,
        seed=evaluation_seed(cell.seed),
        env_kwargs={"render_mode": None},
    )
    learned_on = model.get_vec_normalize_env()
    if learned_on is not None:
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = learned_on.obs_rms
    returns, _ = evaluate_policy(
        AsInTraining(model),
        env,
        n_eval_episodes=EVALUATION_EPISODES,
        deterministic=deterministic,
        return_episode_rewards=True,
    )
    env.close()
    return [round(float(value), 3) for value in returns]

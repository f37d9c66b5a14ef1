"""Small envs with known answers. Their only randomness is `reset(seed)`."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from ray.rllib.env.multi_agent_env import MultiAgentEnv, make_multi_agent


class ShortOrLong(gym.Env):
    """Episodes last 5 or 200 steps, with probability one half each; the reward is 1 per step.

    The observation is (a number drawn at reset, the step): it tells episodes apart.
    """

    SHORT, LONG = 5, 200

    def __init__(self, config: dict[str, Any] | None = None):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.length = int(self.np_random.choice([self.SHORT, self.LONG]))
        self.name = self.np_random.random()
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        return self._observation(), 1.0, self.t >= self.length, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.name, self.t], np.float32)


class Endless(ShortOrLong):
    """Never ends by itself."""

    def step(self, action: int) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


class Identity(gym.Env):
    """The action must repeat the observed bit, 10 times; the best return is 10, chance gives 5."""

    LENGTH = 10

    def __init__(self, config: dict[str, Any] | None = None):
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        reward = float(action == self.bit)
        self.t += 1
        return self._observation(), reward, self.t >= self.LENGTH, False, {}

    def _observation(self) -> np.ndarray:
        self.bit = int(self.np_random.integers(2))
        return np.array([2.0 * self.bit - 1.0], np.float32)


class Broken(Identity):
    """Does something wrong at step 3: `config["how"]` says what."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.how = config["how"]

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.t == 4:
            if self.how == "raises":
                raise OSError("the simulator is gone")
            if self.how == "reward":
                reward = float("nan")
            if self.how == "observation":
                observation = np.array([np.inf], np.float32)
            if self.how == "nan observation":
                observation = np.array([np.nan], np.float32)
        return observation, reward, terminated, truncated, info


class NativeVector(gym.vector.VectorEnv):
    """A native vector env of `ShortOrLong` dynamics that can only step as a whole."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        single = ShortOrLong()
        self.single_observation_space = single.observation_space
        self.single_action_space = single.action_space
        self.observation_space = gym.vector.utils.batch_space(single.observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(single.action_space, num_envs)
        self._envs = [ShortOrLong() for _ in range(num_envs)]
        self._done = np.zeros(num_envs, bool)
        self._buffer = np.zeros((num_envs, 2), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        for row, env in enumerate(self._envs):
            self._buffer[row] = env.reset(seed=None if seed is None else seed + row)[0]
        self._done[:] = False
        return self._buffer, {}

    def step(self, actions: Any) -> Any:
        assert all(self.single_action_space.contains(action) for action in actions)
        rewards = np.zeros(self.num_envs)
        terminateds = np.zeros(self.num_envs, bool)
        for row, env in enumerate(self._envs):
            if self._done[row]:
                self._buffer[row] = env.reset()[0]
            else:
                self._buffer[row], rewards[row], terminateds[row], _, _ = env.step(actions[row])
        self._done = terminateds
        infos = {"t": np.array([env.t for env in self._envs]), "_t": np.ones(self.num_envs, bool)}
        return self._buffer, rewards, terminateds, np.zeros(self.num_envs, bool), infos


class TensorVector(gym.vector.VectorEnv):
    """A simulator on a device: points that actions push away from 0, for a drawn number of steps.

    With `gives_tensors=False` it is the same for NumPy.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        *,
        action_space: gym.Space,
        one_hot: bool = False,
        gives_tensors: bool = True,
        device: str = "cpu",
    ):
        self.num_envs, self.single_action_space = num_envs, action_space
        self.single_observation_space = (
            gym.spaces.Discrete(50)
            if one_hot
            else gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        )
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(action_space, num_envs)
        self._one_hot, self._gives_tensors, self._device = one_hot, gives_tensors, device
        self._generator = torch.Generator(device)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._generator.manual_seed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self._device))
        return self._given(self._observations()), {}

    def step(self, actions: Any) -> Any:
        assert isinstance(actions, torch.Tensor) == self._gives_tensors
        assert len(actions) == self.num_envs
        push = torch.as_tensor(actions, device=self._device).float().reshape(self.num_envs, -1)
        begins = self._done
        self._x = self._x + 0.1 * (push.mean(1) - 0.5)
        self._t = self._t + 1
        rewards = torch.where(begins, 0.0, -self._x.abs())
        self._begin(begins)
        terminateds, truncateds = self._t >= self._length, self._x.abs() > 2.0
        self._done = terminateds | truncateds
        infos = {"x": self._x, "_x": self._t == 5}
        results = (self._observations(), rewards, terminateds, truncateds)
        return *map(self._given, results), {k: self._given(v) for k, v in infos.items()}

    def _begin(self, rows: torch.Tensor) -> None:
        def drawn() -> torch.Tensor:
            return torch.rand(self.num_envs, generator=self._generator, device=self._device)

        if rows.all():
            self._x, self._t, self._length = drawn(), drawn(), drawn()
        self._x = torch.where(rows, drawn() - 0.5, self._x)
        self._length = torch.where(rows, (3 + 40 * drawn()).floor(), self._length)
        self._t = torch.where(rows, 0.0, self._t)
        self._done = torch.zeros_like(rows)

    def _observations(self) -> torch.Tensor:
        if self._one_hot:
            return self._t.long()
        return torch.stack((self._x, self._t, self._length), 1)

    def _given(self, tensor: torch.Tensor) -> Any:
        return tensor if self._gives_tensors else tensor.cpu().numpy().copy()


class Long(Endless):
    """Ends at last, after 300 steps."""

    LENGTH = 300

    def step(self, action: int) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.t >= self.LENGTH, False, info


class DictIdentity(Identity):
    """`Identity` with a dict as its observation."""

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__(config)
        self.observation_space = gym.spaces.Dict({"bit": self.observation_space})

    def _observation(self) -> Any:
        return {"bit": super()._observation()}


class Unreliable(ShortOrLong):
    """Raises now and then, in `step` and in `reset`, from randomness that no seed controls."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self._probability = config["probability"]
        self._chance = random.SystemRandom()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._maybe_raise()
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        self._maybe_raise()
        return super().step(action)

    def _maybe_raise(self) -> None:
        if self._chance.random() < self._probability:
            raise OSError("the simulator is gone")


class TellsTooMuch(ShortOrLong):
    """Has something in an info, at step 3, that can't be sent to another process."""

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.t == 3:
            info = {"handle": threading.Lock()}
        return observation, reward, terminated, truncated, info


class InterruptsItself(ShortOrLong):
    """Is interrupted by Ctrl+C at step `at_step`, and of no use from then on."""

    at_step: int | None = None

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__(config)
        self.in_midst_of_a_step = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert not self.in_midst_of_a_step
        return super().reset(seed=seed)

    def step(self, action: int) -> Any:
        self.in_midst_of_a_step = True
        if self.t == self.at_step:
            raise KeyboardInterrupt
        result = super().step(action)
        self.in_midst_of_a_step = False
        return result


class Slow(ShortOrLong):
    """Waits a moment at every step, so that there is time to kill it."""

    def step(self, action: int) -> Any:
        time.sleep(0.002)
        return super().step(action)


class HangsOnce(ShortOrLong):
    """Hangs at step 3 of one episode: of the first that finds no file `config["path"]`."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self._path = Path(config["path"])

    def step(self, action: int) -> Any:
        if self.t == 3 and not self._path.exists():
            self._path.touch()
            time.sleep(3600)
        return super().step(action)


MultiShortOrLong = make_multi_agent(ShortOrLong)
MultiIdentity = make_multi_agent(Identity)
MultiUnreliable = make_multi_agent(Unreliable)


class ComingAndGoing(MultiAgentEnv):
    """Agents that come late, act at some steps only, leave, or are still there at the end.

    All observe (a number drawn at reset, the env's step). All rewards are multiplied by that
    number, 1 to 5, or `config["factor"]`. What an agent is given while it waits for its next
    observation belongs to the action it waits for; what "b" is given before its first action
    belongs to none. `REWARDS` says what that comes to, per agent and step of that agent.
    """

    # Env step by env step: who observes, and the rewards.
    SCRIPT = (
        ("a", {"a": 1}),
        ("ab", {"a": 1, "b": 100}),
        ("a", {"a": 1, "b": 2}),
        ("abc", {"a": 1, "b": 4}),
        ("ac", {"a": 1, "b": 8, "c": 16}),
        ("a", {"a": 1, "b": 32, "c": 64}),  # "b" leaves
        ("ac", {"a": 1, "c": 128}),
        ("a", {"a": 1, "c": 256}),  # the end, also of "c"
    )
    REWARDS = {  # noqa: RUF012
        "a": [1] * 8,
        "b": [2 + 4, 8 + 32],
        "c": [16, 64 + 128, 256],
    }

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__()
        self._factor = (config or {}).get("factor")
        self.agents = self.possible_agents = ["a", "b", "c"]
        space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(self.agents, space)
        self.action_spaces = dict.fromkeys(self.agents, gym.spaces.Discrete(4))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.factor = self._factor or int(np.random.default_rng(seed).integers(1, 6))
        self.t = 0
        self.expected = {"a"}
        return self._observe("a"), {}

    def step(self, actions: dict[str, int]) -> Any:
        assert set(actions) == self.expected
        who, rewards = self.SCRIPT[self.t]
        self.t += 1
        self.expected = set(who)
        rewards = {agent: float(reward * self.factor) for agent, reward in rewards.items()}
        terminateds = {"__all__": self.t == len(self.SCRIPT)}
        if self.t == 6:
            terminateds["b"] = True
        return self._observe(who), rewards, terminateds, {"__all__": False}, {}

    def _observe(self, who: str) -> dict[str, np.ndarray]:
        return {agent: np.array([self.factor, self.t], np.float32) for agent in who}


class TwoRoles(MultiAgentEnv):
    """Two roles with spaces of their own, as `Identity` has it: 10 steps, the best return is 10.

    The "reader" observes a bit and repeats it; the "pointer" observes an angle and points there.
    """

    LENGTH = 10

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__()
        self.agents = self.possible_agents = ["reader", "pointer"]
        self.observation_spaces = {
            "reader": gym.spaces.Discrete(2),
            "pointer": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
        }
        self.action_spaces = {
            "reader": gym.spaces.Discrete(2),
            "pointer": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.generator = np.random.default_rng(seed)
        self.t = 0
        return self._observe(), {}

    def step(self, actions: dict[str, Any]) -> Any:
        rewards = {
            "reader": float(actions["reader"] == self.seen["reader"]),
            "pointer": 1.0 - abs(float(actions["pointer"][0]) - float(self.seen["pointer"][0])),
        }
        self.t += 1
        done = {"__all__": self.t >= self.LENGTH}
        return self._observe(), rewards, done, {"__all__": False}, {}

    def _observe(self) -> dict[str, Any]:
        self.seen = {
            "reader": int(self.generator.integers(2)),
            "pointer": self.generator.uniform(-0.5, 0.5, 3).astype(np.float32),
        }
        return self.seen


class StartDecides(gym.Env):
    """10 steps; at the end a level that the reset drew, about 10, and 1 per action 1.

    Of some starts, a share `config["dead"]` of them, actions count nothing. The observation is
    (the level, the step).
    """

    LENGTH = 10

    def __init__(self, config: dict[str, Any] | None = None):
        self._dead = (config or {}).get("dead", 0.5)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.level = 10.0 * self.np_random.normal()
        self.counts = float(self.np_random.random() >= self._dead)
        self.t, self.bonus = 0, 0.0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        self.bonus += self.counts * float(action)
        done = self.t >= self.LENGTH
        return self._observation(), (self.level + self.bonus) * done, done, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.level, self.t], np.float32)


class ZeroSum(MultiAgentEnv):
    """Two agents, one of which gets what the other loses: 5 steps, 1 per action 1 of "a"."""

    LENGTH = 5

    def __init__(self, config: dict[str, Any] | None = None):
        super().__init__()
        self.agents = self.possible_agents = ["a", "b"]
        space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(self.agents, space)
        self.action_spaces = dict.fromkeys(self.agents, gym.spaces.Discrete(2))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.name = np.random.default_rng(seed).random()
        self.t = 0
        return self._observe(), {}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        gain = float(actions["a"])
        done = {"__all__": self.t >= self.LENGTH}
        return self._observe(), {"a": gain, "b": -gain}, done, {"__all__": False}, {}

    def _observe(self) -> dict[str, np.ndarray]:
        return {agent: np.array([self.name, self.t], np.float32) for agent in self.agents}

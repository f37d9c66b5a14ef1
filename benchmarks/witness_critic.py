"""A critic as PPO trains it, that watches: it learns from GPG's groups, and nobody listens to it.

So bins, the ridge and a critic can be asked about the same episodes, each before it has learned
from them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from torch import Tensor, nn

from rllib_gpg.advantages.returns import lambda_returns, returns_to_go

MINIBATCH = 64
LAMBDA = 0.95


class Moments:
    """The running mean and standard deviation of rows."""

    def __init__(self) -> None:
        """Starts without any row."""
        self._count, self._sum, self._square_sum = 0, 0.0, 0.0

    def add(self, rows: np.ndarray) -> None:
        """Takes in some rows."""
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._square_sum = self._square_sum + np.square(rows).sum(0)

    @property
    def mean(self) -> Any:
        """The mean; 0 without rows."""
        return self._sum / max(1, self._count)

    @property
    def std(self) -> Any:
        """The standard deviation; 1 without rows."""
        if not self._count:
            return 1.0
        return np.sqrt(np.maximum(self._square_sum / self._count - self.mean**2, 1e-8))


class WitnessCritic(ConnectorV2):
    """A learner connector that changes nothing.

    The network is PPO's: 64-64 tanh, on normalised observations. It is fitted to its own λ-returns,
    in units of the standard deviation of returns, in minibatches of 64 and as many epochs as the
    policy has.
    """

    def __init__(self, *args: Any, gamma: float, lr: float, num_epochs: int, **kwargs: Any):
        """Takes the policy's settings."""
        super().__init__(*args, **kwargs)
        self._gamma, self._lr, self._num_epochs = gamma, lr, num_epochs
        # Draws of its own, so that the policy's are what they are without it.
        self._generator = torch.Generator().manual_seed(0)
        self._network: nn.Module | None = None
        self._observations, self._returns = Moments(), Moments()
        # Group by group: how much of the variance of returns it explained beforehand.
        self.explained_variance: list[float] = []

    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        """Asks the critic about a group, and then teaches it."""
        parts = list(self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False))
        lengths = np.array([len(e) for e in parts])
        rewards = np.concatenate([np.asarray(e.get_rewards(), np.float64) for e in parts])
        obs = np.concatenate([np.reshape(e.get_observations(), (len(e) + 1, -1)) for e in parts])
        # Every observation but the last one of each episode.
        is_last = np.zeros(len(obs), np.bool_)
        is_last[np.cumsum(lengths + 1) - 1] = True

        values = self._values(obs)
        returns = returns_to_go(rewards, lengths, self._gamma)
        rest = returns - values[~is_last]
        self.explained_variance.append(float(1.0 - rest.var() / max(returns.var(), 1e-12)))

        # The critic's word for what follows where a time limit has cut; 0 where an episode ended.
        cut = np.array([not e.is_terminated for e in parts])
        rewards[np.cumsum(lengths) - 1] += self._gamma * values[is_last] * cut
        targets = lambda_returns(rewards, values[~is_last], lengths, self._gamma, LAMBDA)
        self._observations.add(obs)
        self._returns.add(returns)
        self._teach(obs[~is_last], targets)
        return batch

    def _values(self, obs: np.ndarray) -> np.ndarray:
        if self._network is None:
            return np.zeros(len(obs))
        with torch.no_grad():
            value = self._network(self._inputs(obs)).squeeze(-1).numpy().astype(np.float64)
        return value * self._returns.std + self._returns.mean

    def _inputs(self, obs: np.ndarray) -> Tensor:
        z = (obs - self._observations.mean) / self._observations.std
        return torch.as_tensor(np.clip(z, -10.0, 10.0), dtype=torch.float32)

    def _teach(self, obs: np.ndarray, targets: np.ndarray) -> None:
        if self._network is None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self._network = nn.Sequential(
                    nn.Linear(obs.shape[1], 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
                    nn.Linear(64, 1),
                )  # fmt: skip
            self._optimizer = torch.optim.Adam(self._network.parameters(), self._lr)
        inputs = self._inputs(obs)
        unit = (targets - self._returns.mean) / self._returns.std
        wanted = torch.as_tensor(unit, dtype=torch.float32)
        for _ in range(self._num_epochs):
            order = torch.randperm(len(obs), generator=self._generator)
            for rows in order.split(MINIBATCH):
                loss = (self._network(inputs[rows]).squeeze(-1) - wanted[rows]).square().mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()

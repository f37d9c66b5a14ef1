"""Algorithm 2 as the paper writes it, step by step: what the fast estimator must equal."""

import math
from collections import defaultdict

import numpy as np


def naive_advantages(
    observations, rewards, *, gamma, binning, leave_one_out=False, normalize=False, starts=None
):
    returns = []
    for reward in rewards:  # R[n,t] = r[n,t] + gamma * R[n,t+1]
        ret = [0.0]
        for r in reversed(list(reward)):
            ret.insert(0, float(r) + gamma * ret[0])
        returns.append(ret[:-1])

    keys = [
        [(start, *np.atleast_1d(k).tolist()) for k in binning(obs, np.arange(len(obs)))]
        for obs, start in zip(observations, starts or [0] * len(returns), strict=True)
    ]
    bins = defaultdict(dict)  # bin key -> {trajectory: its return at the first visit}
    for n, ret in enumerate(returns):
        for t, r in enumerate(ret):
            bins[keys[n][t]].setdefault(n, r)

    advantages = [[] for _ in returns]
    for n, ret in enumerate(returns):
        for t, r in enumerate(ret):
            entries = bins[keys[n][t]]
            others = [e for m, e in entries.items() if m != n]
            chosen = others if leave_one_out and others else list(entries.values())
            advantages[n].append(r - math.fsum(chosen) / len(chosen))

    if normalize:
        flat = np.concatenate(advantages)
        mean, std = flat.mean(), max(flat.std(), 1e-4)
        return [(np.array(a) - mean) / std for a in advantages]
    return [np.array(a) for a in advantages]

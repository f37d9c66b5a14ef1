"""A ridge inside bins as its formulas say, step by step: what the fast one must equal."""

import math
from collections import defaultdict

import numpy as np

STRENGTHS = [math.inf, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]


def naive_ridge(groups, *, gamma, lambda_, binning, num_features, decay, seed=0):
    """The advantages and the strength of every group of a sequence (observations, rewards)."""
    seen = []  # (weight, numbers) of all steps of earlier groups
    old = defaultdict(list)  # key -> (weight, R, phi) of first visits of earlier groups
    gram, product, steps, errors = 0.0, 0.0, 0.0, np.zeros(len(STRENGTHS))
    results = []
    for observations, rewards in groups:
        x = [[[*obs, t] for t, obs in enumerate(o)] for o in observations]
        now = [numbers for trajectory in x for numbers in trajectory]
        first = [(1.0, numbers) for numbers in without_outliers_of_first(now)]
        phi_of = features_of(seen or first, num_features, seed)
        keys = [
            [tuple(np.atleast_1d(k).tolist()) for k in binning(o, np.arange(len(o)))]
            for o in observations
        ]
        # Of every step: trajectory, key, R, phi
        returns = [naive_sum(reward, gamma) for reward in rewards]
        group = [
            (n, keys[n][t], returns[n][t], phi_of(x[n][t]))
            for n in range(len(x))
            for t in range(len(x[n]))
        ]
        new = defaultdict(dict)  # key -> {trajectory: (1, R, phi) at its first visit}
        for n, k, ret, phi in group:
            new[k].setdefault(n, (1.0, ret, phi))

        weights = [ridge_weights(gram, product, steps, rho, len(phi)) for rho in STRENGTHS]
        values = [naive_values(group, new, old, w) for w in weights]
        # Of equally good ones, but for rounding, the first.
        chosen = int(np.argmax(errors <= errors.min() * (1 + 1e-9)))
        v = np.split(values[chosen], np.cumsum([len(r) for r in rewards])[:-1])
        advantages = [
            # delta = r + gamma v' - v
            naive_sum(reward + gamma * np.append(v_n[1:], 0.0) - v_n, gamma * lambda_)
            for reward, v_n in zip(rewards, v, strict=True)
        ]
        advantages = [
            naive_beside_first_visits(keys[n], old, new, returns[n], v[n], advantages[n])
            for n in range(len(x))
        ]
        results.append(([np.array(a) for a in advantages], STRENGTHS[chosen]))

        for _, k, ret, phi in group:
            entries = old[k] + list(new[k].values())
            if len(entries) > 1:  # else there is nobody to be compared with
                count = sum(c for c, _, _ in entries)
                above_phi = phi - sum(c * f for c, _, f in entries) / count
                above_ret = ret - sum(c * r for c, r, _ in entries) / count
                gram = gram + np.outer(above_phi, above_phi)
                product = product + above_phi * above_ret
                steps += 1
        longer = math.sqrt(decay)
        gram, product, steps = longer * gram, longer * product, longer * steps
        squares = [[(s[2] - v) ** 2 for s, v in zip(group, vs, strict=True)] for vs in values]
        errors = longer * (errors + [math.fsum(of_rho) for of_rho in squares])
        for k, entries in new.items():
            old[k] += entries.values()
        decayed = {k: [(decay * c, r, f) for c, r, f in old[k] if decay > 0.0] for k in old}
        old = defaultdict(list, decayed)
        later = [(1.0, numbers) for numbers in without_outliers(now, seen)] if seen else first
        seen = [(0.9 * weight, numbers) for weight, numbers in seen] + later
    return results


def naive_beside_first_visits(keys, old, new, returns, values, advantages):
    """Where nobody else has been, a step is compared with the own first visit's λ-return."""
    compared = list(advantages)
    for t, k in enumerate(keys):
        if not old[k] and len(new[k]) == 1:
            first = keys.index(k)
            compared[t] -= advantages[first] + values[first] - returns[first]
    return compared


def without_outliers(now, seen):
    """Numbers further from the mean than 10 standard deviations count as if they were there."""
    mean, std = mean_and_std(seen)
    return np.where(std > 0, np.clip(now, mean - 10.0 * std, mean + 10.0 * std), now)


def without_outliers_of_first(now):
    """The same, for what is 1.4826 median deviations of normal numbers."""
    median = np.median(now, axis=0)
    std = 1.4826 * np.median(np.abs(now - median), axis=0)
    return np.where(std > 0, np.clip(now, median - 10.0 * std, median + 10.0 * std), now)


def mean_and_std(seen):
    weights, numbers = [weight for weight, _ in seen], np.array([x for _, x in seen])
    mean = np.average(numbers, axis=0, weights=weights)
    std = np.sqrt(np.average((numbers - mean) ** 2, axis=0, weights=weights))
    return mean, np.where(np.ptp(numbers, axis=0) > 0.0, std, 0.0)


def features_of(seen, num_features, seed):
    mean, std = mean_and_std(seen)
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((num_features, len(mean))) / (2 * np.pi * 1.4 * np.sqrt(len(mean)))
    u = rng.uniform(0.0, 1.0, num_features)

    def phi_of(numbers):
        z = [(x - m) / s if s > 0 else 0.0 for x, m, s in zip(numbers, mean, std, strict=True)]
        z = np.clip(z, -5.0, 5.0)
        return np.array([*z, *z**2, *[wave(h) for h in w @ z + u]])

    return phi_of


def wave(h):
    """A sine of period 1, drawn with parabolas."""
    f = h - round(h)
    return 16 * f * (0.5 - abs(f))


def ridge_weights(gram, product, steps, rho, num_features):
    w = np.zeros(num_features)
    if rho < math.inf and steps > 0.0:
        # A feature that is a function of the bin has nothing to say.
        live = np.flatnonzero(np.diag(gram) > 1e-10 * steps)
        g = gram[np.ix_(live, live)]
        w[live] = np.linalg.solve(g + rho * np.diag(np.diag(g)), product[live])
    return w


def naive_values(group, new, old, w):
    values = []
    for n, k, _, phi in group:
        others = old[k] + [e for m, e in new[k].items() if m != n] or [new[k][n]]
        b = sum(c * (r - w @ f) for c, r, f in others) / sum(c for c, _, _ in others)
        values.append(w @ phi + b)
    return np.array(values)


def naive_sum(rewards, discount):
    sums = [0.0]
    for r in reversed(list(rewards)):
        sums.insert(0, float(r) + discount * sums[0])
    return sums[:-1]

"""Estimates what best-of-n selection does: its KL, and proxy and gold as functions of n.

Best-of-n draws n completions and keeps the one with the highest proxy score. Every n up to N is
estimated without bias from one pool of N scored completions per prompt. Pure numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hf_align.statistics import clustered_means
from hf_align.types import Estimate

_WEIGHTS_HELD = 4_000_000  # order-statistic weights in memory at a time (32 MB)


def best_of_n_kl(n: ArrayLike) -> np.ndarray:
    """log n - (n - 1)/n: nominal KL(best-of-n || base), nats.

    Exact where no two completions have the same score and none is likely; an upper bound otherwise,
    and a loose one for short or deterministic completions: with two outcomes, the better of
    probability 0.1, n = 1024 has 2.303, not 5.93 (Beirami et al. 2024, arXiv:2401.01879). First
    used by Stiennon et al. 2020, arXiv:2009.01325, app. G.3.

    Args:
        n: Completions drawn, any shape, each at least 1.

    Raises:
        ValueError: If an n is below 1.
    """
    n = _at_least_one(n)
    return np.log(n) - (n - 1) / n


def best_of_n_chi_square(n: ArrayLike) -> np.ndarray:
    """n^2/(2n - 1) - 1: nominal chi-square divergence of best-of-n from the base, no unit.

    E_base[(n F^(n-1))^2] - 1 for the quantile F of a continuous score; an upper bound where scores
    tie, as `best_of_n_kl`. Arguments and errors as `best_of_n_kl`.
    """
    n = _at_least_one(n)
    return n**2 / (2 * n - 1) - 1


def best_of_n_kl_exact(probabilities: ArrayLike, scores: ArrayLike, n: int) -> float:
    """KL(best-of-n || base) of one prompt whose completions are all known, nats.

    In ascending order of the score best-of-n has q_i = F_i^n - (F_i - p_i)^n, F the cumulative
    probability; sum_i q_i log(q_i / p_i). Completions of one score form one atom, as ties are
    broken at random (Beirami et al. 2024, arXiv:2401.01879, theorem 1).

    Args:
        probabilities: (K,) base probability of each completion; they sum to 1.
        scores: (K,) proxy score of each.
        n: Completions drawn, at least 1.

    Raises:
        ValueError: If the probabilities are negative or do not sum to 1, or shapes differ.
    """
    probabilities, scores = np.asarray(probabilities, float), np.asarray(scores, float)
    if probabilities.shape != scores.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            f"got probabilities {probabilities.shape} and scores {scores.shape}, expected finite "
            "(K,)"
        )
    if not (probabilities >= 0).all() or abs(probabilities.sum() - 1) > 1e-6:
        raise ValueError(f"probabilities sum to {probabilities.sum()}, expected 1, none negative")
    n = float(_at_least_one(n))
    _, inverse = np.unique(scores, return_inverse=True)
    atoms = np.bincount(inverse, weights=probabilities / probabilities.sum())
    atoms = atoms[atoms > 0]
    above = np.append(np.cumsum(atoms[::-1])[::-1][1:], 0.0)  # exact where F is near 1
    with np.errstate(divide="ignore"):
        up_to = np.exp(n * np.log1p(-np.minimum(above, 1.0)))
        hit = np.minimum(atoms / np.maximum(1 - above, atoms), 1.0)
        chosen = up_to * -np.expm1(n * np.log1p(-hit))
    kept = chosen > 0
    return float(chosen[kept] @ np.log(chosen[kept] / atoms[kept]))


def best_of_n_kl_estimates(logps: ArrayLike, n: int) -> np.ndarray:
    """Beirami's estimate of KL(best-of-n || base) per winner, nats: atoms, as far as they matter.

    With e = p(winner | prompt): (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] +
    (1 - (1-e)^n) log[(1 - (1-e)^n) / e]; its mean over winners, by `clustered_mean`, estimates the
    KL. It is the KL were the winner the one atom above a continuum: never above `best_of_n_kl`,
    toward -log e as n grows, a little too large where several atoms matter (geometric
    probabilities, n = 4: 0.622 instead of 0.579), and the nominal value for long completions, where
    e underflows. Beirami et al. 2024, arXiv:2401.01879.

    Args:
        logps: (N,) log-probability of each prompt's winner under the base, nats, summed over
            tokens.
        n: Completions it was chosen from.

    Raises:
        ValueError: If a log-probability is positive or NaN, or n is below 1.
    """
    logps = np.asarray(logps, dtype=np.float64)
    if not (logps <= 0).all():
        raise ValueError("logps must be at most 0 and not NaN: log-probabilities of completions")
    nominal, n = best_of_n_kl(n), float(n)
    e = np.exp(logps)
    certain, vanishing = e >= 1, e < 1e-300
    e = np.where(certain | vanishing, 0.5, e)
    hit = -np.expm1(n * np.log1p(-e))  # 1 - (1-e)^n: the atom was drawn at all
    estimates = (1 - hit) * (nominal + (n - 1) * np.log1p(-e)) + hit * np.log(hit / e)
    return np.where(certain, 0.0, np.where(vanishing, nominal, estimates))


def best_of_n_values(
    proxy: ArrayLike, values: ArrayLike | None = None, ns: ArrayLike | None = None
) -> np.ndarray:
    """Expected value of the proxy's best of n, per prompt and n, without bias.

    With a prompt's N completions in ascending order of the proxy:
    E_n = sum_{i >= n} C(i-1, n-1) / C(N, n) v_(i), the mean over all subsets of n (Nakano et al.
    2021, arXiv:2112.09332, app. I). Completions of one proxy score share the mean of their values,
    as if ties were broken at random. The variance grows as n approaches N: keep n <= N/4 where the
    end of the curve matters.

    Args:
        proxy: (G, N) proxy scores, N completions of each of G prompts.
        values: (G, N) what to average, such as gold; None for the proxy itself.
        ns: (K,) whole numbers from 1 to N; None for all of them.

    Returns:
        (G, K) in the unit of `values`.

    Raises:
        ValueError: If shapes differ, a value is NaN or infinite, or an n is out of range.
    """
    proxy = _score_matrix(proxy, "proxy")
    values = proxy if values is None else _score_matrix(values, "values")
    if values.shape != proxy.shape:
        raise ValueError(f"got proxy {proxy.shape} and values {values.shape}, expected the same")
    num_samples = proxy.shape[1]
    ns = _numbers_drawn(ns, num_samples)
    order = np.argsort(proxy, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    values = tie_averaged(np.take_along_axis(proxy, order, axis=1), values)
    result = np.empty((len(values), len(ns)))
    step = max(1, _WEIGHTS_HELD // num_samples)
    for start in range(0, len(ns), step):
        chosen = slice(start, start + step)
        result[:, chosen] = values @ _order_statistic_weights(ns[chosen], num_samples).T
    return result


def win_rate_bound(n: ArrayLike) -> np.ndarray:
    """n / (n + 1): the most that best-of-n can win against one base completion, by the proxy.

    Reached where no two scores tie. Beirami et al. 2024, arXiv:2401.01879. Arguments and errors as
    `best_of_n_kl`.
    """
    n = _at_least_one(n)
    return n / (n + 1)


def best_of_n_win_rates(proxy: ArrayLike, ns: ArrayLike | None = None) -> np.ndarray:
    """P(best of n > one other completion) + P(tie) / 2 by the proxy, per prompt and n.

    The mean over all choices of n and one more out of the N completions, so n <= N - 1. Without
    ties it is `win_rate_bound` whatever the scores: it shows how much ties cost, not how good the
    proxy is.

    Args:
        proxy: (G, N) proxy scores.
        ns: (K,) whole numbers from 1 to N - 1; None for all of them.

    Returns:
        (G, K) shares.

    Raises:
        ValueError: As `best_of_n_values`.
    """
    proxy = np.sort(_score_matrix(proxy, "proxy"), axis=1)
    num_samples = proxy.shape[1]
    ns = _numbers_drawn(ns, num_samples - 1)
    positions = np.broadcast_to(np.arange(num_samples, dtype=np.float64), proxy.shape)
    first = _first_of_ties(proxy)
    last = np.rint(2 * tie_averaged(proxy, positions)).astype(np.int64) - first
    logs = _log_factorials(num_samples)
    below = np.arange(num_samples)
    result = np.empty((len(proxy), len(ns)))
    for k, n in enumerate(ns):
        # All n others lie among `below` completions with probability C(below, n) / C(N - 1, n).
        rest = np.maximum(below - n, 0)
        log_share = logs[below] - logs[rest] - logs[num_samples - 1] + logs[num_samples - 1 - n]
        share = np.where(below >= n, np.exp(log_share), 0.0)
        result[:, k] = 1 - (share[first] + share[last]).mean(axis=1) / 2
    return result


@dataclass(frozen=True)
class BestOfNCurve:
    """Proxy and gold of best-of-n, means over prompts with intervals clustered by prompt.

    Attributes:
        ns: (K,) completions drawn.
        kl: (K,) nominal KL, nats: an upper bound.
        proxy: K estimates in proxy units.
        gold: K estimates in gold units; None without gold.
    """

    ns: np.ndarray
    kl: np.ndarray
    proxy: list[Estimate]
    gold: list[Estimate] | None


def best_of_n_curve(
    proxy: ArrayLike,
    gold: ArrayLike | None = None,
    ns: ArrayLike | None = None,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> BestOfNCurve:
    """The best-of-n curve of G prompts: `best_of_n_values`, averaged and resampled by prompt.

    Each interval holds by itself; whether the curve falls after a peak is for
    `overoptimization.verdict` to say, given the per-prompt values.

    Args:
        proxy: (G, N) proxy scores.
        gold: (G, N) gold of the same completions.
        ns: (K,) whole numbers from 1 to N; None for all of them.
        num_resamples: Bootstrap resamples of the prompts.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: As `best_of_n_values`.
    """
    columns = [best_of_n_values(proxy, None, ns)]
    if gold is not None:
        columns.append(best_of_n_values(proxy, gold, ns))
    ns = _numbers_drawn(ns, np.asarray(proxy).shape[1])
    estimates = clustered_means(np.hstack(columns), num_resamples=num_resamples, seed=seed)
    return BestOfNCurve(
        ns=ns,
        kl=best_of_n_kl(ns),
        proxy=estimates[: len(ns)],
        gold=None if gold is None else estimates[len(ns) :],
    )


def tie_averaged(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values replaced by their mean among equal keys of the same row.

    Args:
        keys: (G, N) ascending along each row.
        values: (G, N).
    """
    starts = np.flatnonzero(_opens_a_tie(keys))
    if len(starts) == keys.size:
        return values
    counts = np.diff(starts, append=keys.size)
    return np.repeat(np.add.reduceat(values.ravel(), starts) / counts, counts).reshape(keys.shape)


def _opens_a_tie(keys: np.ndarray) -> np.ndarray:
    """(G, N) whether a key differs from the one before it in its row."""
    opens = np.ones(keys.shape, dtype=bool)
    opens[:, 1:] = keys[:, 1:] != keys[:, :-1]
    return opens


def _first_of_ties(keys: np.ndarray) -> np.ndarray:
    """(G, N) column at which each key's group of equals begins."""
    columns = np.arange(keys.shape[1])
    return np.maximum.accumulate(np.where(_opens_a_tie(keys), columns, 0), axis=1)


def _order_statistic_weights(ns: np.ndarray, num_samples: int) -> np.ndarray:
    """(K, N) probability that the i-th smallest of N is the largest of n: C(i-1, n-1) / C(N, n)."""
    logs, n = _log_factorials(num_samples), ns[:, None]
    rank = np.arange(1, num_samples + 1)
    rest = np.maximum(rank - n, 0)
    log_weights = logs[rank - 1] - logs[n - 1] - logs[rest]
    log_weights -= logs[num_samples] - logs[n] - logs[num_samples - n]
    return np.where(rank >= n, np.exp(log_weights), 0.0)


def _log_factorials(largest: int) -> np.ndarray:
    return np.array([math.lgamma(k + 1) for k in range(largest + 1)])


def _at_least_one(n: ArrayLike) -> np.ndarray:
    n = np.asarray(n, dtype=np.float64)
    if not (n >= 1).all():
        raise ValueError(f"got n {n}, expected at least 1")
    return n


def _numbers_drawn(ns: ArrayLike | None, largest: int) -> np.ndarray:
    ns = np.arange(1, largest + 1) if ns is None else np.atleast_1d(np.asarray(ns))
    whole = ns.ndim == 1 and ns.size > 0 and np.array_equal(ns, ns.astype(np.int64))
    if not whole or not ((ns >= 1) & (ns <= largest)).all():
        raise ValueError(f"got ns {ns}, expected whole numbers from 1 to {largest}")
    return ns.astype(np.int64)


def _score_matrix(scores: ArrayLike, name: str) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"got {name} {scores.shape}, expected (num_prompts, num_samples)")
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    if bad:
        raise ValueError(f"{bad} of {scores.size} {name} scores are NaN or infinite")
    return scores

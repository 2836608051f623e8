"""Time and memory of the diagnostics on a million scored samples: 62,500 prompts x 16.

Best-of-n curves of proxy and gold, win rates, both scaling laws for both, the association of proxy
and gold, the Goodhart and the length decomposition, chi-square: each with intervals from 2000
bootstrap resamples of the prompts. At most 10 s and 4 GB in all.

    OMP_NUM_THREADS=2 python tests/benchmarks/diagnostics_speed.py
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time

import numpy as np

from hf_align.diagnostics.best_of_n import best_of_n_curve, best_of_n_values, best_of_n_win_rates
from hf_align.diagnostics.decomposition import (
    goodhart_decomposition,
    length_decomposition,
    proxy_gold_association,
)
from hf_align.diagnostics.divergences import chi_square
from hf_align.diagnostics.scaling_laws import fit_clustered_scaling_law
from hf_align.statistics import clustered_means

SECONDS, GIGABYTES = 10.0, 4.0


def world(num_prompts: int, num_samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Gold, proxy and lengths of a base policy and of one that drifted, prompts differing."""
    rng = np.random.default_rng(seed)
    shape = (num_prompts, num_samples)
    difficulty = rng.normal(size=(num_prompts, 1))
    arrays = {}
    for name, drift in (("base", 0.0), ("policy", 0.5)):
        gold = difficulty + drift + rng.normal(size=shape)
        arrays[f"{name}_gold"] = gold
        arrays[f"{name}_proxy"] = gold + drift + rng.normal(size=shape)
        arrays[f"{name}_lengths"] = rng.gamma(4 + 2 * drift, 30, size=shape).astype(int) + 1
    arrays["log_ratios"] = rng.normal(0.125, 0.5, size=shape)
    return arrays


def tasks(a: dict[str, np.ndarray]) -> dict:
    """What is timed, by name."""
    num_prompts, num_samples = a["base_gold"].shape
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    flat = {name: values.ravel() for name, values in a.items()}
    d = np.sqrt(np.log(n := np.arange(1, num_samples + 1)) - (n - 1) / n)
    proxy, gold = a["base_proxy"], a["base_gold"]

    def laws() -> None:
        for values in (None, gold):
            curves = best_of_n_values(proxy, values).T
            for form in ("best_of_n", "rl"):
                fit_clustered_scaling_law(form, d, curves)

    def decomposition() -> None:
        sides = [
            flat[f"{name}_{what}"] for name in ("base", "policy") for what in ("proxy", "gold")
        ]
        goodhart_decomposition(*sides[:2], prompts, *sides[2:], prompts)

    def lengths() -> None:
        sides = [
            flat[f"{name}_{what}"] for name in ("base", "policy") for what in ("gold", "lengths")
        ]
        length_decomposition(*sides[:2], prompts, *sides[2:], prompts)

    return {
        "best-of-n values": lambda: best_of_n_values(proxy, gold),
        "best-of-n curves": lambda: best_of_n_curve(proxy, gold),
        "win rates": lambda: clustered_means(best_of_n_win_rates(proxy)),
        "scaling laws": laws,
        "association": lambda: proxy_gold_association(proxy, gold),
        "Goodhart decomposition": decomposition,
        "length decomposition": lengths,
        "chi-square": lambda: chi_square(flat["log_ratios"], prompts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=62_500)
    parser.add_argument("--samples", type=int, default=16)
    args = parser.parse_args()
    print(f"{' '.join(sys.argv)}  python {platform.python_version()}  numpy {np.__version__}")
    print(f"{os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}")
    arrays, total = world(args.prompts, args.samples), 0.0
    print(f"{'':<24} {'wall':>7}  {'CPU':>7}")
    for name, task in tasks(arrays).items():
        start, cpu = time.perf_counter(), time.process_time()
        task()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        total += seconds
        print(f"{name:<24} {seconds:5.2f} s  {cpu:5.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'in all':<24} {total:5.2f} s (limit {SECONDS:.0f} s)")
    print(f"{'peak memory':<24} {peak:5.2f} GB (limit {GIGABYTES:.0f} GB)")
    if total > SECONDS or peak > GIGABYTES:
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()

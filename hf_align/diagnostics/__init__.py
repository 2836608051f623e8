"""How far a policy moved and whether gold followed: KL, over-optimisation verdict, report.

Of a policy: `kl` and `divergences` (estimators), `logps` and `token_shift` (score samples with
models), `best_of_n` and `scaling_laws` (curves), `overoptimization` (verdict), `sequential` (the
same while the run is under way), `decomposition`, `diversity`, `manifold` and `outliers` (what
changed). Of a reward model: `calibration`, `accuracy`, `features`, `disagreement`. Of both:
`report` (report.json and report.md), `plots` (the only module that needs matplotlib) and
`reward_plots`. Importing this package loads neither torch nor matplotlib.
"""

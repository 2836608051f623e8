"""How far a policy moved and whether gold followed: KL, over-optimisation verdict, report.

Of a policy: `kl` (estimators), `logps` (scores samples with two models), `overoptimization` (curve
and verdict). Of a reward model: `calibration`, `accuracy`, `features`, `disagreement`. Of both:
`report` (report.json and report.md), `plots` (the only module that needs matplotlib) and
`reward_plots`. Importing this package loads neither torch nor matplotlib.
"""

"""How far a policy moved and whether gold followed: KL, over-optimisation verdict, report.

Modules: `kl` (estimators), `logps` (scores samples with two models), `overoptimization` (curve and
    verdict),
`report` (report.json and report.md), `plots` (the only one that needs matplotlib). Importing this
package loads neither torch nor matplotlib.
"""

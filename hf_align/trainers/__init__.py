"""What TRL's trainers lack: PPO, REINFORCE with any baseline, losses on rankings, callbacks.

The trainers are imported on use, because TRL and torch take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_align.trainers.diagnostics import DiagnosticsCallback as DiagnosticsCallback
    from hf_align.trainers.on_policy_config import PPOConfig as PPOConfig
    from hf_align.trainers.on_policy_config import ReinforceConfig as ReinforceConfig
    from hf_align.trainers.ppo import PPOTrainer as PPOTrainer
    from hf_align.trainers.ranking import RankingTrainer as RankingTrainer
    from hf_align.trainers.reinforce import ReinforceTrainer as ReinforceTrainer

_HOMES = {
    "DiagnosticsCallback": "diagnostics",
    "PPOConfig": "on_policy_config",
    "PPOTrainer": "ppo",
    "RankingTrainer": "ranking",
    "ReinforceConfig": "on_policy_config",
    "ReinforceTrainer": "reinforce",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hf_align.trainers.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hf_align.trainers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

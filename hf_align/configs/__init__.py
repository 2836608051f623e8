"""Every option of ours that a YAML file or the command line may set, grouped by recipe.

Trainer and model options are TRL's own (`DPOConfig`, `SFTConfig`, `ModelConfig`); the fields of
recipes that train never reuse one of their names. All fields have a default, and none of this
imports torch.
"""

from hf_align.configs.annotating import AnnotateArguments
from hf_align.configs.arena import ArenaArguments
from hf_align.configs.best_of_n import BestOfNArguments
from hf_align.configs.collecting import CollectArguments
from hf_align.configs.comparing import AnswerArguments, CompareArguments
from hf_align.configs.evaluating import EvaluateArguments
from hf_align.configs.expert_iteration import ExpertIterationArguments
from hf_align.configs.exploring import ExploreArguments
from hf_align.configs.filtering import FilterArguments
from hf_align.configs.goodhart import GoodhartArguments
from hf_align.configs.hhh import HHHArguments
from hf_align.configs.inspecting import InspectArguments
from hf_align.configs.judging import JudgeArguments
from hf_align.configs.online import OnlineArguments
from hf_align.configs.publishing import (
    DestinationArguments,
    PublishArguments,
    PublishingArguments,
)
from hf_align.configs.rewarding import RewardArguments
from hf_align.configs.studying import StudyArguments
from hf_align.configs.training import (
    DataArguments,
    EvaluationArguments,
    RewardSourceArguments,
    RunArguments,
    ScratchArguments,
)

__all__ = [
    # recipes that train
    "DataArguments",
    "EvaluationArguments",
    "RewardSourceArguments",
    "RunArguments",
    "ScratchArguments",
    # recipes that ask a judge
    "JudgeArguments",
    # recipes that write data or reports
    "DestinationArguments",
    "PublishingArguments",
    # one recipe each
    "AnnotateArguments",
    "ArenaArguments",
    "BestOfNArguments",
    "AnswerArguments",
    "CollectArguments",
    "CompareArguments",
    "ExpertIterationArguments",
    "EvaluateArguments",
    "ExploreArguments",
    "FilterArguments",
    "GoodhartArguments",
    "HHHArguments",
    "InspectArguments",
    "OnlineArguments",
    "PublishArguments",
    "RewardArguments",
    "StudyArguments",
]

"""What the semi-supervised bundles share: two streams of data, a teacher, the bases they build on, scoring of cases."""

from .bases import CopyPaste, MeanTeacherBase, Mixer, Step, Supervised, Voxels, choose_base
from .data import PairDataset, PairSampler, read_semi_supervised
from .evaluator import CaseEvaluator, component_filter
from .objective import SemiSupervisedObjective
from .region_loss import DiceCERegionLoss, PseudoLabels
from .teacher import MeanTeacher, TeacherUpdate, choose_network

__all__ = [
    "CaseEvaluator",
    "CopyPaste",
    "DiceCERegionLoss",
    "MeanTeacher",
    "MeanTeacherBase",
    "Mixer",
    "PairDataset",
    "PairSampler",
    "PseudoLabels",
    "SemiSupervisedObjective",
    "Step",
    "Supervised",
    "TeacherUpdate",
    "Voxels",
    "choose_base",
    "choose_network",
    "component_filter",
    "read_semi_supervised",
]

"""What the semi-supervised bundles share: two streams of data, a teacher, and the methods they build on."""

from .copy_paste import CopyPaste, Mixer
from .data import PairDataset, PairSampler, read_semi_supervised
from .mean_teacher import MeanTeacherConsistency, sigmoid_ramp
from .objective import SemiSupervisedObjective
from .pseudo_labels import PseudoLabels
from .step import Step, Voxels
from .supervised import Supervised
from .teacher import MeanTeacher, TeacherUpdate

__all__ = [
    "CopyPaste",
    "MeanTeacher",
    "MeanTeacherConsistency",
    "Mixer",
    "PairDataset",
    "PairSampler",
    "PseudoLabels",
    "SemiSupervisedObjective",
    "Step",
    "Supervised",
    "TeacherUpdate",
    "Voxels",
    "read_semi_supervised",
    "sigmoid_ramp",
]

"""Parts of a training run that all bundles share: exact resume, stop at NaN, progress, checks before the start."""

from .best_model import BestModelSaver, describe_selection, read_record, read_settings
from .checkpoint import load_checkpoint, save_atomic
from .full_state import FullStateCheckpoint
from .nan_stop import StopOnNan, refuse_bad_weights
from .objective_trainer import ObjectiveTrainer, loss_terms
from .output_dir import check_output_dir
from .overrides import refuse_unknown_keys
from .precision import use_bfloat16
from .progress import ProgressBarHandler
from .root_cause import report_root_cause, root_cause
from .seed import SeedEachEpoch

__all__ = [
    "BestModelSaver",
    "FullStateCheckpoint",
    "ObjectiveTrainer",
    "ProgressBarHandler",
    "SeedEachEpoch",
    "StopOnNan",
    "check_output_dir",
    "describe_selection",
    "load_checkpoint",
    "loss_terms",
    "read_record",
    "read_settings",
    "refuse_bad_weights",
    "refuse_unknown_keys",
    "report_root_cause",
    "root_cause",
    "save_atomic",
    "use_bfloat16",
]

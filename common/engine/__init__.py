"""Parts of a training run that all bundles share: exact resume, stop at NaN, progress, checks before the start."""

from .best_model import BestModelSaver
from .checkpoint import load_checkpoint, save_atomic
from .full_state import FullStateCheckpoint
from .model_record import ModelRecord, describe_selection, read_model, write_model_record
from .nan_stop import StopOnNan, refuse_bad_logits, refuse_bad_weights
from .objective_trainer import ObjectiveTrainer, loss_terms
from .patch_inferer import PatchInferer
from .precision import use_bfloat16
from .progress import ProgressBarHandler
from .readable_errors import root_cause
from .seed import SeedEachEpoch
from .start import start
from .tensorboard import TensorBoard
from .unwrap import wrap
from .weights import WeightsLoader, load_model

__all__ = [
    "BestModelSaver",
    "FullStateCheckpoint",
    "ModelRecord",
    "ObjectiveTrainer",
    "PatchInferer",
    "ProgressBarHandler",
    "SeedEachEpoch",
    "StopOnNan",
    "TensorBoard",
    "WeightsLoader",
    "describe_selection",
    "load_checkpoint",
    "load_model",
    "loss_terms",
    "read_model",
    "refuse_bad_logits",
    "refuse_bad_weights",
    "root_cause",
    "save_atomic",
    "start",
    "use_bfloat16",
    "wrap",
    "write_model_record",
]

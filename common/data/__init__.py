"""Data sets: read (``dataset``), checked (``check``) and written (``write``)."""

from common.data.check import CaseFacts, check_cases, check_dataset
from common.data.cleanup import make_cleanup
from common.data.copies import refuse_shared
from common.data.dataset import (
    Dataset,
    image_names,
    read_dataset,
    refuse_other_kinds,
    say_that_folds_are_not_read,
)
from common.data.errors import DataError
from common.data.images import list_images
from common.data.natural import natural_key
from common.data.preprocessing import Preprocessing
from common.data.sample import ensure_sample_data, refuse_foreign
from common.data.save_map import SaveMapd
from common.data.shrink import InvertToLabelMapd, ShrinkByAread, ZoomByAread
from common.data.whole_cases import CaseDataset
from common.data.write import Case, atomic_folder, write_dataset

__all__ = [
    "Case",
    "CaseDataset",
    "CaseFacts",
    "DataError",
    "Dataset",
    "InvertToLabelMapd",
    "Preprocessing",
    "SaveMapd",
    "ShrinkByAread",
    "ZoomByAread",
    "atomic_folder",
    "check_cases",
    "check_dataset",
    "ensure_sample_data",
    "image_names",
    "list_images",
    "make_cleanup",
    "natural_key",
    "read_dataset",
    "refuse_foreign",
    "refuse_other_kinds",
    "refuse_shared",
    "say_that_folds_are_not_read",
    "write_dataset",
]

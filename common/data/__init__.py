"""Data sets: read (``dataset``), checked (``check``) and written (``write``)."""

from common.data.check import CaseFacts, check_cases, check_dataset
from common.data.dataset import DataError, Dataset, read_dataset, refuse_other_kind
from common.data.draws import only_item
from common.data.images import list_images
from common.data.natural import natural_key
from common.data.sample import ensure_sample_data, refuse_foreign
from common.data.shrink import ShrinkByAread, ZoomByAread
from common.data.whole_cases import CaseDataset
from common.data.write import Case, atomic_folder, write_dataset

__all__ = [
    "Case",
    "CaseDataset",
    "CaseFacts",
    "DataError",
    "Dataset",
    "ShrinkByAread",
    "ZoomByAread",
    "atomic_folder",
    "check_cases",
    "check_dataset",
    "ensure_sample_data",
    "list_images",
    "natural_key",
    "only_item",
    "read_dataset",
    "refuse_foreign",
    "refuse_other_kind",
    "write_dataset",
]

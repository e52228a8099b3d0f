import errno
import os

import pytest

from common.data import output_dir
from common.data.output_dir import check_output_dir


def test_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = check_output_dir(str(tmp_path / "a" / "b"))
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []


def test_leaves_what_is_there(tmp_path):
    (tmp_path / "model.pt").write_text("x")
    check_output_dir(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("below", ["", "below", "further/below"])
def test_file_in_the_way(tmp_path, below):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OSError, match="out.*: expected a folder to write into, found a file there or on the way"):
        check_output_dir(tmp_path / "out" / below)
    assert (tmp_path / "out").read_text() == "x"


def test_read_only_file_system(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(output_dir, "NamedTemporaryFile", refuse)
    with pytest.raises(OSError, match="found Read-only file system; choose another folder, or make") as error:
        check_output_dir(tmp_path)
    assert str(tmp_path) in str(error.value) and error.value.__suppress_context__


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OSError, match="found Permission denied"):
            check_output_dir(tmp_path)
    finally:
        tmp_path.chmod(0o755)

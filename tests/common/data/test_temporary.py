import os
import subprocess
import sys

from common.data.temporary import remove_leftovers, temporary_path


def dead_process():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_names_are_new_hidden_and_keep_the_kind_of_file(tmp_path):
    names = [temporary_path(tmp_path / name) for name in ("a.nii.gz", "A.NII.GZ", "a.csv", "a.csv", "folder")]
    assert len(set(names)) == 5
    assert all(name.parent == tmp_path and name.name.startswith(".") for name in names)
    assert [name.name.partition(".part")[2] for name in names] == [".nii.gz", ".nii.gz", ".csv", ".csv", ""]
    long = temporary_path(tmp_path / ("x" * 255))
    long.touch()  # a file system takes 255 bytes


def test_those_of_dead_processes_go_and_nothing_else(tmp_path):
    own, foreign = temporary_path(tmp_path / "model.pt"), dead_process()
    left = [own.with_name(own.name.replace(f".{os.getpid()}-", f".{foreign}-"))]
    left.append(left[0].with_name(f".{foreign}-abc_1.part"))
    folder = left[0].with_name(f".{foreign}-ab.part")
    (folder / "images").mkdir(parents=True)
    kept = [own, tmp_path / "model.pt", tmp_path / f".{foreign}-ab.part-of-mine", tmp_path / ".x-ab.part",
            tmp_path / f"{foreign}-ab.part"]  # fmt: skip
    for file in [*left, *kept]:
        file.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)

from common.data.visible import visible


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("b.nii", "a/b.nii", "a/._b.nii", ".DS_Store", ".c/b.nii", "__MACOSX/a/b.nii", "__MACOSX/a/._b.nii"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert visible(tmp_path, "**/*.nii") == [tmp_path / "a/b.nii", tmp_path / "b.nii"]
    assert visible(tmp_path) == [tmp_path / "a", tmp_path / "b.nii"]


def test_the_folder_itself_may_be_hidden(tmp_path):
    folder = tmp_path / ".data"
    folder.mkdir()
    (folder / "a").touch()
    assert visible(folder) == [folder / "a"] and visible(tmp_path / "nowhere") == []

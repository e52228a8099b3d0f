import sys

import pytest

from tools import bundles as module
from tools.sample import sample


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """A folder of bundles with one that writes its seed into a file."""
    package = tmp_path / "bundles" / "tiny_bundle" / "tiny_bundle"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sample.py").write_text(
        "def generate_sample_data(directory, seed=0):\n"
        "    directory.mkdir()\n"
        "    (directory / 'seed').write_text(str(seed))\n"
    )
    (package.parent / "configs").mkdir()
    (package.parent / "configs" / "train.json").touch()
    (tmp_path / "bundles" / "no_bundle").mkdir()
    monkeypatch.setattr(module, "BUNDLES", tmp_path / "bundles")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "bundles"
    for name in ("tiny_bundle", "tiny_bundle.sample"):
        sys.modules.pop(name, None)


def test_default_place_is_the_bundle_and_it_is_said(bundles, capsys):
    sample("tiny_bundle")
    folder = bundles / "tiny_bundle" / "sample_data"
    assert (folder / "seed").read_text() == "0" and str(folder) in capsys.readouterr().out


def test_output_and_seed_are_passed_on(bundles, tmp_path):
    sample("tiny_bundle", output=str(tmp_path / "here"), seed=7)
    assert (tmp_path / "here" / "seed").read_text() == "7"
    assert not (bundles / "tiny_bundle" / "sample_data").exists()


def test_an_existing_folder_ends_in_a_plain_message(bundles, tmp_path):
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit, match="here"):
        sample("tiny_bundle", output=str(tmp_path / "here"))


def test_an_unknown_bundle_names_those_there_are(bundles):
    with pytest.raises(SystemExit, match="^bundle: expected one of tiny_bundle, found apscl$"):
        sample("apscl")


def test_the_real_bundles_have_a_generator():
    found = {folder.name for folder in module.BUNDLES.iterdir() if (folder / folder.name / "sample.py").is_file()}
    assert found == {"apscl_fewshot", "sgcg_dg", "transmedseg_ssl", "diffcl_ssl"}

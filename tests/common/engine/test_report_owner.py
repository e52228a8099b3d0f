import pytest

from common.engine import save_atomic
from common.engine.report_owner import OWNER, claim_report, refuse_another_report


@pytest.fixture
def report(tmp_path):
    """A folder with the report of a model, and that model."""
    model = tmp_path / "work" / "one" / "model.pt"
    folder = tmp_path / "work" / "eval"
    folder.mkdir(parents=True)
    save_atomic({"x": 1}, model)
    claim_report(folder, model)
    (folder / "cases.csv").touch()
    return folder, model


def test_the_report_of_another_model_is_refused(report, tmp_path):
    folder, model = report
    other = tmp_path / "two" / "model.pt"
    for _ in range(2):  # before its training and after
        with pytest.raises(ValueError) as error:
            refuse_another_report(folder, other)
        assert str(error.value) == (
            f"{folder / 'cases.csv'}: expected no report there, or one of {other}, found that of another model, "
            f"{model}. Give this report a folder of its own (--output_dir), or delete that file if you need the other "
            "report no more.")  # fmt: skip
        save_atomic({"x": 2}, other)
    (folder / "cases.csv").unlink()
    refuse_another_report(folder, other)


def test_the_same_model_may_be_reported_on_again(report, tmp_path, monkeypatch):
    folder, model = report
    refuse_another_report(folder, model)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(model.read_bytes())
    refuse_another_report(folder, copy)
    save_atomic({"x": 3}, model)  # trained on
    refuse_another_report(folder, model)
    monkeypatch.chdir(tmp_path)
    refuse_another_report("work/eval", "work/one/model.pt")
    (tmp_path / "work").rename(tmp_path / "moved")
    refuse_another_report(tmp_path / "moved" / "eval", tmp_path / "moved" / "one" / "model.pt")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_report_that_says_nothing_of_its_model_is_nobodys(report, tmp_path, content):
    folder, _ = report
    (folder / OWNER).unlink()
    if content is not None:
        (folder / OWNER).write_text(content)
    refuse_another_report(folder, tmp_path / "two" / "model.pt")

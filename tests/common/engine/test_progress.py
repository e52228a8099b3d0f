import io
import logging
import re
import sys

import pytest

from common.engine import ProgressBarHandler


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run_logged(build, tmp_path, caplog):
    def run(**options):
        handler = ProgressBarHandler(None, [tmp_path / "models", str(tmp_path / "eval")])
        run = build(tmp_path, extra=[handler], **options)
        handler.evaluator = run.evaluator
        with caplog.at_level(logging.INFO, logger="common.engine.progress"):
            run.trainer.run()
        return [record.message for record in caplog.records if record.name == "common.engine.progress"]

    return run


def test_without_a_terminal_ten_lines_and_the_folders(run_logged, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    *lines, weights, reports = run_logged(metric={epoch: epoch / 100 for epoch in range(1, 11)}, max_epochs=10)
    assert len(lines) == 10 and not sys.stderr.getvalue()
    assert re.fullmatch(r" 10 %: epoch 1/10, iteration 4/40, loss \d+\.\d{4}", lines[0])
    assert lines[5].startswith(" 60 %: epoch 6/10, iteration 24/40, loss ")
    assert lines[5].endswith("score 0.0500, best 0.0500 (epoch 5)")
    assert (weights, reports) == (f"results: {tmp_path / 'models'}", f"results: {tmp_path / 'eval'}")


def test_a_resumed_run_logs_from_where_it_was(run_logged, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    first = run_logged(max_epochs=2)
    lines = run_logged(max_epochs=4, resume=True)[len(first) :]
    assert lines[0].startswith(" 56 %: epoch 3/4, iteration 9/16")


def test_one_bar_over_all_epochs_on_a_terminal(run_logged, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    lines = run_logged(max_epochs=2)
    assert len(lines) == 2  # the folders only
    shown = sys.stderr.getvalue()
    assert "8/8" in shown and "epoch 2/2" in shown and "best 0.9000 (epoch 2)" in shown
    # one bar, left standing; log lines appear above it where the root logger shows them
    assert shown.count("\n") == 1 + shown.count("best so far")


def test_handlers_of_the_root_logger_come_back_after_an_error(build, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = list(logging.root.handlers)
    run = build(tmp_path, extra=[ProgressBarHandler()], metric={1: 0.5})  # the metric of epoch 2 is missing
    with pytest.raises(KeyError, match="2"):
        run.trainer.run()
    assert logging.root.handlers == before


def test_the_bar_of_a_resumed_run_starts_where_it_was(run_logged, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run_logged(max_epochs=2)
    monkeypatch.setattr(sys, "stderr", Terminal())
    run_logged(max_epochs=4, resume=True)
    shown = sys.stderr.getvalue()
    assert "8/16" in shown and "16/16" in shown and " 0/16" not in shown

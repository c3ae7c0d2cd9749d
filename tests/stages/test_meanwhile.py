import subprocess
import threading

import pytest
from filelock import Timeout

from stages import meanwhile
from stages.meanwhile import begin_page, page_lock


@pytest.fixture
def started(monkeypatch):
    commands = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: commands.append((command, options))
    )
    return commands


def test_a_page_is_begun_where_there_is_none_and_waits_for_nobody(tmp_path, started):
    assert begin_page(tmp_path, "embedded") == tmp_path / "reports" / "embedded" / "index.html"
    ((command, options),) = started
    assert command[1:3] == ["-m", "stages.report"]
    assert "tracking.enabled=false" in command
    assert options["cwd"] == tmp_path


@pytest.mark.parametrize(("age", "begun"), [(0.0, False), (-1.0, True)])
def test_a_recent_page_stays(tmp_path, started, monkeypatch, age, begun):
    page = tmp_path / "reports" / "embedded" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<html>")
    monkeypatch.setattr(meanwhile, "EVERY", 100.0 if age == 0 else 0.0)
    assert (begin_page(tmp_path, "embedded") is not None) == begun
    assert len(started) == begun


def test_two_processes_never_write_the_pages_of_a_suite_at_once(tmp_path):
    with page_lock(tmp_path, "embedded"):
        tried = []

        def other():
            try:
                with page_lock(tmp_path, "embedded").acquire(timeout=0.05):
                    tried.append("written")
            except Timeout:
                tried.append("waited")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with page_lock(tmp_path, "digits").acquire(timeout=0.05):
            tried.append("another suite")
    assert tried == ["waited", "another suite"]

"""The gallery's scripts run, and its pages were made from them."""

import re
import shutil

import pytest

from docsite import gallery


@pytest.fixture
def folder(root, tmp_path):
    """A copy of the gallery."""
    return shutil.copytree(root / "docs" / "gallery", tmp_path / "gallery")


def numbers(text):
    return [float(each) for each in re.findall(r"-?\d+\.\d+|-?\d+", text)]


def test_every_page_was_made_from_its_script():
    assert len(gallery.scripts()) >= 9
    assert gallery.stale() == []


@pytest.mark.parametrize("name", ["nearest", "section"])
def test_a_script_runs_alone_and_gives_what_its_page_shows(root, name):
    script = root / "docs" / "gallery" / f"{name}.py"
    found = gallery.run(script)
    assert found.figure.axes
    shown = "\n".join(
        re.findall(r"```text\n(.*?)\n```", script.with_suffix(".md").read_text(), re.S)
    )
    printed = "\n".join(each for each in found.printed if each)
    assert re.sub(r"[\d.]+", "", printed) == re.sub(r"[\d.]+", "", shown)
    # Another processor rounds otherwise: one or two of fifty images may fall on the other side.
    assert numbers(printed) == pytest.approx(numbers(shown), rel=0.1, abs=0.05)


def test_a_changed_script_makes_its_page_stale(folder):
    path = folder / "path.py"
    path.write_text(path.read_text() + "\nprint()\n")
    assert gallery.stale(folder) == ["path.md"]


def test_missing_and_left_over_files_are_stale(folder):
    (folder / "nearest.png").unlink()
    (folder / "gone.md").write_text("# Gone\n")
    (folder / "index.md").write_text("")
    assert gallery.stale(folder) == ["nearest.png", "gone.md", "index.md"]


def test_a_script_without_a_picture_is_refused(tmp_path):
    script = tmp_path / "bare.py"
    script.write_text("# %% [markdown]\n# # Bare\n\n# %%\nprint(1)\n")
    with pytest.raises(ValueError, match=r"bare\.py draws 0 figures"):
        gallery.run(script)


def test_an_unknown_name_is_one_line_and_exit_code_2(capsys):
    assert gallery.main(["nowhere"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("names must be of bracket, ")
    assert shown.endswith("; got 'nowhere'\n")
    assert shown.count("\n") == 1

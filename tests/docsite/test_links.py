"""The check of a built site finds dead links, missing places and other hosts."""

import pytest

from docsite.links import dead_links, main

GOOD = """
<link rel="stylesheet" href="style.css"><script src="run.js"></script>
<h1 id="top">Top</h1><a href="#top">up</a> <a href="sub/page.html#there">on</a>
<a href="sub/">folder</a> <a href="https://example.org/x">out</a> <a href="mailto:a@b.c">mail</a>
"""


@pytest.fixture
def site(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("style.css", "run.js"):
        (tmp_path / name).touch()
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "sub" / "index.html").write_text('<a href="../index.html#top">up</a>')
    (tmp_path / "sub" / "page.html").write_text('<p id="there"><a href="..">up</a></p>')
    return tmp_path


def test_a_sound_site_has_none(site):
    assert dead_links(site) == []
    assert main([str(site)]) == 0


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
        ('<a href="index.html#gone">x</a>', "index.html#gone: no such place on that page"),
        ('<a href="#gone">x</a>', "#gone: no such place on that page"),
        ('<img src="gone.png">', "gone.png leads nowhere"),
        (
            '<script src="https://example.org/a.js"></script>',
            "https://example.org/a.js is loaded from another host",
        ),
        (
            '<link rel="stylesheet" href="//example.org/a.css">',
            "//example.org/a.css is loaded from another host",
        ),
    ],
)
def test_each_kind_of_dead_link_is_named(site, line, problem):
    path = site / "index.html"
    path.write_text(path.read_text() + line)
    assert dead_links(site) == [f"index.html: {problem}"]
    assert main([str(site)]) == 1


def test_a_folder_without_a_site_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

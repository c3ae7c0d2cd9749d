import socket
from configparser import ConfigParser

import pytest

from pipeline import remote
from robustness_geometry.checks import InputError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository of DVC."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_folder_becomes_the_default_remote_and_the_next_one_takes_its_place(home, capsys):
    for name in ("one", "two"):
        (home / name).mkdir()
        remote.main([str(home / name)])
        assert capsys.readouterr().out.startswith(f"remote: {home / name} (in .dvc/config.local)")
        written = ConfigParser()
        written.read(home / ".dvc" / "config.local")
        assert written["core"]["remote"] == "team"
        assert written["'remote \"team\"'"]["url"] == str(home / name)
    assert (home / ".dvc" / "config").read_text() == ""


def closed():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "URL must be s3://BUCKET/PATH, or another address that DVC takes; got nothing"),
        (["nowhere"], "URL must be in a bucket, or a folder, that exists; got '.*nowhere'"),
        (["ftp://place/x"], "URL must be a place that DVC can use .*; got 'ftp://place/x'"),
        ([".", "--endpoint", "http://x"], "ENDPOINT must be left out unless URL=s3:"),
        ([".", "--region", "here"], "REGION must be left out unless URL=s3:; got 'here'"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_and_nothing_is_written(home, arguments, wanted):
    with pytest.raises(InputError, match=wanted):
        remote.main(arguments)
    assert not (home / ".dvc" / "config.local").exists()


def test_an_s3_server_that_does_not_answer_is_refused(home, monkeypatch):
    monkeypatch.setattr(remote, "require", lambda module, extra: None)
    with pytest.raises(InputError, match="ENDPOINT must be the address of a server that answers"):
        remote.main(["s3://bucket/path", "--endpoint", closed()])


def test_without_the_driver_of_s3_a_line_says_how_to_get_it(home, monkeypatch):
    monkeypatch.setitem(remote.sys.modules, "dvc_s3", None)
    with pytest.raises(InputError, match=r"package dvc_s3 must be installed: pip install .*\[s3\]"):
        remote.main(["s3://bucket/path"])

"""An empty tracking database for every test that asks for one."""

import sqlite3

import pytest

from pipeline.tracking import Settings, Store


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """An empty tracking database; making one takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("template")
    Store(Settings(uri=f"sqlite:///{folder / 'mlflow.db'}"))
    return folder / "mlflow.db"


@pytest.fixture
def home(tmp_path, monkeypatch, template):
    """A repository's root with such a database."""
    source, copy = sqlite3.connect(template), sqlite3.connect(tmp_path / "mlflow.db")
    source.backup(copy)
    source.close()
    copy.close()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(home):
    """A function that returns the runs of that database, the oldest first."""

    def runs() -> list:
        store = Store(Settings())
        return sorted(store.search(""), key=lambda run: run.info.start_time)

    return runs

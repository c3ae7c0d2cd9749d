"""MLflow's sqlite file: its health, readers beside writers, and addresses that follow a move."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from robustness_geometry.checks import refuse

__all__ = ["artifacts", "check", "follow_move", "read_beside_writes", "relocate"]

_KEY = "tracking.uri"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def artifacts(database: Path) -> str:
    """The address of the folder that holds the artifacts of the runs in ``database``."""
    return (database.resolve().parent / "mlruns").as_uri()


def check(database: Path) -> None:
    """Check that the file, which need not exist yet, is a whole database that can be written.

    Args:
        database: the sqlite file.

    Raises:
        InputError: it is damaged, or it cannot be written.
    """
    if not database.exists():
        return
    try:
        with _opened(database) as connection:
            connection.execute("begin immediate")
            connection.execute("create table probe_of_writing (number integer)")
            connection.rollback()
            (state,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        refuse(_KEY, database, f"a database that can be written ({error})")
    except sqlite3.DatabaseError as error:
        _refuse_damaged(database, str(error))
    if state != "ok":
        _refuse_damaged(database, state)


def _refuse_damaged(database: Path, damage: str) -> NoReturn:
    refuse(
        _KEY,
        database,
        f"a whole database ({' '.join(damage.split())}: move the damaged file away, "
        "and the next run makes a new one)",
    )


def read_beside_writes(database: Path) -> None:
    """Switch to a write-ahead log, under which writers do not lock readers out."""
    with _opened(database) as connection:
        connection.execute("pragma journal_mode=wal")


def follow_move(database: Path, experiment: str) -> None:
    """Correct the addresses of artifacts, which MLflow keeps absolute, if the repository was moved.

    Args:
        database: the sqlite file; it need not exist yet.
        experiment: name of the collection of runs in MLflow.
    """
    if not database.exists():
        return
    with _opened(database) as connection:
        known = connection.execute(
            "select name from sqlite_master where name = 'experiments'"
        ).fetchone()
        query = "select artifact_location from experiments where name = ?"
        row = connection.execute(query, (experiment,)).fetchone() if known else None
    if row and row[0].startswith("file:") and row[0] != artifacts(database):
        relocate(database, row[0], artifacts(database))


def relocate(database: Path, old: str, new: str) -> None:
    """Rewrite the addresses of artifacts.

    Args:
        database: the sqlite file.
        old: address of the artifacts' folder before the move, as ``file:///...``.
        new: address of that folder now.
    """
    with _opened(database) as connection:
        for table, column in _ADDRESSES:
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, ?) where {column} = ? "
                f"or substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(database, timeout=60)
    try:
        with connection:
            yield connection
    finally:
        connection.close()

"""Whether a tracking server answers, found out before anything waits for it."""

import http.client
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from robustness_geometry.checks import NOTHING, refuse

__all__ = ["PATIENCE", "address", "asking_once", "check_server", "within", "without_password"]

_PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""How MLflow asks a server for the first time; later it is patient."""

PATIENCE = 5.0
"""Seconds that a server may take to answer at all."""


def address(uri: str | None) -> str:
    """The address of the MLflow server: ``uri``, else what MLFLOW_TRACKING_URI holds.

    Raises:
        InputError: neither is an address of the form http://... or https://...
    """
    found = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not re.fullmatch(r"https?://[^/\s]+\S*", found):
        wanted = "an address http://HOST:PORT of an MLflow server, here or in MLFLOW_TRACKING_URI"
        refuse("tracking.uri", without_password(found) if found else NOTHING, wanted)
    return found


def check_server(uri: str, key: str = "tracking.uri") -> None:
    """Check that something answers at the address of a server, whatever it answers.

    Args:
        uri: the address.
        key: the setting that it is the value of.

    Raises:
        InputError: nothing does within PATIENCE.
    """
    # To look up a name, or to read a slow answer, may take longer than a connection's time limit.
    if not within(PATIENCE + 0.5, lambda: _ask(uri, key)):
        allowed = f"the address of a server that answers (none did within {PATIENCE:.0f} s)"
        refuse(key, without_password(uri), allowed)


def within(seconds: float, work: Callable[[], object]) -> bool:
    """Do ``work`` in a thread, and tell whether it was done in time; else the thread is left alone.

    Args:
        seconds: the time it has.
        work: what to do; what it raises is raised here.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # it is raised below
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    return not thread.is_alive()


def _ask(uri: str, key: str) -> None:
    place = urlsplit(uri)
    shown = without_password(uri)
    try:
        if place.scheme in ("http", "https"):
            with urllib.request.urlopen(shown, timeout=PATIENCE):
                return
        if place.hostname and place.port:
            with socket.create_connection((place.hostname, place.port), timeout=PATIENCE):
                return
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # MLflow may be told not to mind
            text = getattr(reason, "strerror", None) or reason
            refuse(key, shown, f"the address of a server that answers ({text})")


def without_password(uri: str) -> str:
    """The address without the name and password in it."""
    place = urlsplit(uri)
    if "@" not in place.netloc:
        return uri
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()


@contextmanager
def asking_once() -> Iterator[None]:
    """Within it MLflow asks a server once and briefly, instead of for minutes."""
    before = {name: os.environ.get(name) for name in _PROBE}
    os.environ.update(_PROBE)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

"""The dashboard: ``python -m pipeline.dashboard`` serves what was logged, on this machine alone."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from pipeline.committed import import_committed
from pipeline.tracking import Settings, Store
from robustness_geometry.checks import InputError, refuse

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the dashboard on this machine alone, after printing the address of its runs.

    Before that the results that are committed are put beside the runs, once.
    """
    parser = argparse.ArgumentParser(prog="python -m pipeline.dashboard", description=main.__doc__)
    parser.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1 (5000)")
    port = parser.parse_args(arguments).port
    _check_port(port)
    store = Store(Settings())
    if names := import_committed(store):
        print(f"dashboard: {len(names)} committed results are new in it", file=sys.stderr)
    # MLflow's own landing page is about language models; this is the page with the runs.
    page = f"#/experiments/{store.experiment}/runs?workflowType=machine_learning"
    print(f"http://127.0.0.1:{port}/{page}", flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        store.uri,
        "--registry-store-uri",
        store.uri,
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level=warning",
    ]
    os.environ["PYTHONWARNINGS"] = "ignore"  # about MLflow's own use of other libraries
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


def _check_port(port: int) -> None:
    if not 0 < port < 65536:
        refuse("port", port, "between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            refuse("port", port, "a port that this user may open, 1024 or more")
        except OSError:
            other = port + 1 if port < 65535 else port - 1
            refuse("port", port, f"a port that no other program uses (try --port {other})")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        sys.exit(2)

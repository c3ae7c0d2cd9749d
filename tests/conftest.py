"""Shared set-up: shapes in signatures are checked while the tests run."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    # A list of fonts of the tests' own: that of the home folder may tell of another installation.
    _fonts = tempfile.TemporaryDirectory(prefix="fonts-", ignore_cleanup_errors=True)
    os.environ["MPLCONFIGDIR"] = _fonts.name

from jaxtyping import install_import_hook

# Before anything imports them: every annotated shape of these modules is then held at run time.
install_import_hook(
    ["robustness_geometry.attacks", "robustness_geometry.norms", "robustness_geometry.geometry"],
    "beartype.beartype",
)


# One thread: small networks gain nothing from more, and threads that wait for each other cost much
# on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent

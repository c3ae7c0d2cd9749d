"""Shared set-up: shapes in signatures are checked while the tests run."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

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

import importlib.util

import pytest
import torch

from benchmarks.peers import PEERS

IMAGES = 48


def pytest_configure(config):
    missing = [peer.name for peer in PEERS if importlib.util.find_spec(peer.module) is None]
    if missing:
        raise pytest.UsageError(
            f"tests/peers needs {', '.join(missing)}: run 'make .venv-peers/ok', "
            "then '.venv-peers/bin/python -m pytest tests/peers'"
        )
    torch.set_num_threads(
        1
    )  # batches are small: a second thread gains little, and on a busy machine it costs much


@pytest.fixture(scope="session")
def model():
    from robustness_geometry.models import pretrained

    return pretrained("mnist5k_lenet").requires_grad_(False)


@pytest.fixture(scope="session")
def images():
    from robustness_geometry.datasets import mnist5k

    return mnist5k().test.images[:IMAGES]


@pytest.fixture(scope="session")
def labels(model, images):
    from robustness_geometry.types import predict

    return predict(model, images)

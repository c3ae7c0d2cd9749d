"""The state of a training on disk, so that a killed one goes on from its last finished epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.storage import whole

__all__ = ["Checkpoint"]


class Checkpoint:
    """The files of one training: what its next epoch depends on, and the weights of past epochs.

    Args:
        folder: of all trainings' files.
        name: of this training; another one has another name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.pt"

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state by a newer one, wholly or not at all."""
        _write(self.path, state)

    def load(self) -> dict[str, Any] | None:
        """The state, or None where nothing was saved."""
        return _read(self.path) if self.path.exists() else None

    def save_weights(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after an epoch, which is to happen before its state is saved."""
        _write(self._weights(epoch), weights)

    def load_weights(self, epoch: int) -> dict[str, Tensor]:
        """The weights after a past epoch."""
        return _read(self._weights(epoch))

    def _weights(self, epoch: int) -> Path:
        return self.path.with_suffix(f".epoch{epoch}.pt")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with whole(path) as file:
        torch.save(dict(content), file)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content

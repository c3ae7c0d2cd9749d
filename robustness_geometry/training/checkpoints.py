"""The state of a training on disk, so that a killed one goes on from its last finished epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustness_geometry.checks import refuse
from robustness_geometry.files import whole

__all__ = ["Checkpoint"]


class Checkpoint:
    """The files of one training: what its next epoch depends on, and the weights of past epochs.

    Args:
        path: the file of the state, without its ending; those of past epochs lie beside it.
        origin: digest of what the training starts from; a file with another one is refused.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self.path = path.with_name(f"{path.name}.pt")
        self._origin = origin

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state by a newer one, wholly or not at all."""
        _write(self.path, {**state, "origin": self._origin})

    def load(self) -> dict[str, Any] | None:
        """The state, or None where nothing was saved.

        Raises:
            InputError: the file belongs to another training.
        """
        if not self.path.exists():
            return None
        state = _read(self.path)
        if state.pop("origin", None) != self._origin:
            refuse(
                "checkpoint",
                self.path,
                "the file of this very training (weights, images, recipe, seed), or a new one",
            )
        return state

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

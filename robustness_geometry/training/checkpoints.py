"""The state of a training on disk, so that a killed one resumes at its last finished epoch."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustness_geometry.checks import refuse
from robustness_geometry.files import whole
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.types import Split

__all__ = ["Checkpoint", "origin_of"]


class Checkpoint:
    """The files of one training: what its next epoch depends on, and the weights of past epochs.

    Args:
        path: the file of the state, without its ending; those of past epochs lie beside it.
        origin: digest of what the training starts from; a file with another origin is refused.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self.path = path.with_name(f"{path.name}.pt")
        self._origin = origin

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state by a newer one, as a whole or not at all."""
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
                "the file of this training (same weights, images, recipe and seed), or a new file",
            )
        return state

    def save_weights(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after an epoch; call this before saving the state of the epoch."""
        _write(self._weights(epoch), weights)

    def load_weights(self, epoch: int) -> dict[str, Tensor]:
        """The weights after a past epoch."""
        return _read(self._weights(epoch))

    def _weights(self, epoch: int) -> Path:
        return self.path.with_suffix(f".epoch{epoch}.pt")


def origin_of(model: nn.Module, data: Split, recipe: Recipe, objective: object, seed: int) -> str:
    """A digest of what a training starts from, by which a checkpoint recognises it."""
    sha = hashlib.sha256(f"{recipe} {type(objective).__qualname__} {seed}".encode())
    for tensor in (*model.state_dict().values(), data.images, data.labels):
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(plain.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with whole(path) as file:
        torch.save(dict(content), file)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content

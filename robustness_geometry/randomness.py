"""Random numbers that depend on what they are for, never on where an image stands in a batch."""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Generators", "normal", "per_image", "seeded", "uniform"]

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, or one an image; None draws from a generator seeded with 0."""


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded from a hash of ``parts``, such as (seed, experiment, image index)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def per_image(seed: int, purpose: str, indices: Sequence[int] | Tensor) -> list[torch.Generator]:
    """One generator for each image index, so that a result does not depend on how the images are cut into chunks."""
    return [seeded(seed, purpose, int(index)) for index in indices]


def uniform(like: Tensor, generator: Generators, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) of the shape, type and device of ``like`` (N, ...)."""
    return low + (high - low) * _draw(torch.rand, like, generator)


def normal(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal numbers of the shape, type and device of ``like`` (N, ...)."""
    return _draw(torch.randn, like, generator)


def _draw(function, like: Tensor, generator: Generators) -> Tensor:  # type: ignore[no-untyped-def]
    # Drawn on the CPU, so that the same seed gives the same numbers on every device.
    if isinstance(generator, Sequence):
        if len(generator) != len(like):
            raise ValueError(f"{len(generator)} generators for {len(like)} images")
        rows = [function(like.shape[1:], generator=g, dtype=like.dtype) for g in generator]
        drawn = torch.stack(rows) if rows else torch.empty_like(like, device="cpu")
    else:
        drawn = function(like.shape, generator=generator or seeded(0), dtype=like.dtype)
    return drawn.to(like.device)

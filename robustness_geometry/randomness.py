"""Random numbers that depend on their purpose, never on the place of an image in a batch."""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Generators", "normal", "per_image", "seeded", "stream", "uniform"]

Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, or one per image; None draws from ``seeded(0)``."""


def seeded(*parts: object) -> torch.Generator:
    """A CPU generator seeded from a hash of ``parts``, such as (seed, experiment, image index).

    Example:
        >>> from robustness_geometry.randomness import seeded
        >>> seeded(0, "noise").initial_seed() == seeded(0, "noise").initial_seed()
        True
        >>> seeded(0, "noise").initial_seed() == seeded(1, "noise").initial_seed()
        False
    """
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def per_image(seed: int, purpose: str, indices: Sequence[int] | Tensor) -> list[torch.Generator]:
    """One generator per image index.

    Results of an image then do not depend on which other images are in its batch.

    Args:
        seed: seed of the experiment.
        purpose: what the numbers are for.
        indices: indices of the images in their data set.

    Example:
        >>> import torch
        >>> from robustness_geometry.randomness import normal, per_image
        >>> both = normal(torch.empty(2, 3), per_image(0, "noise", [4, 7]))
        >>> alone = normal(torch.empty(1, 3), per_image(0, "noise", [7]))
        >>> torch.equal(both[1:], alone)
        True
    """
    return [seeded(seed, purpose, int(index)) for index in indices]


def stream(generator: Generators) -> torch.Generator | Sequence[torch.Generator]:
    """The generator for a function that draws more than once; None becomes one from seed 0.

    With None, each draw alone would start from seed 0 again and give the same numbers.

    Example:
        >>> import torch
        >>> from robustness_geometry.randomness import stream, uniform
        >>> numbers = stream(None)
        >>> torch.equal(uniform(torch.empty(2), numbers), uniform(torch.empty(2), numbers))
        False
    """
    return seeded(0) if generator is None else generator


def uniform(like: Tensor, generator: Generators, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) of the shape, type and device of ``like`` (N, ...).

    Example:
        >>> import torch
        >>> from robustness_geometry.randomness import seeded, uniform
        >>> numbers = uniform(torch.empty(100), seeded(0), -1.0, 1.0)
        >>> bool((numbers >= -1).all() and (numbers < 1).all())
        True
    """
    return low + (high - low) * _draw(torch.rand, like, generator)


def normal(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal numbers of the shape, type and device of ``like`` (N, ...).

    Example:
        >>> import torch
        >>> from robustness_geometry.randomness import normal, seeded
        >>> normal(torch.empty(2, 3), seeded(0)).shape
        torch.Size([2, 3])
    """
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

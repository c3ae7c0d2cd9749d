"""Names and columns that tables, figures and notes share."""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.plots import literal
from pipeline.statistics import Estimate
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.types import Attack, Dataset, Perturbed

__all__ = [
    "class_name",
    "class_text",
    "columns",
    "interval",
    "norm_name",
    "norm_sign",
    "outcome",
    "shown",
    "sign_shares",
    "titled",
    "value",
]


def norm_name(norm: float) -> str:
    """An l_p norm in names of numbers and files: l2, linf."""
    return "linf" if math.isinf(norm) else f"l{norm:g}"


def norm_sign(norm: float) -> str:
    """An l_p norm in figures, as matplotlib sets it."""
    return r"$\ell_\infty$" if math.isinf(norm) else rf"$\ell_{norm:g}$"


def class_name(data: Dataset, label: Tensor | int) -> str:
    """The name of a class, in quotes, as figures show it.

    A long name is cut. It is “class 3” if the figures' font cannot write it, and the class' number
    where the data set has no name for it.
    """
    index = int(label)
    if not 0 <= index < len(data.classes):
        return f"“{index}”"
    return f"“{literal(data.classes[index]) or f'class {index}'}”"


def outcome(data: Dataset, result: Perturbed, index: int) -> str:
    """The class that an image was perturbed into, as a caption, or ``not fooled``."""
    if not bool(result.success[index]):
        return "not fooled"
    return class_name(data, result.adversarial_labels[index])


def class_text(data: Dataset, label: Tensor | int) -> str:
    """The name of a class, in quotes, as tables hold it; its number where it has no name.

    The quotes keep a spreadsheet from reading a name such as ``=A1`` as a formula.
    """
    index = int(label)
    return f"“{data.classes[index] if 0 <= index < len(data.classes) else index}”"


def titled(attack: Attack) -> str:
    """The attack's name with its options, such as ``deepfool (norm=2.0, overshoot=0.02)``."""
    options = ", ".join(
        f"{name}={value}" for name, value in getattr(attack, "keywords", {}).items()
    )
    return f"{attack_name(attack)} ({options})" if options else attack_name(attack)


def shown(estimate: Estimate) -> str:
    """A number with its interval, as notes give it."""
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def value(numbers: Mapping[str, Estimate], name: str) -> float:
    """The value of a number; NaN where no case has it."""
    return numbers[name].value if name in numbers else math.nan


def columns(name: str, estimate: Estimate) -> dict[str, float]:
    """A number and its interval, as three columns of a table."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def interval(estimate: Estimate) -> dict[str, float | int]:
    """The columns of a table beside a number: its interval, images and seeds."""
    return {
        "low": estimate.low,
        "high": estimate.high,
        "images": estimate.n,
        "seeds": estimate.seeds,
    }


def sign_shares(curvatures: Tensor) -> dict[str, float]:
    """Mean and signs of curvatures (n,), as columns of a table.

    Args:
        curvatures: (n,); NaN has no sign and is left out of the mean.

    Returns:
        The mean, the shares of positive and negative ones, and n.
    """
    return {
        "mean_curvature": float(curvatures.nanmean()),
        "share_positive": float((curvatures > 0).double().mean()),
        "share_negative": float((curvatures < 0).double().mean()),
        "points": len(curvatures),
    }

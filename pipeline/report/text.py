"""Numbers for readers: sensible digits, units, intervals and bounds."""

import math
from collections.abc import Iterable, Mapping

from pipeline.statistics import Estimate

__all__ = [
    "CHAPTERS",
    "DATA",
    "bounds_text",
    "counts_text",
    "estimate_text",
    "interval_text",
    "label",
    "printed",
    "unit",
]

CHAPTERS = {
    3: "Adversarial perturbations",
    4: "Universal perturbations",
    5: "Between random noise and the worst case",
    6: "Why universal perturbations exist",
    7: "The shape of decision regions",
    8: "Curvature and robust training",
}
"""The chapters of the thesis that make claims."""

DATA = {
    "mnist5k": "5,000 MNIST digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "imagenet": "ImageNet",
}
"""Our names of data sets -> what readers call them."""

SHARES = ("test_error", "accuracy", "err_", "share_", "fooling_", "fool_", "fool[", "random[")
LABELS = {
    "test_error": "test error",
    "rho_df": "ρ̂ DeepFool",
    "rho_fgsm": "ρ̂ FGSM",
    "rho_lbfgs": "ρ̂ L-BFGS",
    "rho_minimum": "ρ̂ best known",
    "rho_inf_df": "ρ̂∞ DeepFool",
    "rho_inf_fgsm": "ρ̂∞ FGSM",
    "t_df": "time DeepFool",
    "t_fgsm": "time FGSM",
    "t_lbfgs": "time L-BFGS",
    "steps_df": "steps DeepFool",
    "fool_X_l2": "X, ℓ₂",
    "fool_val_l2": "held out, ℓ₂",
    "fool_X_linf": "X, ℓ∞",
    "fool_val_linf": "held out, ℓ∞",
    "err_original": "error, original",
    "err_ft_deepfool": "error, on DeepFool examples",
    "err_ft_fgsm": "error, on FGSM examples",
    "err_ft_clean": "error, on clean images",
}
SIGNS = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def label(name: str) -> str:
    """What readers call a number.

    Example:
        >>> from pipeline.report.text import label
        >>> label("rho_fgsm / rho_df"), label("fool_val_linf - fool_X_linf")
        ('ρ̂ FGSM / ρ̂ DeepFool', 'held out, ℓ∞ − X, ℓ∞')
    """
    head, comma, tail = name.partition(", ")
    if comma:
        return f"{label(head)}, {tail}"
    for sign, shown in ((" - ", " − "), (" / ", " / ")):
        if sign in name:
            return shown.join(label(part) for part in name.split(sign))
    return LABELS.get(name, name.replace("_", " "))


def unit(name: str) -> str:
    """The unit of a number, by its name.

    Returns:
        "share", "points" for a difference of shares, "seconds", or "" for none.
    """
    if " / " in name:
        return ""
    if name.startswith(SHARES):
        return "points" if " - " in name else "share"
    return "seconds" if name.startswith("t_") else ""


def estimate_text(name: str, estimate: Estimate) -> tuple[str, str]:
    """The value and the 95% interval in the number's unit; the interval is empty if unknown."""
    if math.isnan(estimate.value):
        return "not measured", ""
    factor, suffix = _scale(name, estimate.value)
    digits = _decimals(estimate.value * factor, (estimate.high - estimate.low) * factor / 2)
    value = _plain(estimate.value * factor, digits) + suffix
    if math.isnan(estimate.low + estimate.high):
        return value, ""
    return (
        value,
        f"[{_plain(estimate.low * factor, digits)}, {_plain(estimate.high * factor, digits)}]",
    )


def interval_text(
    name: str, value: float | None, low: float | None, high: float | None
) -> tuple[str, str]:
    """As :func:`estimate_text`, for numbers that may be missing."""
    missing = math.nan
    at, least, most = (missing if x is None else x for x in (value, low, high))
    return estimate_text(name, Estimate(at, least, most, n=0))


def printed(
    name: str, value: float, *, relation: str = "approx", spread: float | None = None
) -> str:
    """A number that the thesis prints, with all its digits."""
    factor, suffix = _scale(name, value)
    text = _short(value * factor) + suffix if value else "0"
    if spread is not None:
        text += f" ± {_short(spread * factor)}{suffix}"
    return {"at_least": f"> {text}", "at_most": f"≤ {text}"}.get(relation, text)


def bounds_text(name: str, bounds: Mapping[str, float]) -> str:
    """The bounds of a test, such as "≥ 2" or "0.9 to 1.1"."""
    if set(bounds) == {"at_least", "at_most"}:
        low, high = printed(name, bounds["at_least"]), printed(name, bounds["at_most"])
        return f"= {low}" if low == high else f"{low} to {high}"
    return " and ".join(f"{SIGNS[key]} {printed(name, value)}" for key, value in bounds.items())


def counts_text(estimates: Iterable[tuple[int, int]]) -> str:
    """The images and training seeds behind numbers, given their (n, seeds)."""
    pairs = [pair for pair in estimates if pair[0] > 0]
    if not pairs:
        return ""
    images, seeds = sorted({n for n, _ in pairs}), sorted({s for _, s in pairs})
    shown = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
    many = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"n = {shown}, {many} training seed{'' if many == '1' else 's'}"


def _scale(name: str, value: float) -> tuple[float, str]:
    kind = unit(name)
    if kind == "share":
        return 100.0, "%"
    if kind == "points":
        return 100.0, " pp"
    if kind == "seconds":
        size = abs(value)
        return (
            (1.0, " s")
            if size >= 1 or size == 0
            else (1e3, " ms")
            if size >= 1e-3
            else (1e6, " µs")
        )
    return 1.0, ""


def _decimals(value: float, half: float) -> int:
    """The number of decimals: one or two digits of the half-width, or three of the value."""
    if math.isfinite(half) and half > 0:
        return max(0, min(6, -math.floor(math.log10(half / 3))))
    if math.isinf(value) or value == round(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value))))


def _plain(value: float, decimals: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return _scientific(value)
    text = f"{value:,.{decimals}f}"
    return (text if float(text.replace(",", "")) else text.removeprefix("-")).replace("-", "−")


def _short(value: float) -> str:
    if value and abs(value) < 1e-3:
        return _scientific(value)
    return f"{round(value, 9):,.10g}".replace("-", "−")


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(RAISED)
    mantissa = mantissa.removesuffix(".0").replace("-", "−")
    return power if mantissa == "1" else f"{mantissa} × {power}"

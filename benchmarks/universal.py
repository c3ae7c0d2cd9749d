"""Algorithm 4 with look-ahead and in mini-batches, beside the plain loop and ART."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.peers import PEERS, art_classifier
from benchmarks.timing import paired_seconds, ratios, spread
from robustness_geometry.attacks import (
    Universal,
    deepfool,
    fooled,
    universal,
    universal_perturbation,
)
from robustness_geometry.norms import norms
from robustness_geometry.randomness import seeded
from robustness_geometry.types import Perturbed

__all__ = ["Setting", "measure_universal", "paragraphs"]

Plain = Mapping[str, Any]
Run = Callable[[], object]

PLAIN, AHEAD, BATCHED = "one by one", "batch_size=1", "batch_size=32"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {"look_ahead": 1},
    AHEAD: {},
    BATCHED: {"batch_size": 32},
    "batch_size=32, prune=2": {"batch_size": 32, "prune": 2},
    "batch_size=32, candidates=4, prune=2": {"batch_size": 32, "candidates": 4, "prune": 2},
}
"""The ways to compute a vector -> their options."""

FREE, BOUND = "DeepFool alone", "DeepFool and one look"
ART = next(peer for peer in PEERS if peer.name == "ART")
ARTS: dict[str, dict[str, Any]] = {
    "ART, as it comes": {},
    "ART, DeepFool as here": {"max_iter": 10, "epsilon": 0.02},
}
"""ART with its own DeepFool (100 steps, overshoot 1e-6) and with our options (10 and 0.02).

Both take the gradients of all classes."""

ART_IMAGES, ART_PASSES, ART_ROUNDS = 100, 2, 2
"""ART is slow: it and this project are compared on few images and rounds."""


@dataclass(frozen=True)
class Setting:
    """A network, and the images that a vector is to fool.

    Attributes:
        model: the network.
        images: X, (N, C, H, W).
        unseen: (M, C, H, W) other images, on which the vectors are judged.
        radius: l2 norm xi of a vector, in pixel units.
        passes: largest number of passes over X.
    """

    model: nn.Module
    images: Tensor
    unseen: Tensor
    radius: float
    passes: int = 5

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, unseen: Tensor) -> "Setting":
        """The setting with a radius of sqrt(d) / 10 times the median l2 norm of DeepFool.

        Random noise needs about ten times that to fool.
        """
        median = float(norms(deepfool(model, images).perturbations).median())
        return cls(model, images, unseen, images[0].numel() ** 0.5 * median / 10)

    def small(self) -> "Setting":
        """The part of the setting on which ART is measured."""
        return Setting(self.model, self.images[:ART_IMAGES], self.unseen, self.radius, ART_PASSES)

    def ours(self, shuffling: int, options: Mapping[str, Any]) -> Universal:
        """Our vector for one order of X."""
        order = seeded(shuffling)
        return universal_perturbation(
            self.model,
            self.images,
            radius=self.radius,
            passes=self.passes,
            generator=order,
            **options,
        )

    def arts(self, shuffling: int, inner: Mapping[str, Any]) -> Tensor:
        """ART's vector (1, C, H, W) for one order of X, with given options of its DeepFool."""
        from art.attacks.evasion import UniversalPerturbation

        classifier = art_classifier(self.model, self.images, clip=False)
        options = {"nb_grads": classifier.nb_classes, "verbose": False} | dict(inner)
        attack = UniversalPerturbation(
            classifier,
            attacker_params=options,
            max_iter=self.passes,
            eps=self.radius,
            norm=2,
            verbose=False,
        )
        random.seed(shuffling)  # the order of X
        attack.generate(self.images.cpu().numpy())
        return torch.as_tensor(attack.noise, device=self.images.device)

    def share(self, images: Tensor, vector: Tensor) -> float:
        """The share of images that a vector fools."""
        return float(fooled(self.model, images, vector).double().mean())


def measure_universal(setting: Setting, *, shufflings: int) -> dict[str, Any]:
    """Time all ways on the same orders of X, and ART on few images where it is installed.

    Returns:
        The setting, the rows of all ways with their time relative to the plain loop, the bound, and
        the rows beside ART.
    """
    rounds = [_round(setting, shuffling) for shuffling in range(shufflings)]
    seconds = {name: [found.seconds[name] for found in rounds] for name in rounds[0].seconds}
    small = setting.small()
    beside = (
        [_round_beside_art(small, shuffling) for shuffling in range(ART_ROUNDS)]
        if ART.installed
        else []
    )
    return {
        "images": len(setting.images),
        "unseen": len(setting.unseen),
        "radius": setting.radius,
        "passes": setting.passes,
        "shufflings": shufflings,
        "ways": _rows(setting, rounds, [PLAIN]),
        "bound": {
            "visits": spread([float(found.visits) for found in rounds]),
            "share": spread(ratios(seconds[BOUND], seconds[AHEAD])),
            "share_of_free_looks": spread(ratios(seconds[FREE], seconds[AHEAD])),
        },
        "art": {
            "images": len(small.images),
            "passes": small.passes,
            "rounds": len(beside),
            "version": ART.version if beside else None,
            "ways": _rows(small, beside, list(ARTS)) if beside else [],
        },
    }


@dataclass
class _Round:
    """All contestants on one order of X.

    Attributes:
        seconds: name -> seconds.
        vectors: name -> vector.
        visits: number of images from which the plain algorithm runs DeepFool.
    """

    seconds: dict[str, float]
    vectors: dict[str, Tensor]
    visits: int = 0


def _round(setting: Setting, shuffling: int) -> _Round:
    calls, looks = _calls(setting, shuffling)
    vectors: dict[str, Tensor] = {}
    runs: dict[str, Run] = {
        name: partial(_keep_ours, vectors, name, setting, shuffling) for name in WAYS
    }
    runs |= {
        FREE: partial(_again, setting, calls, 0),
        BOUND: partial(_again, setting, calls, looks),
    }
    return _Round(_timed(runs, setting, shuffling), vectors, len(calls))


def _round_beside_art(setting: Setting, shuffling: int) -> _Round:
    vectors: dict[str, Tensor] = {}
    ours = [name for name in WAYS if name != PLAIN]
    runs: dict[str, Run] = {
        name: partial(_keep_ours, vectors, name, setting, shuffling) for name in ours
    }
    runs |= {name: partial(_keep_arts, vectors, name, setting, shuffling) for name in ARTS}
    return _Round(_timed(runs, setting, shuffling), vectors)


def _keep_ours(vectors: dict[str, Tensor], name: str, setting: Setting, shuffling: int) -> None:
    vectors[name] = setting.ours(shuffling, WAYS[name]).perturbation


def _keep_arts(vectors: dict[str, Tensor], name: str, setting: Setting, shuffling: int) -> None:
    vectors[name] = setting.arts(shuffling, ARTS[name])


def _timed(runs: Mapping[str, Run], setting: Setting, shuffling: int) -> dict[str, float]:
    """Seconds of one round, which begins with another contestant each time."""
    names = list(runs)
    shift = shuffling % len(names)
    turned = {name: runs[name] for name in names[shift:] + names[:shift]}
    found = paired_seconds(turned, 1, setting.images.device, warm=True)
    return {name: found[name][0] for name in names}


def _rows(
    setting: Setting, rounds: Sequence[_Round], references: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each way; ``gain`` is the time of a reference over its own in the same round."""
    return [
        {
            "name": name,
            "seconds": spread([found.seconds[name] for found in rounds]),
            "gain": {
                reference: spread(
                    [found.seconds[reference] / found.seconds[name] for found in rounds]
                )
                for reference in references
            },
            "fooled": _mean(
                [setting.share(setting.images, found.vectors[name]) for found in rounds]
            ),
            "unseen": _mean(
                [setting.share(setting.unseen, found.vectors[name]) for found in rounds]
            ),
        }
        for name in rounds[0].vectors
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


Call = tuple[Tensor, dict[str, Any]]


def _calls(setting: Setting, shuffling: int) -> tuple[list[Call], int]:
    """Points and options of DeepFool's calls in Algorithm 4, and its number of forward passes."""
    calls: list[Call] = []

    def noted(model: nn.Module, images: Tensor, **options: Any) -> Perturbed:
        calls.append((images, options))
        return deepfool(model, images, **options)

    with patch.object(universal, "deepfool", noted):
        found = setting.ours(shuffling, WAYS[AHEAD])
    # Each image on the way through a pass, and at its end.
    return calls, 2 * found.passes * len(setting.images)


def _again(setting: Setting, calls: Sequence[Call], looks: int) -> None:
    """The same calls of DeepFool, and ``looks`` images through the network in batches."""
    for points, options in calls:
        deepfool(setting.model, points, **options)
    with torch.no_grad():
        for start in range(0, looks, len(setting.images)):
            for part in setting.images[: looks - start].split(128):
                setting.model(part)


LEGEND = (
    "X is {images} training digits, xi = {radius:.3g} in l2, {passes} passes at most, {shufflings} "
    "orders of X; "
    "fooling rates are means over the orders, on X and on {unseen} unseen digits. Times are ratios "
    "of one round each."
)


def paragraphs(results: Plain) -> list[str]:
    """The section of the report."""
    bound, art = results["bound"], results["art"]
    lines = ["## Universal perturbations (Algorithm 4)", "", LEGEND.format(**results), ""]
    lines += _table(results["ways"])
    lines += [
        "",
        f"batch_size=1 ran DeepFool from {bound['visits']['median']:.0f} images. It reaches "
        f"**{_percent(bound['share'])}** of the speed of those same single-image runs with one "
        "batched look at each "
        f"image in a pass and one at its end, and {_percent(bound['share_of_free_looks'])} of "
        "theirs alone.",
        "",
    ]
    if not art["ways"]:
        return [*lines, "ART: not installed: not measured."]
    beside = (
        f"{art['images']} digits, {art['passes']} passes, {art['rounds']} orders, "
        f"beside ART {art['version']}:"
    )
    return [*lines, beside, "", *_table(art["ways"])]


def _table(rows: Sequence[Plain]) -> list[str]:
    references = list(rows[0]["gain"])
    header = [
        "",
        "seconds",
        *[f"times as fast as {name}" for name in references],
        "fooled, X",
        "fooled, unseen",
    ]
    body = [
        [
            row["name"],
            f"{row['seconds']['median']:.2f}",
            *[_ratio(row["gain"][name]) for name in references],
            f"{row['fooled']:.1%}",
            f"{row['unseen']:.1%}",
        ]
        for row in rows
    ]
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *body)]


def _ratio(values: Plain) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def _percent(values: Plain) -> str:
    return f"{values['median']:.0%} ({values['min']:.0%} to {values['max']:.0%})"

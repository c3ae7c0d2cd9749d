"""Detection by curvature (Section 7.5): the settings, the two sets of images and the scores.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 7.5 and Algorithm 6.
    A. Fawzi, S.-M. Moosavi-Dezfooli, P. Frossard, S. Soatto, "Classification regions of deep neural
    networks", arXiv:1705.09552, 2017.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve
from torch import Tensor

from pipeline.evaluation import held_out, judged, valid
from pipeline.executor import Executor
from pipeline.plots import Line, line_figure
from pipeline.studies.attacking import deepfool_of
from pipeline.studies.subject import Subject
from pipeline.tables import titled
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.checks import Described, check_count, check_positive, refuse
from robustness_geometry.detection import Confidence, CurvatureScore, confidence, scored
from robustness_geometry.geometry import (
    ClassCurvatures,
    boundary_points,
    class_curvatures,
    default_h,
)
from robustness_geometry.randomness import Generators
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Network,
    Perturbed,
    Split,
    predict,
)

__all__ = [
    "OUTPUTS",
    "BoundaryCurvature",
    "DetectorSettings",
    "DetectorStudy",
    "Option",
    "ScoreSettings",
    "boundary_curvature",
    "common_notes",
    "detector_studies",
    "moved",
    "roc_figure",
]

OUTPUTS = ("softmax", "logits")
"""What the curvature may be that of: differences of probabilities, or of logits."""

FEWEST = 4
"""Test images that an experiment needs: two to choose options on, two to report on."""


@dataclass(frozen=True)
class DetectorSettings:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: the attack that perturbs the images.
        calibration_samples: number of held-out images on which options and thresholds are chosen,
            at least 2.
        samples: number of other held-out images, on which results are reported, at least 2. If the
            data set has too few images, both sets shrink in proportion.
        directions: number of random directions over which a curvature is averaged (T of Algorithm
            6), at least 1.
        h_factors: the steps h of the differences that are tried, each > 0, in units of
            :func:`robustness_geometry.geometry.default_h`, which is 0.0195 sqrt(d) in pixel l2.
        resamples: number of bootstrap resamples behind every interval, at least 1.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    calibration_samples: int = 500
    samples: int = 1000
    directions: int = 10
    h_factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 6.0)
    resamples: int = 2000

    def __post_init__(self) -> None:
        for name in ("calibration_samples", "samples"):
            check_count(name, getattr(self, name), minimum=2)
        for name in ("directions", "resamples"):
            check_count(name, getattr(self, name))
        if not self.h_factors:
            refuse("h_factors", self.h_factors, "one or more numbers > 0")
        for factor in self.h_factors:
            check_positive("h_factors", factor)

    def check(self, data: Dataset) -> None:
        """Check that there are images to choose options on, and others to report on.

        Raises:
            InputError: there are too few test images.
        """
        if len(data.test) < FEWEST:
            refuse(
                "dataset",
                Described(f"{len(data.test)} test images"),
                f"one with at least {FEWEST} test images: options are chosen on some and reported "
                "on others",
            )


@dataclass(frozen=True)
class ScoreSettings(DetectorSettings):
    """The settings of the experiments that compute the score of Algorithm 6.

    Attributes:
        candidates: number of classes that take part in the score, those of the largest logits, at
            least 2; None: all classes.
        false_positive_rate: the share of clean images, in (0, 1), that the calibrated threshold may
            flag.
    """

    candidates: int | None = None
    false_positive_rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates is not None:
            check_count("candidates", self.candidates, minimum=2)
        if not 0 < self.false_positive_rate < 1:
            refuse("false_positive_rate", self.false_positive_rate, "a share in (0, 1)")


Own = TypeVar("Own", bound=DetectorSettings)
OwnCo = TypeVar("OwnCo", bound=DetectorSettings, covariant=True)


@dataclass(frozen=True)
class Option:
    """One way to compute the score.

    Attributes:
        output: one of OUTPUTS.
        h: step of the differences, in pixel l2.
        normalise: whether the curvature is divided by the norm of the gradient.
    """

    output: str
    h: float
    normalise: bool

    def __str__(self) -> str:
        divided = (
            "divided by the gradient's norm"
            if self.normalise
            else "not divided by the gradient's norm"
        )
        return f"{self.output}, h = {self.h:.3g}, {divided}"


@dataclass(frozen=True)
class DetectorStudy(Subject, Generic[OwnCo]):
    """One training seed, with the images that options are chosen on and those to report on.

    ``train`` holds the images on which options and thresholds are chosen, ``test`` those to report
    on; both are held out from the training of the network. The executor's scope is the training
    seed and no single experiment, so that what several experiments ask for is computed once.

    Attributes:
        settings: the settings of the experiment.
    """

    settings: OwnCo

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps h that are tried, in pixel units."""
        unit = default_h(self.test.images.shape[1:].numel())
        return tuple(factor * unit for factor in self.settings.h_factors)

    def attacked(self, images: Images, attack: Attack | None = None) -> Perturbed:
        """``attack``, or the one under study, on ``images``, its success recomputed."""
        chosen = attack or self.settings.attack
        return self.executor.cached(
            partial(judged, chosen, self.model), images, randomness=takes_generator(chosen)
        ).value

    def curvatures(
        self: "DetectorStudy[ScoreSettings]",
        images: Images,
        outputs: Sequence[str],
        h: Sequence[float],
    ) -> tuple[ClassCurvatures, ...]:
        """The class curvatures at ``images``, one entry for each pair of output and step."""
        work = partial(
            class_curvatures,
            self.model,
            outputs=tuple(outputs),
            h=tuple(h),
            directions=self.settings.directions,
            candidates=self.settings.candidates,
        )
        return self.executor.cached(work, images, randomness=True).value

    def score(
        self: "DetectorStudy[ScoreSettings]", images: Images, option: Option
    ) -> CurvatureScore:
        """The score of Algorithm 6 at ``images``."""
        (curved,) = self.curvatures(images, (option.output,), (option.h,))
        return scored(curved, normalise=option.normalise)

    def confidence(self, images: Images) -> Confidence:
        """The baseline at ``images``: 1 - the largest probability."""
        return self.executor.cached(partial(confidence, self.model), images).value

    def boundary(self, images: Images, output: str, h: Sequence[float]) -> "BoundaryCurvature":
        """The boundary's mean curvature where DeepFool's way out of an image's region crosses it.

        The DeepFool is the attack under study if that is one, else the default DeepFool.
        """
        work = partial(
            boundary_curvature,
            self.model,
            output=output,
            h=tuple(h),
            directions=self.settings.directions,
        )
        outward = self.attacked(images, deepfool_of(self.settings.attack)).perturbations
        return self.executor.cached(work, images, outward, randomness=True).value


def detector_studies(
    network: Network, data: Dataset, settings: Own, executor: Executor
) -> list[DetectorStudy[Own]]:
    """One study for each training seed, all on the same two sets of held-out images."""
    wanted = settings.calibration_samples + settings.samples
    images = held_out(data, wanted)
    cut = settings.calibration_samples * len(images) // wanted
    chosen_on, reported = images.first(cut), Split(images.images[cut:], images.labels[cut:])
    return [
        DetectorStudy(model, seed, chosen_on, reported, executor.for_seed(seed), settings)
        for seed, model in sorted(network.models.items())
    ]


def moved(images: Images, attacked: Perturbed, scale: float = 1.0) -> Images:
    """``images + scale * perturbations``; images that were not fooled stay as they are.

    The caller leaves the latter out of what it counts.
    """
    return torch.where(
        attacked.success.view(-1, *[1] * (images.ndim - 1)),
        images + scale * attacked.perturbations,
        images,
    )


@dataclass(frozen=True)
class BoundaryCurvature:
    """The boundary near each image.

    Attributes:
        values: (N, H) the mean curvature kappa(z) for each step h, float64; NaN where no boundary
            point was found.
        points: (N, C, H, W) z.
        targets: (N,) the classes beyond it.
    """

    values: Tensor
    points: Tensor
    targets: Tensor


def boundary_curvature(
    model: Classifier,
    images: Images,
    outward: Images,
    *,
    output: str,
    h: Sequence[float],
    directions: int,
    generator: Generators = None,
) -> BoundaryCurvature:
    """The mean curvature of F = f_other - f_own where ``images + t outward`` crosses F = 0.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        outward: (N, C, H, W) perturbations; the boundary is looked for at 0 < t <= 1.
        output: one of OUTPUTS: what F is a difference of.
        h: the steps of the differences, in pixel l2.
        directions: number of random directions over which the curvature is averaged.
        generator: one for the batch or one per image.

    Returns:
        One curvature per image and step, with the points and the classes beyond.
    """
    own = predict(model, images)
    # ``outward`` passed off as an attack's result: only the crossing is looked for anew.
    ready = Perturbed(outward, own, own, torch.ones_like(own).bool(), torch.zeros_like(own))
    found = boundary_points(model, images, attack=lambda *_: ready, refinements=0)
    points = torch.where(found.success.view(-1, *[1] * (images.ndim - 1)), found.points, images)
    # A failed image needs some other class to be looked at; its value is dropped.
    rivals = torch.where(found.success, found.targets, (found.labels == 0).long())
    curved = class_curvatures(
        model,
        points,
        h=h,
        outputs=(output,),
        directions=directions,
        labels=found.labels,
        rivals=rivals[:, None],
        generator=generator,
    )
    values = [
        scored(each, normalise=True).curvatures.gather(1, rivals[:, None])[:, 0] for each in curved
    ]
    return BoundaryCurvature(
        torch.stack([valid(v, found.success) for v in values], dim=1), points, rivals
    )


# Figures and notes


def roc_figure(curves: Mapping[str, tuple[Tensor, Tensor]], *, title: str) -> Figure:
    """Clean images passed over perturbed images missed, as in Figure 7.9: mean over training seeds.

    Args:
        curves: legend entry -> the scores (seeds, n) of clean and of perturbed images, NaN where
            an image does not count.
        title: title of the figure.
    """
    grid = np.linspace(0, 1, 201)
    lines = {}
    for name, pair in curves.items():
        per_seed = []
        for clean, perturbed in zip(*pair, strict=True):
            kept = (clean.isfinite() & perturbed.isfinite()).numpy()
            if kept.any():
                scores = np.concatenate([clean.numpy()[kept], perturbed.numpy()[kept]])
                labels = [1] * int(kept.sum()) + [0] * int(kept.sum())
                missed, passed, _ = roc_curve(labels, -scores, drop_intermediate=False)
                per_seed.append(np.interp(grid, missed, passed))
        if per_seed:
            lines[name] = Line(grid.tolist(), np.mean(per_seed, axis=0).tolist(), marker="")
    lines["chance"] = Line([0, 1], [0, 1], style=":", marker="")
    return line_figure(
        lines,
        xlabel="perturbed images missed (share)",
        ylabel="clean images passed (share)",
        title=title,
        limits=(0.0, 1.02),
        width=6.0,
        height=5.0,
    )


def common_notes(studies: Sequence[DetectorStudy[DetectorSettings]], failed: int) -> list[str]:
    """What every experiment of the stage says about its images.

    Args:
        studies: one study for each training seed.
        failed: number of images of all seeds on which the attack failed.
    """
    first = studies[0]
    n = len(first.test)
    return [
        f"Options and thresholds were chosen on {len(first.train)} held-out images, everything "
        f"else was measured on {n} others, for each of {len(studies)} training "
        f"seed{'s' if len(studies) > 1 else ''}. Perturbed images are those of "
        f"{titled(first.settings.attack)}; it failed on {failed} of {n * len(studies)}, which are "
        "left out with their clean images.",
    ]

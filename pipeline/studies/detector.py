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
from pipeline.studies.attacking import alignments
from pipeline.studies.boundary import closest_points, crossing_points
from pipeline.studies.detector_boundary import boundary_curvature
from pipeline.studies.subject import Subject
from pipeline.tables import titled
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import judge, takes_generator
from robustness_geometry.checks import Described, check_count, check_positive, refuse
from robustness_geometry.detection import Confidence, CurvatureScore, confidence, scored
from robustness_geometry.geometry import Boundary, ClassCurvatures, class_curvatures, default_h
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Network,
    PerImage,
    Perturbed,
    Split,
    predict,
)

__all__ = [
    "OUTPUTS",
    "POINTS",
    "DetectorSettings",
    "DetectorStudy",
    "Option",
    "ScoreSettings",
    "common_notes",
    "detector_studies",
    "lengthened",
    "moved",
    "roc_figure",
]

POINTS = {"closest": "", "crossing": " (crossing)"}
"""Where the boundary is reached -> what the names of the numbers end in; claims are judged at the
first. ``closest`` is the point of the boundary closest to the image, to which r of Equation 7.1
leads; ``crossing`` is where the attack under study crosses the boundary."""

OUTPUTS = ("softmax", "logits")
"""What the curvature may be that of: differences of probabilities, or of logits."""

FEWEST = 4
"""Test images that an experiment needs: two to choose options on, two to report on."""


@dataclass(frozen=True)
class DetectorSettings:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: the attack whose perturbed images are compared with those at the closest boundary
            points.
        overshoot: by which share a perturbation that leads to the closest boundary point is made
            longer to lie beyond the boundary, > 0; DeepFool does so too.
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
    overshoot: float = 0.02
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
        check_positive("overshoot", self.overshoot)
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

    def boundary(self, images: Images, point: str) -> Boundary:
        """The boundary points of ``images`` of one of POINTS.

        The attack that crosses the boundary is the one under study if that is a DeepFool, else the
        default DeepFool.
        """
        if point == "closest":
            return closest_points(self.model, images, self.executor)
        return crossing_points(self.settings.attack, self.model, images, self.executor)

    def perturbed(self, images: Images, point: str) -> Perturbed:
        """Perturbations beyond one of POINTS: r made longer, or those of the attack under study."""
        if point == "crossing":
            return self.attacked(images)
        work = partial(lengthened, self.model, overshoot=self.settings.overshoot)
        return self.executor.cached(
            work, images, self.boundary(images, "closest").perturbations
        ).value

    def alignment(self, images: Images, point: str) -> PerImage:
        """cos(r, n) (N,) of the perturbations of one of POINTS; NaN where there is none."""
        if point == "crossing":
            attack, found = self.settings.attack, self.attacked(images)
            return alignments(attack, found, self.model, images, self.executor)
        near = self.boundary(images, "closest")
        return valid(near.angles.cos(), near.success)

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

    def scores(
        self: "DetectorStudy[ScoreSettings]", images: Images, options: Mapping[str, Option]
    ) -> dict[str, CurvatureScore]:
        """The score at ``images`` for each of several options; the same normals serve all steps."""
        found: dict[str, CurvatureScore] = {}
        for output in dict.fromkeys(option.output for option in options.values()):
            mine = {name: option for name, option in options.items() if option.output == output}
            steps = tuple(dict.fromkeys(option.h for option in mine.values()))
            curved = dict(zip(steps, self.curvatures(images, (output,), steps), strict=True))
            found |= {
                name: scored(curved[option.h], normalise=option.normalise)
                for name, option in mine.items()
            }
        return found

    def confidence(self, images: Images) -> Confidence:
        """The baseline at ``images``: 1 - the largest probability."""
        return self.executor.cached(partial(confidence, self.model), images).value

    def curvature_of(self, boundary: Boundary, output: str, h: Sequence[float]) -> Tensor:
        """The mean curvature (N, H) at boundary points for each step h; NaN where there is none."""
        work = partial(
            boundary_curvature,
            self.model,
            output=output,
            h=tuple(h),
            directions=self.settings.directions,
        )
        where = boundary.points, boundary.labels, boundary.targets
        return self.executor.cached(work, *where, randomness=True).value


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


def lengthened(
    model: Classifier, images: Images, perturbations: Images, *, overshoot: float
) -> Perturbed:
    """The attack that goes from each image to a boundary point, and a little beyond it.

    Args:
        model: a classifier in evaluation mode.
        images: (N, C, H, W).
        perturbations: (N, C, H, W) r, to the boundary points; NaN where there is none.
        overshoot: the share by which r is made longer.
    """
    own = predict(model, images)
    longer = ((1 + overshoot) * perturbations).nan_to_num(nan=0.0)
    return judge(model, images, longer, own, torch.zeros_like(own))


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


def common_notes(
    studies: Sequence[DetectorStudy[DetectorSettings]], failed: Mapping[str, int]
) -> list[str]:
    """What every experiment of the stage says about its images.

    Args:
        studies: one study for each training seed.
        failed: for each of POINTS the number of images of all seeds without a perturbation.
    """
    first = studies[0]
    n, settings = len(first.test), first.settings
    return [
        f"Options and thresholds were chosen on {len(first.train)} held-out images, everything "
        f"else was measured on {n} others, for each of {len(studies)} training "
        f"seed{'s' if len(studies) > 1 else ''}.",
        "Point `closest`: r leads to the closest boundary point that can be found, the r of "
        f"Equation 7.1, and the perturbed image is x + {1 + settings.overshoot:g} r. Claims are "
        "judged there; these numbers have the plain names. Point `crossing`: the perturbed images "
        f"are those of {titled(settings.attack)}, with (crossing) behind the numbers' names. "
        f"Without a perturbation, and left out: {failed['closest']} and {failed['crossing']} of "
        f"{n * len(studies)} images.",
    ]

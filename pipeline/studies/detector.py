"""What the experiments of this stage share: the two sets of images, the scores, and how the options are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve
from torch import Tensor

from pipeline.evaluation import held_out, judged, valid
from pipeline.executor import Executor
from pipeline.plots import Line, line_figure
from pipeline.tables import titled
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.protocol import attack_name, takes_generator
from robustness_geometry.checks import check_count, check_positive, refuse
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
    predict,
)

__all__ = [
    "OUTPUTS",
    "BoundaryCurvature",
    "Common",
    "Option",
    "Study",
    "boundary_curvature",
    "common_notes",
    "moved",
    "roc_figure",
    "studies",
]

OUTPUTS = ("softmax", "logits")


@dataclass(frozen=True)
class Common:
    """The settings that all experiments of this stage share.

    Attributes:
        attack: what is to be detected.
        calibration_samples: held-out images on which options and thresholds are chosen.
        samples: other held-out images, on which everything is reported. Where there are fewer, both
            are cut alike.
        directions: T of Algorithm 6.
        h_factors: the steps h that are tried, in units of
            :func:`robustness_geometry.geometry.default_h`.
        candidates: classes that take part in the score, those of the largest logits; None: all.
        false_positive_rate: the share of clean images that the calibrated threshold may flag.
        resamples: of the bootstrap.
    """

    attack: Attack = field(default_factory=lambda: partial(deepfool))
    calibration_samples: int = 500
    samples: int = 1000
    directions: int = 10
    h_factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 6.0)
    candidates: int | None = None
    false_positive_rate: float = 0.05
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
        if self.candidates is not None:
            check_count("candidates", self.candidates, minimum=2)
        if not 0 < self.false_positive_rate < 1:
            refuse("false_positive_rate", self.false_positive_rate, "a share in (0, 1)")

    def check(self, data: Dataset) -> None:
        """Hold that there are images to choose options on, and others to report on."""
        if len(data.test) < 4:
            refuse(
                "dataset",
                f"{len(data.test)} test images",
                "at least 4, to choose options on some and report on others",
            )


@dataclass(frozen=True)
class Option:
    """One way to compute the score."""

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
class Study:
    """One training seed of a network; what the experiments ask for alike is computed once.

    Attributes:
        model: the classifier.
        seed: its training seed.
        calibration: the images (n, C, H, W) to choose on.
        report: the images to report on.
        settings: the experiment's.
        executor: its scope this training seed and no single experiment.
    """

    model: Classifier
    seed: int
    calibration: Images
    report: Images
    settings: Common
    executor: Executor

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps h that are tried, in pixel units."""
        return tuple(
            factor * default_h(self.report.shape[1:].numel()) for factor in self.settings.h_factors
        )

    @property
    def deepfool(self) -> Attack:
        """The attack under study if it is a DeepFool, else the default one."""
        studied = self.settings.attack
        return studied if attack_name(studied) == "deepfool" else partial(deepfool)

    def attacked(self, images: Images, attack: Attack | None = None) -> Perturbed:
        """``attack``, or the one under study, on ``images``, its success recomputed."""
        chosen = attack or self.settings.attack
        return self.executor.cached(
            partial(judged, chosen, self.model), images, randomness=takes_generator(chosen)
        ).value

    def curvatures(
        self, images: Images, outputs: Sequence[str], h: Sequence[float]
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

    def score(self, images: Images, option: Option) -> CurvatureScore:
        """Algorithm 6 at ``images``."""
        (found,) = self.curvatures(images, (option.output,), (option.h,))
        return scored(found, normalise=option.normalise)

    def confidence(self, images: Images) -> Confidence:
        """The baseline at ``images``."""
        return self.executor.cached(partial(confidence, self.model), images).value

    def boundary(self, images: Images, output: str, h: Sequence[float]) -> "BoundaryCurvature":
        """The mean curvature of the boundary where DeepFool's way out of each image's region crosses it."""
        work = partial(
            boundary_curvature,
            self.model,
            output=output,
            h=tuple(h),
            directions=self.settings.directions,
        )
        outward = self.attacked(images, self.deepfool).perturbations
        return self.executor.cached(work, images, outward, randomness=True).value


def studies(network: Network, data: Dataset, settings: Common, executor: Executor) -> list[Study]:
    """One study for each training seed, all on the same two sets of images."""
    wanted = settings.calibration_samples + settings.samples
    images = held_out(data, wanted).images
    cut = settings.calibration_samples * len(images) // wanted
    sets = images[:cut], images[cut:]
    return [
        Study(model, seed, *sets, settings, executor.for_seed(seed))
        for seed, model in sorted(network.models.items())
    ]


def moved(images: Images, attacked: Perturbed, scale: float = 1.0) -> Images:
    """``images + scale * perturbations``; an image that was not fooled stays as it is, and is left out afterwards."""
    return torch.where(
        attacked.success.view(-1, 1, 1, 1), images + scale * attacked.perturbations, images
    )


@dataclass(frozen=True)
class BoundaryCurvature:
    """The boundary near an image.

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
    """The mean curvature of F = f_other - f_own where ``images + t outward`` crosses F = 0, 0 < t <= 1."""
    own = predict(model, images)
    ready = Perturbed(outward, own, own, torch.ones_like(own).bool(), torch.zeros_like(own))
    found = boundary_points(model, images, attack=lambda *_: ready, refinements=0)
    points = torch.where(found.success.view(-1, 1, 1, 1), found.points, images)
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


# Words


def roc_figure(curves: Mapping[str, tuple[Tensor, Tensor]], *, title: str) -> Figure:
    """Clean images passed over perturbed images missed, the mean over training seeds, as Figure 7.9 draws it.

    Args:
        curves: legend entry -> the scores (seeds, n) of clean and of perturbed images, NaN where
            one does not count.
        title: of the figure.
    """
    grid = np.linspace(0, 1, 201)
    lines = {}
    for name, pair in curves.items():
        rows = []
        for clean, perturbed in zip(*pair, strict=True):
            kept = (clean.isfinite() & perturbed.isfinite()).numpy()
            if kept.any():
                scores = np.concatenate([clean.numpy()[kept], perturbed.numpy()[kept]])
                labels = [1] * int(kept.sum()) + [0] * int(kept.sum())
                missed, passed, _ = roc_curve(labels, -scores, drop_intermediate=False)
                rows.append(np.interp(grid, missed, passed))
        if rows:
            lines[name] = Line(grid.tolist(), np.mean(rows, axis=0).tolist(), marker="")
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


def common_notes(found: Sequence[Study], failed: int) -> list[str]:
    """What every experiment of the stage says about its images."""
    first = found[0]
    n = len(first.report)
    return [
        f"Options and thresholds were chosen on {len(first.calibration)} held-out images, "
        "everything else was measured "
        f"on {n} others, for each of {len(found)} training seed{'s' if len(found) > 1 else ''}. "
        "Perturbed images are "
        f"those of {titled(first.settings.attack)}; it failed on {failed} of {n * len(found)}, "
        "which are left out "
        "with their clean images.",
    ]

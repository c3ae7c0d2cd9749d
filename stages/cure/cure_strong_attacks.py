"""Figure 8.7: CURE under longer PGD and under SPSA, to tell masked gradients (Section 8.5.1).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.1.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
    M. Andriushchenko, F. Croce, N. Flammarion, M. Hein, "Square Attack: a query-efficient black-box
    adversarial attack via random search", arXiv:1912.00049, 2020 (Square).
    J. Uesato, B. O'Donoghue, A. van den Oord, P. Kohli, "Adversarial risk and the dangers of
    evaluating against weak attacks", arXiv:1802.05666, 2018 (SPSA).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.bootstrap import measured, paired_bootstrap
from pipeline.evaluation import correct, recomputed_success
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.plots import COLOURS, axes_grid, styled
from pipeline.statistics import Estimate, Statistic, difference, mean, share, stack
from pipeline.studies.cure import BOX, CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import CureSettings
from pipeline.tables import interval
from robustness_geometry.attacks import fgsm, spsa, square
from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.attacks.spsa import margin_loss
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "cure_strong_attacks", "outcome"]

SECTION = "Section 8.5.1, Figure 8.7"


@dataclass(frozen=True)
class Settings(CureSettings):
    """What to measure.

    Attributes:
        steps: numbers of steps of PGD, two or more, in ascending order; the first is the reference,
            the last is compared with the attacks without gradients.
        restarts: number of random starts of the first PGD, of which the best counts, at least 1.
        wide: radius as a multiple of eps, > 0, at which hardly any image should be left.
        spsa: the thesis' attack without gradients.
        square: another one, which needs fewer evaluations. The eps and norm of both are those of
            the attack that judges.
        spsa_samples: number of held-out images that these two are run on, at least 3.
    """

    steps: tuple[int, ...] = (20, 40, 100)
    restarts: int = 5
    wide: float = 4.0
    spsa: Attack = field(default_factory=lambda: partial(spsa, eps=8 / 255))
    square: Attack = field(default_factory=lambda: partial(square, eps=8 / 255))
    spsa_samples: int = 1000

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **CureSettings.binds,
        "spsa": {"eps": "cure.eps", "norm": "cure.attack.norm"},
        "square": {"eps": "cure.eps", "norm": "cure.attack.norm"},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps in self.steps:
            check_count("steps", steps)
        if len(self.steps) < 2 or list(self.steps) != sorted(set(self.steps)):
            refuse("steps", self.steps, "two or more whole numbers in ascending order")
        check_count("restarts", self.restarts)
        check_positive("wide", self.wide)
        check_count("spsa_samples", self.spsa_samples, minimum=3)


def cure_strong_attacks(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracy of CURE under attacks that would find what masked gradients hide from PGD.

    They are PGD with more steps, with restarts and in a larger ball, and SPSA and Square, which use
    no gradients.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``adv_cure_<attack>`` and the differences that tell masked gradients;
        ``adv_cure_without_gradients`` is what SPSA and Square together leave. On SPSA's images
        ``pearson_spsa_pgd`` and ``share_spsa_below_pgd`` of the two attacks' losses f_y - max f_k,
        where the smaller one is the stronger.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    samples = stack(executor.each(_judged, studies))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    beside = stack(executor.each(_beside, studies))
    numbers |= measured(
        paired_bootstrap(beside, _beside_statistics(settings), resamples=settings.resamples)
    )
    first, last = settings.steps[0], settings.steps[-1]
    return Findings(
        numbers=numbers,
        tables={"attacks": _table(numbers, settings), "masking": _masking(numbers, settings)},
        figures={"figure_8_7": _figure(network, beside, last)},
        tensors={name: values.float() for name, values in beside.items()},
        notes=[
            *notes(studies),
            f"PGD and FGSM on {len(studies[0].test)} held-out images, SPSA (options "
            f"{_options(settings.spsa)}) and Square ({_options(settings.square)}) on "
            f"{beside['margin_spsa'].shape[1]} of them; their best iterate counts, of PGD the last "
            "one. That they find nothing tells something only if they break nearly as many images "
            "as PGD does.",
            f"Masked gradients would show as: FGSM beating PGD({first}), PGD({last}) or restarts "
            f"beating PGD({first}) by far, images left at {settings.wide:g} eps, or SPSA or Square "
            f"beating PGD({last}).",
        ],
    )


def outcome(
    attack: Attack, model: Classifier, images: Images, labels: Labels, **options: object
) -> dict[str, Tensor]:
    """What an attack on the true labels leaves of each image.

    Args:
        attack: the attack.
        model: the network that is judged.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        options: passed on to the attack, such as ``generator``.

    Returns:
        ``right`` (N,): whether it has its label before and after; ``margin`` (N,): f_y - max_{k !=
        y} f_k after.
    """
    given: dict[str, object] = {"labels": labels, **options}
    result = attack(model, images, **given)
    right = correct(model, images, labels) & ~recomputed_success(model, images, result)
    return {"right": right, "margin": margin_loss(model, result.adversarial(images), labels)}


def _judged(study: CureStudy[Settings]) -> dict[str, Tensor]:
    settings = study.settings
    model, first = study.tuned("cure").model, settings.steps[0]
    attacks = {f"pgd{steps}": study.pgd(steps=steps) for steps in settings.steps}
    attacks["fgsm"] = partial(fgsm, eps=study.eps, norm=study.norm, clip=BOX)
    attacks["restarts"] = study.pgd(steps=first, restarts=settings.restarts)
    attacks["wide"] = study.pgd(steps=first, eps=settings.wide * study.eps)
    return {name: study.right(model, attack) for name, attack in attacks.items()}


def _statistics(settings: Settings) -> dict[str, Statistic]:
    first = f"pgd{settings.steps[0]}"
    names = [*(f"pgd{steps}" for steps in settings.steps), "fgsm", "restarts", "wide"]
    numbers = {f"adv_cure_{name}": share(name) for name in names}
    for other in (*(f"pgd{steps}" for steps in settings.steps[1:]), "restarts"):
        numbers[f"adv_cure_{first} - adv_cure_{other}"] = difference(first, other)
    numbers[f"adv_cure_fgsm - adv_cure_{first}"] = difference("fgsm", first)
    return numbers


def _beside(study: CureStudy[Settings]) -> dict[str, Tensor]:
    """SPSA, Square and the longest PGD on the same images."""
    settings = study.settings
    model, test = study.tuned("cure").model, study.test.first(settings.spsa_samples)
    ball: dict[str, object] = {"eps": study.eps, "norm": study.norm}
    attacks: dict[str, Attack] = {
        "pgd": study.pgd(steps=settings.steps[-1]),
        "spsa": partial(settings.spsa, **ball),
    }
    if test.images.ndim == 4:  # Square's windows are parts of pictures
        attacks["square"] = partial(settings.square, **ball)
    values: dict[str, Tensor] = {}
    for name, attack in attacks.items():
        work = partial(outcome, attack, model)
        left = study.executor.cached(
            work, test.images, test.labels, randomness=takes_generator(attack)
        ).value
        values |= {
            f"right_{name}": left["right"].double(),
            f"margin_{name}": left["margin"].double(),
        }
    nothing = torch.full_like(values["right_spsa"], math.nan)
    values = {"right_square": nothing, "margin_square": nothing} | values
    found = values["right_square"].nan_to_num(nan=1.0)
    values["right_without_gradients"] = values["right_spsa"] * found
    values["below"] = (values["margin_spsa"] < values["margin_pgd"]).double()
    return values


def _beside_statistics(settings: Settings) -> dict[str, Statistic]:
    last = f"adv_cure_pgd{settings.steps[-1]}"
    return {
        "adv_cure_spsa": share("right_spsa"),
        "adv_cure_square": share("right_square"),
        "adv_cure_without_gradients": share("right_without_gradients"),
        f"adv_cure_spsa - {last}": difference("right_spsa", "right_pgd"),
        f"adv_cure_without_gradients - {last}": difference("right_without_gradients", "right_pgd"),
        "pearson_spsa_pgd": Statistic(("margin_spsa", "margin_pgd"), _pearson_over_all),
        "share_spsa_below_pgd": share("below"),
        "margin_spsa": mean("margin_spsa"),
        "margin_square": mean("margin_square"),
        "margin_pgd": mean("margin_pgd"),
    }


def _pearson_over_all(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over the last two dimensions, seeds and images together."""
    a, b = (each - each.mean(dim=(-2, -1), keepdim=True) for each in (first, second))
    sums = [(x * y).sum(dim=(-2, -1)) for x, y in ((a, b), (a, a), (b, b))]
    return sums[0] / (sums[1] * sums[2]).sqrt()


def _options(attack: Attack) -> str:
    """What an attack was given apart from eps and norm."""
    given = {
        name: value
        for name, value in getattr(attack, "keywords", {}).items()
        if name not in ("eps", "norm")
    }
    return ", ".join(f"{name} = {value}" for name, value in given.items()) or "of its own"


def _attacks(settings: Settings) -> dict[str, str]:
    """Part of the numbers' names -> name of the attack in the table."""
    first = settings.steps[0]
    titles = {"fgsm": "FGSM"} | {f"pgd{steps}": f"PGD({steps})" for steps in settings.steps}
    return titles | {
        "restarts": f"PGD({first}), {settings.restarts} restarts",
        "spsa": "SPSA",
        "square": "Square",
        "without_gradients": "SPSA or Square",
        "wide": f"PGD({first}) at {settings.wide:g} eps",
    }


def _table(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    rows = []
    for name, title in _attacks(settings).items():
        estimate = numbers.get(f"adv_cure_{name}")
        if estimate is not None:
            rows.append({"attack": title, "accuracy": estimate.value, **interval(estimate)})
    return pd.DataFrame(rows)


def _masking(numbers: Mapping[str, Estimate], settings: Settings) -> pd.DataFrame:
    """The checks of Section 8.5.1: numbers that masked gradients would push beyond a bound."""
    first, last = settings.steps[0], settings.steps[-1]
    checks = {
        f"PGD({first}) is not weaker than FGSM": (
            f"adv_cure_fgsm - adv_cure_pgd{first}",
            ">=",
            0.0,
        ),
        f"PGD({last}) finds little more": (f"adv_cure_pgd{first} - adv_cure_pgd{last}", "<=", 0.02),
        "restarts find little more": (f"adv_cure_pgd{first} - adv_cure_restarts", "<=", 0.05),
        "a large ball leaves few images": ("adv_cure_wide", "<=", 0.05),
        f"SPSA and Square find little more than PGD({last})": (
            f"adv_cure_without_gradients - adv_cure_pgd{last}",
            ">=",
            -0.02,
        ),
        f"SPSA and Square find nearly as much as PGD({last})": (
            f"adv_cure_without_gradients - adv_cure_pgd{last}",
            "<=",
            0.1,
        ),
    }
    rows: Sequence[dict[str, object]] = [
        {
            "check": text,
            "number": number,
            "value": numbers[number].value,
            "bound": f"{side} {bound:g}",
            "holds": numbers[number].value >= bound
            if side == ">="
            else numbers[number].value <= bound,
            **interval(numbers[number]),
        }
        for text, (number, side, bound) in checks.items()
        if number in numbers
    ]
    return pd.DataFrame(rows)


def _figure(network: Network, beside: Mapping[str, Tensor], steps: int) -> Figure:
    """Figure 8.7: one point per image and seed; below the line SPSA reaches the smaller loss."""
    pgd_, spsa_ = beside["margin_pgd"].flatten(), beside["margin_spsa"].flatten()
    figure, grid = axes_grid(width=5.6, height=5.2)
    axes = grid[0, 0]
    below = spsa_ < pgd_
    with styled():
        for chosen, colour, label in (
            (~below, COLOURS[0], "PGD as strong or stronger"),
            (below, COLOURS[1], "SPSA stronger"),
        ):
            if bool(chosen.any()):
                axes.plot(
                    pgd_[chosen],
                    spsa_[chosen],
                    "o",
                    markersize=3.5,
                    alpha=0.6,
                    color=colour,
                    label=label,
                )
        ends = [float(torch.cat([pgd_, spsa_]).min()), float(torch.cat([pgd_, spsa_]).max())]
        axes.plot(ends, ends, "--", color=COLOURS[5], linewidth=1.2)
        axes.set(
            xlabel=f"adversarial loss by PGD({steps}), in logits",
            ylabel="adversarial loss by SPSA, in logits",
            title=f"True minus best other logit, {network.name}",
        )
        axes.legend()
    return figure

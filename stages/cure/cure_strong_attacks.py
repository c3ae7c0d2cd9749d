"""CURE under longer PGD and under SPSA: whether gradients are masked (Section 8.5.1, Figure 8.7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from pipeline.studies.cure import BOX, Common, Study, notes, studies
from pipeline.tables import interval
from robustness_geometry.attacks import fgsm, spsa
from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.attacks.spsa import margin_loss
from robustness_geometry.checks import check_count, check_positive, refuse
from robustness_geometry.types import Attack, Classifier, Dataset, Images, Labels, Network

__all__ = ["SECTION", "Settings", "cure_strong_attacks", "outcome"]

SECTION = "Section 8.5.1, Figure 8.7"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        steps: of PGD, ascending; the first is the reference, the last is set beside SPSA.
        restarts: random starts of the first PGD, taken together.
        wide: the radius, as a multiple of eps, at which hardly an image should be left.
        spsa: the gradient-free attack; its eps and norm are the stage's.
        spsa_samples: held-out images that it gets.
    """

    steps: tuple[int, ...] = (20, 40, 100)
    restarts: int = 5
    wide: float = 4.0
    spsa: Attack = field(default_factory=lambda: partial(spsa, eps=8 / 255))
    spsa_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for steps in self.steps:
            check_count("steps", steps)
        if len(self.steps) < 2 or list(self.steps) != sorted(set(self.steps)):
            refuse("steps", self.steps, "two or more whole numbers, ascending")
        check_count("restarts", self.restarts)
        check_positive("wide", self.wide)
        check_count("spsa_samples", self.spsa_samples, minimum=3)


def cure_strong_attacks(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure whether more steps, restarts, a larger ball or no gradients at all find what PGD does not.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and attacks.

    Returns:
        ``adv_cure_<attack>`` and the differences that tell masked gradients; on SPSA's images
        ``pearson_spsa_pgd`` and ``share_spsa_below_pgd`` of the two attacks' losses f_y - max f_k,
        where the smaller one is the stronger.
    """
    settings = settings.of(network)
    found = studies(network, data, settings, executor)
    samples = stack(executor.each(lambda study: _judged(study, settings), found))
    numbers = measured(
        paired_bootstrap(samples, _statistics(settings), resamples=settings.resamples)
    )
    beside = stack(executor.each(lambda study: _beside(study, settings), found))
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
            *notes(found),
            f"PGD and FGSM on {len(found[0].test)} held-out images, SPSA on "
            f"{beside['margin_spsa'].shape[1]} of them "
            f"with the options {_options(settings.spsa)}; its best iterate "
            "counts, of PGD the last one.",
            f"Masked gradients would show as: FGSM beating PGD({first}), PGD({last}) or restarts "
            "beating "
            f"PGD({first}) by far, images left at {settings.wide:g} eps, or SPSA beating "
            f"PGD({last}).",
        ],
    )


def outcome(
    attack: Attack, model: Classifier, images: Images, labels: Labels, **options: object
) -> dict[str, Tensor]:
    """What an attack on the true labels leaves of each image.

    Returns:
        ``right`` (N,): whether it has its label before and after; ``margin`` (N,): f_y - max_{k !=
        y} f_k after.
    """
    given: dict[str, object] = {"labels": labels, **options}
    result = attack(model, images, **given)
    right = correct(model, images, labels) & ~recomputed_success(model, images, result)
    return {"right": right, "margin": margin_loss(model, result.adversarial(images), labels)}


def _judged(study: Study, settings: Settings) -> dict[str, Tensor]:
    model, first = study.tuned("cure").model, settings.steps[0]
    attacks = {f"pgd{steps}": study.pgd(steps=steps) for steps in settings.steps}
    attacks["fgsm"] = partial(fgsm, eps=study.eps, norm=study.norm, clip=BOX)
    attacks["restarts"] = study.pgd(steps=first, restarts=settings.restarts)
    attacks["wide"] = study.pgd(steps=first, eps=settings.wide * study.eps)
    return {name: study.right(model, attack) for name, attack in attacks.items()}


def _statistics(settings: Settings) -> dict[str, Statistic]:
    first = f"pgd{settings.steps[0]}"
    names = [*(f"pgd{steps}" for steps in settings.steps), "fgsm", "restarts", "wide"]
    found = {f"adv_cure_{name}": share(name) for name in names}
    for other in (*(f"pgd{steps}" for steps in settings.steps[1:]), "restarts"):
        found[f"adv_cure_{first} - adv_cure_{other}"] = difference(first, other)
    found[f"adv_cure_fgsm - adv_cure_{first}"] = difference("fgsm", first)
    return found


def _beside(study: Study, settings: Settings) -> dict[str, Tensor]:
    """SPSA and the longest PGD on the same images."""
    model, test = study.tuned("cure").model, study.test.first(settings.spsa_samples)
    own: dict[str, object] = {"eps": study.eps, "norm": study.norm}
    attacks: dict[str, Attack] = {
        "pgd": study.pgd(steps=settings.steps[-1]),
        "spsa": partial(settings.spsa, **own),
    }
    values: dict[str, Tensor] = {}
    for name, attack in attacks.items():
        work = partial(outcome, attack, model)
        found = study.executor.cached(
            work, test.images, test.labels, randomness=takes_generator(attack)
        ).value
        values |= {
            f"right_{name}": found["right"].double(),
            f"margin_{name}": found["margin"].double(),
        }
    values["below"] = (values["margin_spsa"] < values["margin_pgd"]).double()
    return values


def _beside_statistics(settings: Settings) -> dict[str, Statistic]:
    last = f"adv_cure_pgd{settings.steps[-1]}"
    return {
        "adv_cure_spsa": share("right_spsa"),
        f"adv_cure_spsa - {last}": difference("right_spsa", "right_pgd"),
        "pearson_spsa_pgd": Statistic(("margin_spsa", "margin_pgd"), _pearson),
        "share_spsa_below_pgd": share("below"),
        "margin_spsa": mean("margin_spsa"),
        "margin_pgd": mean("margin_pgd"),
    }


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """The correlation over the last two dimensions, seeds and images together."""
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
    """Name of the number -> what the table calls the attack."""
    first = settings.steps[0]
    found = {"fgsm": "FGSM"} | {f"pgd{steps}": f"PGD({steps})" for steps in settings.steps}
    return found | {
        "restarts": f"PGD({first}), {settings.restarts} restarts",
        "spsa": "SPSA",
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
    """The checks of Section 8.5.1, each a number that masked gradients would push beyond its bound."""
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
        f"SPSA finds little more than PGD({last})": (
            f"adv_cure_spsa - adv_cure_pgd{last}",
            ">=",
            -0.02,
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
    """Figure 8.7: one point an image and seed; below the line SPSA found the smaller loss."""
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

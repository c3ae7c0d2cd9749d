"""Table 8.2: clean and robust accuracy of CURE beside normal and PGD training.

Also its dependence on h and lambda (Section 8.5).

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
    F. Croce, M. Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", arXiv:2003.01690, 2020 (AutoAttack).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.statistics import share
from pipeline.studies.accuracy import accuracies, by_autoattack, by_square, figure, table
from pipeline.studies.cure import CureStudy, cure_studies, notes
from pipeline.studies.cure_settings import TableSettings
from pipeline.tables import interval
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.training import Cure
from robustness_geometry.types import Classifier, Dataset, Network

__all__ = ["SECTION", "Settings", "cure_cifar10"]

SECTION = "Section 8.5, Table 8.2"


@dataclass(frozen=True)
class Settings(TableSettings):
    """What to measure.

    Attributes:
        autoattack_samples: number of held-out images that AutoAttack is run on, at least 1.
        autoattack_seeds: number of training seeds that AutoAttack is run on; 0: AutoAttack is not
            run.
        square_queries: number of queries of Square, at least 1, which is run on all images.
        sweep: pairs (h, lambda) in pixel units that the first seed is also trained with, and judged
            on the validation images, h > 0 and lambda >= 0.
    """

    autoattack_samples: int = 1000
    autoattack_seeds: int = 1
    square_queries: int = 5000
    sweep: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("autoattack_samples", self.autoattack_samples)
        check_count("square_queries", self.square_queries)
        check_count("autoattack_seeds", self.autoattack_seeds, minimum=0)
        for h, weight in self.sweep:
            check_positive("sweep.h", h)
            check_positive("sweep.lambda", weight, zero=True)


def cure_cifar10(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracies on clean images and under the attack that judges, AutoAttack and Square.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``clean_*``, ``adv_*``, ``far_*`` (in the larger ball), ``aa_*`` and ``square_*`` of the
        networks ``original``, ``cure`` and ``advtrain``, and their differences.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    numbers = accuracies(studies, lambda study, eps: study.judge(eps=eps), settings.resamples)
    numbers |= by_square(studies, settings.square_queries, settings.resamples)
    few = studies[: settings.autoattack_seeds]
    numbers |= by_autoattack(few, settings.autoattack_samples, settings.resamples)
    tables = {"table_8_2": table(numbers), "training": _curves(studies)}
    if settings.sweep:
        tables["sweep"] = _sweep(studies[0])
    attack = attack_name(settings.attack).upper()
    return Findings(
        numbers=numbers,
        tables=tables,
        figures={
            "table_8_2": figure(numbers, f"{attack} at eps = {studies[0].eps:.3g}, {network.name}")
        },
        notes=[*notes(studies), *_notes(studies, attack)],
    )


def _curves(studies: Sequence[CureStudy[Settings]]) -> pd.DataFrame:
    """CURE's two terms after each epoch, the mean over the seeds."""
    curves = [study.tuned("cure").history for study in studies]
    means = {
        name: [
            sum(values) / len(values) for values in zip(*(one[name] for one in curves), strict=True)
        ]
        for name in curves[0]
    }
    weight = studies[0].settings.cure(studies[0].std).weight
    frame = pd.DataFrame({"epoch": range(1, len(means["penalty"]) + 1), **means})
    return frame.assign(penalty_share=weight * frame["penalty"] / frame["train_loss"])


def _sweep(study: CureStudy[Settings]) -> pd.DataFrame:
    """The first seed with other values of h and lambda, and with the chosen ones.

    They are judged on the validation images, as none of the reported ones may choose an option.
    """
    settings = study.settings
    own, recipe = settings.cure(study.std), settings.training
    pairs = list(dict.fromkeys([*map(tuple, settings.sweep), (own.h, own.weight)]))

    def tuned(pair: tuple[float, ...]) -> Classifier:
        h, weight = pair
        if pair == (own.h, own.weight):
            return study.tuned("cure").model
        return study.trained(Cure(weight, h, own.ramp), recipe, f"CURE, h={h:g}, {weight:g}").model

    rows = []
    for (h, weight), model in zip(pairs, study.executor.each(tuned, pairs), strict=True):
        chosen = (h, weight) == (own.h, own.weight)
        samples = {
            "clean": study.right(model, data=study.tried),
            "adv": study.right(model, study.judge(), study.tried),
        }
        numbers = paired_bootstrap(
            samples, {name: share(name) for name in samples}, resamples=settings.resamples
        )
        row = {
            "h": h,
            "lambda": weight,
            "clean": numbers["clean"].value,
            "adv": numbers["adv"].value,
        }
        rows.append({**row, **interval(numbers["adv"]), "chosen": chosen})
    return pd.DataFrame(rows)


def _notes(studies: Sequence[CureStudy[Settings]], attack: str) -> list[str]:
    settings = studies[0].settings
    first = studies[0]
    lines = [
        f"Accuracies on {len(first.test)} held-out images, under {attack} on the true labels; the "
        f"larger ball has the radius {settings.far:g} eps.",
        "PGD training is fine-tuned like CURE, by the same recipe, instead of starting from "
        "scratch; the thesis quotes figures from elsewhere.",
        f"Square, which uses no gradients, with {settings.square_queries} queries.",
    ]
    if settings.autoattack_seeds:
        lines.append(
            "AutoAttack's standard ensemble on "
            f"{min(settings.autoattack_samples, len(first.test))} images of "
            f"{min(settings.autoattack_seeds, len(studies))} training seed(s)."
        )
    if settings.sweep:
        lines.append(
            "The sweep over h and lambda is that of the first training seed, in pixel units, on "
            "the validation images."
        )
    return lines

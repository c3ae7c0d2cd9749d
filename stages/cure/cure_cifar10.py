"""Clean and robust accuracy of CURE beside normal and PGD training (Table 8.2), and its dependence on h and lambda."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipeline.bootstrap import paired_bootstrap
from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.statistics import share
from pipeline.studies.accuracy import accuracies, by_autoattack, figure, table
from pipeline.studies.cure import Common, Study, notes, studies
from pipeline.tables import interval
from robustness_geometry.attacks.protocol import attack_name
from robustness_geometry.checks import check_count, check_positive
from robustness_geometry.training import Cure
from robustness_geometry.types import Classifier, Dataset, Network

__all__ = ["SECTION", "Settings", "cure_cifar10"]

SECTION = "Section 8.5, Table 8.2"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        autoattack_samples: held-out images that AutoAttack gets.
        autoattack_seeds: training seeds that it gets; 0 leaves it out.
        sweep: pairs (h, lambda) in pixel units that the first seed is also trained with.
    """

    autoattack_samples: int = 1000
    autoattack_seeds: int = 1
    sweep: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("autoattack_samples", self.autoattack_samples)
        check_count("autoattack_seeds", self.autoattack_seeds, minimum=0)
        for h, weight in self.sweep:
            check_positive("sweep.h", h)
            check_positive("sweep.lambda", weight, zero=True)


def cure_cifar10(
    network: Network, data: Dataset, settings: Settings, executor: Executor
) -> Findings:
    """Measure accuracies on clean images, under the attack that judges, and under AutoAttack.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and attacks.

    Returns:
        ``clean_*``, ``adv_*`` and ``aa_*`` of the networks ``original``, ``cure`` and ``advtrain``,
        and their differences.
    """
    settings = settings.of(network)
    found = studies(network, data, settings, executor)
    numbers = accuracies(found, Study.judge, settings.resamples)
    few = found[: settings.autoattack_seeds]
    numbers |= by_autoattack(few, settings.autoattack_samples, settings.resamples)
    tables = {"table_8_2": table(numbers), "training": _curves(found)}
    if settings.sweep:
        tables["sweep"] = _sweep(found[0], settings)
    attack = attack_name(settings.attack).upper()
    return Findings(
        numbers=numbers,
        tables=tables,
        figures={
            "table_8_2": figure(numbers, f"{attack} at eps = {found[0].eps:.3g}, {network.name}")
        },
        notes=[*notes(found), *_notes(found, settings, attack)],
    )


def _curves(found: Sequence[Study]) -> pd.DataFrame:
    """CURE's two terms after each epoch, the mean over the seeds."""
    curves = [study.tuned("cure").history for study in found]
    means = {
        name: [
            sum(values) / len(values) for values in zip(*(one[name] for one in curves), strict=True)
        ]
        for name in curves[0]
    }
    weight = found[0].settings.cure(found[0].std).weight
    frame = pd.DataFrame({"epoch": range(1, len(means["penalty"]) + 1), **means})
    return frame.assign(penalty_share=weight * frame["penalty"] / frame["train_loss"])


def _sweep(study: Study, settings: Settings) -> pd.DataFrame:
    """The first seed with other values of h and lambda, and with the chosen ones."""
    own, recipe = study.settings.cure(study.std), study.settings.training
    pairs = list(dict.fromkeys([*map(tuple, settings.sweep), (own.h, own.weight)]))

    def tuned(pair: tuple[float, ...]) -> Classifier:
        h, weight = pair
        if pair == (own.h, own.weight):
            return study.tuned("cure").model
        return study.trained(Cure(weight, h, own.ramp), recipe, f"CURE, h={h:g}, {weight:g}").model

    rows = []
    for (h, weight), model in zip(pairs, study.executor.each(tuned, pairs), strict=True):
        chosen = (h, weight) == (own.h, own.weight)
        samples = {"clean": study.right(model), "adv": study.right(model, study.judge())}
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


def _notes(found: Sequence[Study], settings: Settings, attack: str) -> list[str]:
    lines = [
        f"Accuracies on {len(found[0].test)} held-out images, under {attack} on the true labels.",
        "PGD training is fine-tuned like CURE, by the same recipe, instead of starting from "
        "scratch; the thesis quotes "
        "figures from elsewhere.",
    ]
    if settings.autoattack_seeds:
        lines.append(
            "AutoAttack's standard ensemble on "
            f"{min(settings.autoattack_samples, len(found[0].test))} images of "
            f"{min(settings.autoattack_seeds, len(found))} training seed(s)."
        )
    if settings.sweep:
        lines.append(
            "The sweep over h and lambda is that of the first training seed, in pixel units."
        )
    return lines

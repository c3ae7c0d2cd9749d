"""Clean accuracy and accuracy under PGD(10) of CURE beside normal and PGD training (Table 8.3)."""

from dataclasses import dataclass

from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.studies.accuracy import accuracies, figure, table
from pipeline.studies.cure import Common, notes, studies
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "cure_svhn"]

SECTION = "Section 8.5, Table 8.3"


@dataclass(frozen=True)
class Settings(Common):
    """What to measure.

    Attributes:
        steps: of the PGD that judges.
    """

    eps: float | str | None = "12/255"
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)


def cure_svhn(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Measure accuracies on clean images and under PGD with few steps; on SVHN the thesis takes eps = 12/255.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: what to measure.
        executor: runs trainings and attacks.

    Returns:
        ``clean_*`` and ``adv_*`` of the networks ``original``, ``cure`` and ``advtrain``, and their
        differences.
    """
    settings = settings.of(network)
    found = studies(network, data, settings, executor)
    numbers = accuracies(found, lambda study: study.pgd(steps=settings.steps), settings.resamples)
    return Findings(
        numbers=numbers,
        tables={"table_8_3": table(numbers)},
        figures={
            "table_8_3": figure(
                numbers, f"PGD({settings.steps}) at eps = {found[0].eps:.3g}, {network.name}"
            )
        },
        notes=[
            *notes(found),
            f"Accuracies on {len(found[0].test)} held-out images, under PGD({settings.steps}) on "
            "the true labels.",
            "PGD training is fine-tuned like CURE; the thesis quotes it from elsewhere.",
        ],
    )

"""Table 8.3: clean accuracy and accuracy under PGD(10) of CURE, normal and PGD training.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Section 8.5.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
    A. Madry, A. Makelov, L. Schmidt, D. Tsipras, A. Vladu, "Towards deep learning models resistant
    to adversarial attacks", arXiv:1706.06083, 2018 (PGD).
"""

from dataclasses import dataclass

from pipeline.executor import Executor
from pipeline.findings import Findings
from pipeline.studies.accuracy import accuracies, figure, table
from pipeline.studies.cure import cure_studies, notes
from pipeline.studies.cure_settings import TableSettings
from robustness_geometry.checks import check_count
from robustness_geometry.types import Dataset, Network

__all__ = ["SECTION", "Settings", "cure_svhn"]

SECTION = "Section 8.5, Table 8.3"


@dataclass(frozen=True)
class Settings(TableSettings):
    """What to measure.

    Attributes:
        steps: number of steps of the PGD that judges, at least 1.
    """

    eps: float | str | None = "12/255"
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)


def cure_svhn(network: Network, data: Dataset, settings: Settings, executor: Executor) -> Findings:
    """Measure accuracies on clean images and under PGD with few steps.

    On SVHN the thesis takes eps = 12/255.

    Args:
        network: the trained classifiers.
        data: the data set that they were trained on.
        settings: the settings.
        executor: runs trainings and attacks.

    Returns:
        ``clean_*``, ``adv_*`` and ``far_*`` (in the larger ball) of the networks ``original``,
        ``cure`` and ``advtrain``, and their differences.
    """
    studies = cure_studies(network, data, settings, executor)
    settings = studies[0].settings
    numbers = accuracies(
        studies,
        lambda study, eps: study.pgd(steps=settings.steps, eps=eps),
        settings.resamples,
    )
    return Findings(
        numbers=numbers,
        tables={"table_8_3": table(numbers)},
        figures={
            "table_8_3": figure(
                numbers, f"PGD({settings.steps}) at eps = {studies[0].eps:.3g}, {network.name}"
            )
        },
        notes=[
            *notes(studies),
            f"Accuracies on {len(studies[0].test)} held-out images, under PGD({settings.steps}) on "
            f"the true labels; the larger ball has the radius {settings.far:g} eps.",
            "PGD training is fine-tuned like CURE; the thesis quotes it from elsewhere.",
        ],
    )

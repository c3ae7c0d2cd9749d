"""Settings of the experiments on flat and curved boundaries, in parts that they compose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from pipeline.studies.universal_settings import Checked, Maker
from robustness_geometry.attacks import deepfool
from robustness_geometry.attacks.universal import universal_perturbation
from robustness_geometry.checks import check_choice, check_count, check_positive, refuse
from robustness_geometry.geometry.normals import OUTPUTS
from robustness_geometry.types import Attack

__all__ = [
    "CurvatureSettings",
    "Curvatures",
    "Fooling",
    "Leading",
    "MeanHessian",
    "RandomVectors",
    "SharedDirections",
    "TrainPoints",
    "UniversalSet",
    "UniversalVectors",
    "UnseenPoints",
    "check_dimensions",
    "check_products",
    "dimension_of",
]

THESIS_D = 3072
"""The dimension of the images that the thesis' counts of directions are for."""


@dataclass(frozen=True)
class CurvatureSettings(Checked):
    """What every experiment on a trained network needs.

    Attributes:
        boundary_attack: the DeepFool whose perturbations are taken for the normals and followed to
            where they cross the boundary; another attack is replaced by the default DeepFool.
        resamples: number of resamples of the bootstrap.
    """

    boundary_attack: Attack = field(default_factory=lambda: partial(deepfool))
    resamples: int = 2000

    binds: ClassVar[Mapping[str, Mapping[str, str]]] = {"boundary_attack": {"norm": "", "clip": ""}}
    """Attack -> its options that the experiments set themselves, whatever is given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("resamples", self.resamples)


@dataclass(frozen=True)
class TrainPoints(CurvatureSettings):
    """Boundary points near training images.

    Attributes:
        train_samples: number of training images, at least 2, whose boundary points make S_c, S_f
            and the u_i; where a data set has none, held-out images that judge nothing make them.
    """

    train_samples: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("train_samples", self.train_samples, minimum=2)


@dataclass(frozen=True)
class UnseenPoints(CurvatureSettings):
    """Boundary points near held-out images.

    Attributes:
        samples: number of held-out images, at least 2, at whose boundary points the network is
            measured.
    """

    samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples, minimum=2)


@dataclass(frozen=True)
class Curvatures(UnseenPoints):
    """How curvature is measured, and over which lengths in the table over h.

    Attributes:
        h: length over which curvature is measured, in pixel l2 units, above 0; None: 0.0195
            sqrt(d).
        output: ``logits`` or ``softmax``; the names of all numbers carry the latter.
        sweep: multiples of h, each above 0, for the table of signs of curvature over h, which is of
            one training seed.
        sweep_samples: number of images, at least 2, of that table.
    """

    h: float | None = None
    output: str = "logits"
    sweep: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    sweep_samples: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("sweep_samples", self.sweep_samples, minimum=2)
        if self.h is not None:
            check_positive("h", self.h)
        check_choice("output", self.output, OUTPUTS)
        for factor in self.sweep:
            check_positive("sweep", factor)


@dataclass(frozen=True)
class MeanHessian(Curvatures, TrainPoints):
    """How S_c is found, from the average Hessian at boundary points of training images.

    Attributes:
        products: number of products with the average Hessian by which S_c is found, at least twice
            its dimension (or d).
    """

    products: int = 1200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("products", self.products, minimum=2)


@dataclass(frozen=True)
class Leading(Curvatures):
    """How many principal directions are found of each Hessian.

    Attributes:
        leading: number of principal directions that are found of each image's Hessian, by three
            times as many products with it.
    """

    leading: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leading", self.leading)


@dataclass(frozen=True)
class SharedDirections(Leading, TrainPoints):
    """How the shared directions u_i are made: of the leading ones of every training image."""


@dataclass(frozen=True)
class Fooling(CurvatureSettings):
    """How fooling is judged, and Algorithm 4 to compare with.

    Attributes:
        universal: Algorithm 4; with the options of the stage ``universal`` its vectors are shared.
        fool_samples: number of held-out images on which fooling is judged (all if there are fewer).
    """

    universal: Maker = field(default_factory=lambda: partial(universal_perturbation))
    fool_samples: int = 50_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("fool_samples", self.fool_samples)


@dataclass(frozen=True)
class UniversalSet(Fooling):
    """The images that Algorithm 4 and the norm that random noise needs are based on.

    Attributes:
        universal_samples: number of training images in X, at least 2 (all if there are fewer).
    """

    universal_samples: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("universal_samples", self.universal_samples, minimum=2)


@dataclass(frozen=True)
class UniversalVectors(UniversalSet):
    """The universal vectors of the stage ``universal``.

    Attributes:
        universal_orders: number of shufflings of X that vectors are made for together, at least 1;
            the first one's vector is used.
    """

    universal_orders: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("universal_orders", self.universal_orders)


@dataclass(frozen=True)
class RandomVectors(CurvatureSettings):
    """Random vectors that images are perturbed with.

    Attributes:
        vectors: number of random vectors of each subspace, whose fooling is averaged.
    """

    vectors: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("vectors", self.vectors)


def dimension_of(count: int, d: int) -> int:
    """The thesis' number of directions for d = 3,072, in proportion where d is smaller."""
    return max(1, round(count * min(1.0, d / THESIS_D)))


def check_products(products: int, count: int, d: int) -> None:
    """Check that ``products`` with the average Hessian give S_c of ``count`` dimensions in d.

    It takes 2 ``count`` products, or d of them, which leave nothing out.

    Raises:
        InputError: they do not.
    """
    made = min(products, d)
    if count > d or (2 * count > made and made < d):
        refuse(
            "products", made, f"at least twice the dimension {count} of the subspace, in d = {d}"
        )


def check_dimensions(dimensions: Sequence[int], small: int) -> None:
    """Check that ``dimensions`` are two or more ascending counts, ``small`` among them.

    Raises:
        InputError: they are not.
    """
    for m in dimensions:
        check_count("dimensions", m)
    if len(dimensions) < 2 or list(dimensions) != sorted(set(dimensions)):
        refuse("dimensions", dimensions, "two or more ascending numbers")
    if small not in dimensions:
        refuse("small", small, f"one of dimensions = {dimensions}")

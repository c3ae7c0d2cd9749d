"""Chapter 8: the fine-tuned networks, the radius eps that they are judged at, and the judging.

References:
    S.-M. Moosavi-Dezfooli, "Geometry of adversarial robustness of deep networks - methods and
    applications", EPFL 2019, Chapter 8.
    S.-M. Moosavi-Dezfooli, A. Fawzi, J. Uesato, P. Frossard, "Robustness via curvature
    regularization, and vice versa", arXiv:1811.09716, 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

from pipeline.evaluation import correct, held_out, recomputed_success
from pipeline.executor import Executor
from pipeline.studies.cure_settings import AdversarySettings, CureSettings
from pipeline.studies.subject import Subject
from pipeline.studies.training import training, with_weights
from robustness_geometry.attacks import deepfool, fgsm, pgd
from robustness_geometry.attacks.protocol import takes_generator
from robustness_geometry.checks import Described, number, refuse
from robustness_geometry.datasets.sampling import stratified_order
from robustness_geometry.training import Adversarial, CrossEntropy, Recipe, warm_up
from robustness_geometry.types import (
    Attack,
    Classifier,
    Dataset,
    Images,
    Labels,
    Mask,
    Network,
    Split,
)

__all__ = [
    "BOX",
    "TITLES",
    "CureStudy",
    "Tuned",
    "cure_studies",
    "notes",
    "train_side_by_side",
    "withstood",
]

TITLES = {
    "original": "normal training",
    "cure": "CURE",
    "cure_gradient": "CURE, z along the gradient",
    "advtrain": "PGD training",
    "fgsm": "FGSM training",
    "deepfool": "fine-tuned on DeepFool examples",
}
"""Name of a network -> its name in tables and figures."""

BOX = (0.0, 1.0)
"""The range of pixels, to which FGSM's examples are clipped."""

CHANCE = 0.05
"""How far above chance the accuracy of a trained network must lie."""

PRUNE = 2
"""``prune`` of the DeepFool whose examples are trained on: the same perturbations for less work."""

Own = TypeVar("Own", bound=CureSettings)
OwnCo = TypeVar("OwnCo", bound=CureSettings, covariant=True)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network.

    Attributes:
        model: the network after the last epoch.
        history: name of a curve of the training -> one value per epoch.
        epochs: the network after each epoch; empty where they were not kept.
    """

    model: Classifier
    history: Mapping[str, list[float]]
    epochs: tuple[Classifier, ...] = ()


@dataclass(frozen=True)
class CureStudy(Subject, Generic[OwnCo]):
    """One training seed, with the images that networks are fine-tuned on and judged on.

    ``model`` is the network before any fine-tuning, ``train`` the training images, ``test`` the
    held-out ones. The executor's scope is the training seed and no single experiment, so that what
    several experiments ask for is computed once.

    Attributes:
        settings: the settings of the experiment.
        tried: the validation images, on which eps and other options are chosen: training images
            that are not in ``train``.
        std: standard deviation of the data's pixels, the mean over the channels.
        eps: radius of attacks and of adversarial training, in pixel units.
        keeps_epochs: whether the network after each epoch of CURE is kept, as for the first seed.
    """

    settings: OwnCo
    tried: Split
    std: float
    eps: float
    keeps_epochs: bool

    def judge(self, **options: object) -> Attack:
        """The attack that judges, at this study's eps; ``options`` go on top."""
        return partial(self.settings.attack, **{"eps": self.eps, **options})

    @property
    def norm(self) -> float:
        """The norm of the attack that judges."""
        return self.settings.norm

    def pgd(self, **options: Any) -> Attack:
        """PGD at this study's eps, in the norm of the attack that judges."""
        return partial(pgd, **{"eps": self.eps, "norm": self.norm, **options})

    def objective(self, name: str) -> CrossEntropy:
        """What the fine-tuning ``name``, one of TITLES, minimises."""
        match name:
            case "cure":
                return self.settings.cure(self.std)
            case "cure_gradient":
                return self.settings.cure(self.std, "gradient")
            case "advtrain":
                return Adversarial(self.pgd(steps=_adversary_steps(self.settings)))
            case "fgsm":
                return Adversarial(partial(fgsm, eps=self.eps, norm=self.norm, clip=BOX))
            case _:
                return Adversarial(partial(deepfool, prune=PRUNE), every="epoch", true_labels=False)

    def tuned(self, name: str) -> Tuned:
        """The network fine-tuned in the way ``name``, one of TITLES.

        It is trained once for all experiments; after a crash the training is resumed.
        """
        if name == "original":
            return Tuned(self.model, {})
        epochs = (
            self.settings.finetune_epochs if name == "deepfool" else self.settings.training.epochs
        )
        recipe = replace(self.settings.training, epochs=epochs)
        return self.trained(
            self.objective(name), recipe, TITLES[name], keep=self.keeps_epochs and name == "cure"
        )

    def trained(
        self, objective: CrossEntropy, recipe: Recipe, label: str, *, keep: bool = False
    ) -> Tuned:
        """The original network after further training.

        Args:
            objective: what is minimised.
            recipe: how to train.
            label: name of the training in progress bars.
            keep: whether the network after each epoch is kept, too.
        """
        folder = str(self.executor.work / "checkpoints")
        start = (self.model, self.train, recipe, self.seed, folder)
        work = partial(training, *start, objective=objective, keep_states=keep)
        named = f"{label}: {recipe.epochs} epochs on {len(self.train)} images, seed {self.seed}"
        result = self.executor.shared_task(work, name=named).value
        history = {name: values.tolist() for name, values in result["history"].items()}
        states = [result["states"][str(epoch)] for epoch in range(1, len(result["states"]) + 1)]
        return Tuned(
            with_weights(self.model, result["weights"]),
            history,
            tuple(with_weights(self.model, state) for state in states),
        )

    def right(
        self, model: Classifier, attack: Attack | None = None, data: Split | None = None
    ) -> Tensor:
        """Whether each image has its true label, before and after an attack.

        Args:
            model: the network that is judged.
            attack: the attack; None: no attack.
            data: the images (n, C, H, W) and their labels; None: the held-out ones.

        Returns:
            (n,) 1 where the label is right, else 0.
        """
        test = data or self.test
        work = partial(correct, model) if attack is None else partial(withstood, attack, model)
        random = attack is not None and takes_generator(attack)
        return self.executor.cached(
            work, test.images, test.labels, randomness=random
        ).value.double()


def _adversary_steps(settings: CureSettings) -> int:
    """The steps of the PGD that is trained on."""
    if not isinstance(settings, AdversarySettings):
        raise TypeError("an experiment that trains on PGD's examples takes AdversarySettings")
    return settings.adversary_steps


def withstood(
    attack: Attack, model: Classifier, images: Images, labels: Labels, **options: object
) -> Mask:
    """Whether each image has its true label, and still has it after ``attack`` on that label.

    Success is recomputed from the returned tensors; a perturbation that is not finite has not
    fooled.

    Args:
        attack: the attack that judges.
        model: the network that is judged.
        images: (N, C, H, W).
        labels: (N,) the true labels.
        options: passed on to the attack, such as ``generator``.

    Returns:
        (N,).
    """
    given: dict[str, object] = {"labels": labels, **options}
    result = attack(model, images, **given)
    return correct(model, images, labels) & ~recomputed_success(model, images, result)


def cure_studies(
    network: Network, data: Dataset, settings: Own, executor: Executor
) -> list[CureStudy[Own]]:
    """One study for each training seed.

    Raises:
        InputError: the network is not trained.
    """
    train, tried = _training_parts(data.train, settings)
    test = held_out(data, settings.samples)
    std = sum(data.std) / len(data.std)
    eps = 0.0 if settings.eps is None else number("eps", settings.eps)
    first = min(network.models)
    studies = [
        CureStudy(
            model,
            seed,
            train,
            test,
            executor.for_seed(seed),
            settings,
            tried,
            std,
            eps,
            keeps_epochs=seed == first,
        )
        for seed, model in sorted(network.models.items())[: settings.training_seeds]
    ]
    warm_up()
    for study in studies:
        _check_trained(study, network.name, len(data.classes))
    if settings.eps is None:
        eps = _halfway_eps(studies[0])
        studies = [replace(study, eps=eps) for study in studies]
    return studies


def _check_trained(study: CureStudy[CureSettings], name: str, classes: int) -> None:
    """Check that the original network labels the images better than chance."""
    share = float(study.right(study.model, data=study.tried).mean())
    if share <= 1 / classes + CHANCE:
        refuse(
            "network",
            Described(f"{name} with an accuracy of {share:.3f}"),
            "a trained network to fine-tune",
        )


def _training_parts(data: Split, settings: CureSettings) -> tuple[Split, Split]:
    """The images to fine-tune on, and the validation images: a prefix of one order, and its end."""
    order = stratified_order(data.labels, "fine-tuning")
    kept = max(1, min(settings.eps_samples, len(order) // 5))
    rest = len(order) - kept
    count = rest if settings.train_samples is None else min(settings.train_samples, rest)
    parts = order[:count], order[rest:]
    train, tried = (Split(data.images[rows], data.labels[rows]) for rows in parts)
    return train, tried


def _halfway_eps(study: CureStudy[CureSettings]) -> float:
    """Where the original network's accuracy under attack has fallen to a share of the clean one.

    Between two radii of the grid the curve is taken to be straight; two digits are kept.
    """
    settings = study.settings
    accuracy = float(study.right(study.model, data=study.tried).mean())
    wanted, before = settings.eps_share * accuracy, 0.0
    for eps in settings.eps_grid:
        left = _left(study, eps)
        if left <= wanted:
            part = (accuracy - wanted) / (accuracy - left)
            return float(f"{before + part * (eps - before):.2g}")
        accuracy, before = left, eps
    return settings.eps_grid[-1]


def _left(study: CureStudy[CureSettings], eps: float) -> float:
    """The share of images that the attack leaves the original network at ``eps``."""
    return float(study.right(study.model, study.judge(eps=eps), study.tried).mean())


def train_side_by_side(studies: Sequence[CureStudy[CureSettings]], names: Sequence[str]) -> None:
    """Train the networks ``names`` of every seed, in several processes at once.

    The results are in the executor's work folder, where ``CureStudy.tuned`` finds them afterwards.
    """
    pairs = [(study, name) for name in names for study in studies]
    studies[0].executor.each(lambda pair: pair[0].tuned(pair[1]), pairs)


def notes(studies: Sequence[CureStudy[CureSettings]]) -> list[str]:
    """What was trained and how it is judged."""
    first = studies[0]
    settings, cure, recipe = first.settings, first.settings.cure(first.std), first.settings.training
    printed = (
        f" (h = {settings.h:g}, lambda = {settings.weight:g} in units of the pixels' deviation "
        f"{first.std:.3g})"
    )
    return [
        f"Every fine-tuning starts from the trained network and takes {recipe.epochs} epochs "
        f"({settings.finetune_epochs} on DeepFool's examples) on {len(first.train)} training "
        f"images: {recipe.optimiser}, {recipe.learning_rate:g} to {recipe.final_rate:g} "
        f"({recipe.schedule}), batches of {recipe.batch_size}; {len(studies)} training seed(s).",
        f"eps and the sweep over h and lambda are judged on {len(first.tried)} validation images: "
        "training images that no network is fine-tuned on, and none of the reported ones. The "
        "original network was trained on them.",
        f"CURE: lambda = {cure.weight:.4g}, h = {cure.h:.4g} in pixel l2 after {cure.ramp} "
        f"epochs{'' if settings.unit == 'pixel' else printed}.",
        f"eps = {first.eps:.4g} in pixel units of [0, "
        f"1]{_searched(first) if settings.eps is None else ''}. An image that is wrong before an "
        "attack counts as wrong after it.",
    ]


def _searched(study: CureStudy[CureSettings]) -> str:
    """How eps was found."""
    settings, left = study.settings, _left(study, study.eps)
    wanted = (
        f"at which the attack leaves the first seed's original network {settings.eps_share:.0%} of "
        "the validation images that it labels right"
    )
    found = f"({left:.1%} of all of them)"
    if study.eps == settings.eps_grid[-1]:
        return f", the largest radius that was tried: there is none {wanted} {found}"
    return f", {wanted} {found}"

"""The network that a stage runs on: its data, its model, and the origin of its weights."""

import inspect
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor, nn

from pipeline.executor import Executor
from pipeline.ledger import digest, written_before
from pipeline.studies.training import trained
from robustness_geometry.checks import (
    InputError,
    check_images,
    check_training_images,
    refuse,
)
from robustness_geometry.classifiers import check_classifier
from robustness_geometry.models import (
    architectures,
    build,
    load_weights,
    read_metadata,
    save_weights,
)
from robustness_geometry.training import Recipe, warm_up
from robustness_geometry.types import Dataset, Network
from stages.config import OPEN, Config, NetworkConfig, check_network, factory, ready, recipe
from stages.experiments import Experiment

__all__ = ["ALL", "Candidate", "candidate", "candidates"]

ALL = "all"
"""The name that results and runs give to several networks together."""

ROOT = Path(__file__).resolve().parent.parent
LOCATION = ("root", "download")
"""Options of a data set that say where it lies, not what it holds."""


@dataclass(frozen=True)
class Candidate:
    """A network before its weights are there.

    Attributes:
        name: what results and runs call it.
        spec: its data set, model and training as configured.
        data: the loaded data.
        factory: makes the untrained (or pretrained) model for given channels, size and classes.
        recipe: how to train it; None for a model that brings its weights.
    """

    name: str
    spec: NetworkConfig
    data: Dataset
    factory: Callable[..., nn.Module]
    recipe: Recipe | None

    def probe(self, experiments: list[Experiment], *, described: bool = False) -> list[str]:
        """Check, before any work, that model, data and attacks fit together.

        Args:
            experiments: the experiments to run.
            described: the command line describes the network, which belongs to no suite, so that
                at least one experiment has to measure something on it.

        Returns:
            Notes on what limits measurements on a network that is none of this project's.

        Raises:
            InputError: the model cannot take the images, numbers measured on it would mean
                nothing, an attack's option is wrong, or nothing can be measured on these data.
        """
        check_images(self.data.test.images, key="dataset.images")
        if len(self.data.test) == 0:
            refuse(
                "dataset",
                f"{self.data.name} without test images",
                "a data set with at least one test image",
            )
        if self.recipe is not None:
            instead = ", or a model with a checkpoint or weights"
            check_training_images(self.data.name, len(self.data.train), instead=instead)
            if self.recipe.augmentation != "none" and not self.data.has_pictures:
                shown = self.recipe.augmentation
                refuse("training.augmentation", shown, "none for inputs that are no pictures")
        model = build(self.factory, self.data, 0)
        notes = self._checked(model, trained=self.recipe is None)
        if described and all(experiment.lacks(self.data) for experiment in experiments):
            check_training_images(self.data.name, len(self.data.train))
        for experiment in experiments:
            experiment.check(self.name, self.data)
            for key, attack in experiment.attacks().items():
                self._try(key, attack, model)
        return notes

    def _checked(self, model: nn.Module, *, trained: bool) -> list[str]:
        """Check that measurements on the model mean something, and note what limits them."""
        package, _, name = str(self.spec.model.get("_target_")).rpartition(".")
        own = package == "robustness_geometry.models" and name in architectures()
        if own and trained and self.recipe is not None:
            return []
        report = check_classifier(
            model,
            self.data.test.images[:2].to(_like(model)),
            classes=self.data.classes,
            trained=trained,
        )
        return [] if own else list(report.notes)

    def _try(self, key: str, attack: "partial[Any]", model: nn.Module) -> None:
        """Call an attack without images, so that it checks its options."""
        known = inspect.signature(attack).parameters
        left = {name: 1 for name in OPEN if name in known and attack.keywords.get(name) is None}
        try:
            attack(model, self.data.test.images[:0], **left)
        except InputError as error:
            # An attack on a whole set of images refuses an empty set, after its options.
            if error.key != "images":
                raise InputError(f"{key}.{error}", f"{key}.{error.key}") from error

    def network(self, stage: str, config: Config, executor: Executor) -> Network:
        """The network with its weights.

        They are its own, those of the suite's train stage, or newly trained ones.
        """
        if self.recipe is None:
            models = {config.seeds[0]: build(self.factory, self.data, config.seeds[0])}
            return Network(
                self.name,
                self.data.name,
                {s: executor.to_device(m, self.data.test.images) for s, m in models.items()},
            )
        stored = {
            seed: None if stage == "train" else self._stored(seed, config.suite.name)
            for seed in config.seeds
        }
        absent = [seed for seed, model in stored.items() if model is None]
        if absent:
            warm_up()
        train = partial(trained, self.factory, self.data, self.recipe, executor=executor)
        made = dict(zip(absent, executor.each(train, absent), strict=True))
        models = {
            seed: executor.to_device(model or made[seed][0], self.data.test.images)
            for seed, model in stored.items()
        }
        if stage != "train":
            for model in models.values():
                self._checked(model, trained=True)
        history = {seed: curves for seed, (_, curves) in made.items()}
        return Network(self.name, self.data.name, models, asdict(self.recipe), history)

    def save(self, network: Network, folder: Path) -> None:
        """Write the weights of every seed, each with what it was trained from."""
        for seed, model in network.models.items():
            save_weights(
                model, folder / f"seed{seed}.safetensors", {"trained_from": self._origin(seed)}
            )

    def _stored(self, seed: int, suite: str) -> nn.Module | None:
        """The model with the weights that the train stage wrote for the same recipe and seed."""
        for path in sorted(
            (ROOT / "results" / suite / "train").glob(f"*/tensors/seed{seed}.safetensors")
        ):
            try:
                check_as_written(path)
                if read_metadata(path).get("trained_from") == self._origin(seed):
                    model = build(self.factory, self.data, seed)
                    load_weights(model, path)
                    return model
            except InputError as error:
                again = (
                    f"`dvc checkout {path.relative_to(ROOT)}`, or `dvc repro` of the stage train"
                )
                raise InputError(f"{error}: {again}, makes it anew", error.key) from error
        return None

    def _origin(self, seed: int) -> str:
        data = {key: value for key, value in self.spec.dataset.items() if key not in LOCATION}
        content = {
            "dataset": data,
            "model": self.spec.model,
            "training": asdict(self.recipe or Recipe()),
            "seed": seed,
        }
        return json.dumps(content, sort_keys=True)


def check_as_written(path: Path) -> None:
    """Check that weights in the folder ``tensors`` of a stage are those that the stage wrote.

    Where no list of the written files is there, as in a fresh checkout, nothing is checked.

    Raises:
        InputError: the file has another content.
    """
    written = written_before(path.parent.parent).get(f"tensors/{path.name}")
    if written and digest(path) != written:
        refuse(
            "model.checkpoint", path, "the file that the stage train wrote; it was changed since"
        )


def _like(model: nn.Module) -> Tensor:
    """A tensor of the model's device and type."""
    return next((each for each in model.parameters() if each.is_floating_point()), torch.zeros(0))


def candidate(config: Config) -> Candidate:
    """The network that the configuration names.

    It is one of the suite, or the model and data set of the command line.

    Raises:
        InputError: nothing is named, or a part of it cannot be had.
    """
    name, spec, prefix = _named(config)
    check_network(spec, prefix)
    data = ready(spec.dataset, f"{prefix}dataset")()
    return Candidate(name, spec, data, factory(spec.model, f"{prefix}model"), recipe(spec, prefix))


def candidates(config: Config) -> tuple[list[Candidate], list[str]]:
    """The networks of a run across networks, and a note on those that are left out.

    They are those that ``network`` lists, or all of the suite, as far as they take images of one
    shape: the shape that most of them take.

    Raises:
        InputError: fewer than two networks take one shape, or a part of one cannot be had.
    """
    data: dict[str, Dataset] = {}
    found = []
    for name in dict.fromkeys(config.named() or config.networks):
        spec, prefix = config.networks[name], f"networks.{name}."
        check_network(spec, prefix)
        leaf = json.dumps(spec.dataset, sort_keys=True)
        if leaf not in data:  # networks on the same data share it
            data[leaf] = ready(spec.dataset, f"{prefix}dataset")()
        found.append(
            Candidate(
                name, spec, data[leaf], factory(spec.model, f"{prefix}model"), recipe(spec, prefix)
            )
        )
    shapes = Counter(each.data.shape for each in found)
    shape, count = shapes.most_common(1)[0] if shapes else ((), 0)
    if count < 2:
        names = ", ".join(each.name for each in found)
        refuse("network", names, "two or more networks of the suite that take images of one shape")
    others = [each.name for each in found if each.data.shape != shape]
    size = "x".join(map(str, shape))
    note = f"Left out, as their images are not of shape {size}: {', '.join(others)}."
    return [each for each in found if each.data.shape == shape], [note] if others else []


def _named(config: Config) -> tuple[str, NetworkConfig, str]:
    if config.network is not None:
        if not isinstance(config.network, str):
            refuse("network", config.network, "one name, as this stage measures one network")
        return config.network, config.networks[config.network], f"networks.{config.network}."
    if config.model is None or config.dataset is None:
        refuse("network", None, "one of " + ", ".join(config.networks))
    _check_recipe()
    spec = NetworkConfig(config.dataset, config.model, config.training or {})
    return _choice("dataset") + "_" + _choice("model"), spec, ""


def _check_recipe() -> None:
    """Check that the recipe exists: only a model's own recipe may be absent, as Hydra allows."""
    recipes = sorted(path.stem for path in (ROOT / "conf" / "training").glob("*.yaml"))
    chosen = _choice("training")
    if chosen not in (*recipes, _choice("model")):
        refuse("training", chosen, "one of " + ", ".join(recipes))


def _choice(group: str) -> str:
    return str(HydraConfig.get().runtime.choices[group])

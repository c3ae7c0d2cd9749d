"""Training a classifier: resumable, and with the same bytes from the same seed."""

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustness_geometry.checks import (
    NOTHING,
    Described,
    InputError,
    check_images,
    check_logits,
    refuse,
)
from robustness_geometry.memory import channels_last
from robustness_geometry.outputs import logits_at
from robustness_geometry.randomness import seeded
from robustness_geometry.training.checkpoints import Checkpoint, origin_of
from robustness_geometry.training.objectives import CrossEntropy, Step
from robustness_geometry.training.recipe import Recipe
from robustness_geometry.types import Classifier, Split, class_logits, predict

__all__ = [
    "History",
    "OnEpoch",
    "TrainResult",
    "TrainingDiverged",
    "crop_flip",
    "error",
    "optimiser_of",
    "snapshot",
    "train",
    "warm_up",
]

History: TypeAlias = dict[str, list[float]]
"""Curve name -> one value per epoch."""

OnEpoch: TypeAlias = Callable[[int, nn.Module, dict[str, float]], None]
"""Called after each epoch with its number from 1, the model (evaluating) and its values."""

PADDING = 4
"""Pixels of zero padding of ``crop_flip``, as is usual on 32 x 32 images."""


class TrainingDiverged(RuntimeError):  # noqa: N818
    """The loss or a weight is no longer finite; the text gives the epoch, step and loss."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Attributes:
        model: the trained copy, in evaluation mode.
        history: ``train_loss`` and ``train_error``, averages over the epoch in training mode, the
            parts of the objective, and, where test images were given, ``test_error``.
        states: the weights and buffers after each epoch, on the CPU, where they were asked for.
    """

    model: Classifier
    history: History
    states: tuple[dict[str, Tensor], ...] = ()

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The trained weights and buffers, on the CPU."""
        return snapshot(self.model)


def train(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    *,
    objective: CrossEntropy | None = None,
    seed: int = 0,
    test: Split | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoint: str | Path | None = None,
    keep_states: bool = False,
) -> TrainResult:
    """Train a copy of ``model`` on ``data``, on the device of the model.

    Order, augmentation, attacks and dropout depend on ``seed`` alone, so on a CPU the same call
    gives the same bytes. Every parameter is trained, batch normalisation is in training mode, and
    the caller's model and random number generators stay as they are. Under the caller's
    ``torch.autocast`` in bfloat16 the training uses mixed precision.

    Args:
        model: the classifier to start from; logits (N, classes), or (N, 1) whose sign decides.
        data: the training images (N, C, H, W) and labels (N,).
        recipe: the options of the optimiser.
        objective: the loss to minimise; None: the mean cross-entropy.
        seed: seed of all random numbers.
        test: images on which the error is measured after each epoch.
        on_epoch: function to call after each epoch.
        checkpoint: a file that keeps the state after each epoch. A call that finds this file
            resumes there and ends with the same bytes as one without interruption. Name it after
            what the training depends on: the file itself remembers weights, images, recipe, seed
            and kind of objective, but not the options of an objective.
        keep_states: return the weights of every epoch; files beside ``checkpoint`` then hold them
            too.

    Returns:
        The trained copy and its curves.

    Raises:
        InputError: no training images, labels that the model has no logit for, an objective that
            does not fit the recipe, or a checkpoint of another training.
        TrainingDiverged: the loss or a weight became NaN or infinite; the last good checkpoint
            stays.

    Example:
        >>> import torch
        >>> from robustness_geometry.training import Recipe, train
        >>> from robustness_geometry.types import Split
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
        >>> images = torch.rand(40, 1, 4, 4)
        >>> data = Split(images, (images.mean(dim=(1, 2, 3)) > 0.5).long())
        >>> result = train(model, data, Recipe(epochs=5), seed=1, test=data)
        >>> result.model.training, len(result.history["test_error"])
        (False, 5)
    """
    objective = CrossEntropy() if objective is None else objective
    objective.check(recipe)
    device = next(model.parameters()).device
    kept = None
    if checkpoint is not None:
        path = Path(checkpoint)
        path = path.with_name(f"{path.name}-states") if keep_states else path
        kept = Checkpoint(path, origin_of(model, data, recipe, objective, seed))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _fresh_autocast(device):
        # Dropout draws from the global generators.
        torch.manual_seed(seeded(seed, "training").initial_seed())
        run = _Run(
            model, data, recipe, objective, seeded(seed, "training order"), kept, keep_states
        )
        for epoch in range(run.resume(), recipe.epochs):
            values = run.epoch(epoch)
            if test is not None:
                values["test_error"] = error(run.model, test)
            run.keep(epoch + 1, values)
            if on_epoch is not None:
                on_epoch(epoch + 1, run.model, values)
    return TrainResult(
        run.model.to(memory_format=torch.contiguous_format), run.history, tuple(run.states)
    )


def error(model: Classifier, data: Split, *, batch_size: int = 500) -> float:
    """The share of ``data`` that ``model`` labels wrongly, in [0, 1]."""
    weight = next(model.parameters())
    wrong = 0
    for start in range(0, len(data), batch_size):
        images, labels = (
            data.images[start : start + batch_size],
            data.labels[start : start + batch_size],
        )
        wrong += int((predict(model, images.to(weight)) != labels.to(weight.device)).sum())
    return wrong / len(data)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers on the CPU, in the plain memory layout."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of each image after zero padding by 4 pixels, mirrored half of the time.

    Args:
        images: (N, C, H, W) in [0, 1].
        generator: a CPU generator, so that every device sees the same crops.

    Returns:
        (N, C, H, W).

    Example:
        >>> import torch
        >>> from robustness_geometry.randomness import seeded
        >>> from robustness_geometry.training.loop import crop_flip
        >>> crop_flip(torch.rand(2, 3, 32, 32), seeded(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    if images.ndim != 4:
        refuse("training.augmentation", "crop_flip", "none for inputs that are no pictures")
    count, _, height, width = images.shape
    shift = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = torch.arange(height) + shift[0]
    columns = torch.arange(width) + shift[1]
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = nn.functional.pad(images, (PADDING,) * 4)
    index = (torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :])
    taken: Tensor = padded.permute(0, 2, 3, 1)[tuple(part.to(images.device) for part in index)]
    return taken.permute(0, 3, 1, 2)


class _Run:
    """The state of one training: model, optimiser, generators, curves and checkpoint."""

    def __init__(
        self,
        model: nn.Module,
        data: Split,
        recipe: Recipe,
        objective: CrossEntropy,
        order: torch.Generator,
        checkpoint: Checkpoint | None,
        keep_states: bool,
    ) -> None:
        weight = next(model.parameters())
        self.device = weight.device
        self.images, self.labels = data.images.to(weight), data.labels.to(self.device)
        # Channels last halves the time of a step of convolutions and batch norm on a CPU.
        copied = copy.deepcopy(model).requires_grad_(True).eval()
        self.model = channels_last(copied, self.images)
        self.recipe, self.objective, self.order = recipe, objective, order
        self.checkpoint, self.keep_states = checkpoint, keep_states
        self.weights = list(self.model.parameters())
        self.optimiser = optimiser_of(self.model, recipe)
        self.history: History = {}
        self.states: list[dict[str, Tensor]] = []
        _check(self.model, self.images, self.labels)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch; the model is in evaluation mode afterwards."""
        images = self.objective.epoch_images(self.model, self.images, self.labels, self.order)
        self.model.train()
        batches = _batches(
            torch.randperm(len(self.labels), generator=self.order), self.recipe.batch_size
        )
        losses: list[dict[str, Tensor]] = []
        wrong = torch.zeros((), dtype=torch.long, device=self.device)
        for step, batch in enumerate(batches):
            passed = epoch + step / len(batches)
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.rate(passed)
            try:
                loss, mistakes = self._step(images, batch.to(self.device), passed)
            except InputError:  # an attack refuses logits that are no longer finite
                self._check_finite(epoch, losses)
                raise
            losses.append(loss)
            wrong += mistakes
        self.model.eval()
        # Once per epoch: asking at each step would make an accelerator wait.
        self._check_finite(epoch, losses)
        sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
        means = {
            name: float((_stacked(losses, name) * sizes).sum() / sizes.sum()) for name in losses[0]
        }
        return means | {"train_error": int(wrong) / len(self.labels)}

    def _step(
        self, images: Tensor, batch: Tensor, passed: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        chosen, labels = images[batch], self.labels[batch]
        if self.recipe.augmentation == "crop_flip":
            chosen = crop_flip(chosen, self.order)
        loss = self.objective.loss(Step(self.model, chosen, labels, passed, self.order))
        self.optimiser.zero_grad(set_to_none=True)
        # For the weights only, not for images that the objective has differentiated by.
        loss.total.backward(inputs=self.weights)
        self.optimiser.step()
        values = {
            name: value.detach() for name, value in {"train_loss": loss.total, **loss.parts}.items()
        }
        return values, (loss.logits.detach().argmax(dim=1) != labels).sum()

    def _check_finite(self, epoch: int, steps: Sequence[Mapping[str, Tensor]]) -> None:
        losses = _stacked(steps, "train_loss")
        kept = (
            f"; the state after epoch {epoch} is kept in {self.checkpoint.path}"
            if self.checkpoint and epoch
            else ""
        )
        where = f"training diverged in epoch {epoch + 1}, step"
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step = int(bad[0])
            raise TrainingDiverged(f"{where} {step + 1}: loss {losses[step]:g}{kept}")
        for name, tensor in self.model.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                last = f"{where} {len(losses)}: loss {losses[-1]:g}"
                raise TrainingDiverged(f"{last}, then {name} is not finite{kept}")

    def keep(self, epochs: int, values: Mapping[str, float]) -> None:
        """Extend the curves and save what the next epoch depends on, as a whole or not at all."""
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
        if self.keep_states:
            self.states.append(snapshot(self.model))
        if self.checkpoint is None:
            return
        if self.keep_states:
            self.checkpoint.save_weights(epochs, self.states[-1])
        self.checkpoint.save(
            {
                "epochs": epochs,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "order": self.order.get_state(),
                "generator": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device)
                if self.device.type == "cuda"
                else None,
                "history": self.history,
            }
        )

    def resume(self) -> int:
        """Load the checkpoint, if there is one, and return the number of finished epochs."""
        state = self.checkpoint.load() if self.checkpoint else None
        if self.checkpoint is None or state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["generator"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        self.history = state["history"]
        epochs = int(state["epochs"])
        if self.keep_states:
            self.states = [self.checkpoint.load_weights(epoch) for epoch in range(1, epochs + 1)]
        return epochs


def _stacked(steps: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """(steps,) the value ``name`` of each step, in float64 on the CPU."""
    return torch.stack([step[name] for step in steps]).double().cpu() if steps else torch.zeros(0)


@contextmanager
def _fresh_autocast(device: torch.device) -> Iterator[None]:
    """The caller's autocast without its cache, which would keep the weights of the first step."""
    dtype = torch.get_autocast_dtype(device.type)
    enabled = torch.is_autocast_enabled(device.type)
    if enabled and dtype == torch.float16:
        refuse(
            "executor.precision",
            "16-mixed",
            "32-true, 64-true or bf16-mixed for training: gradients vanish in float16",
        )
    with torch.autocast(device.type, dtype, enabled=enabled, cache_enabled=False):
        yield


def optimiser_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over all weights of ``model``."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "adam":
        return torch.optim.Adam(model.parameters(), rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        model.parameters(), rate, recipe.momentum, weight_decay=decay, fused=True
    )


def warm_up() -> None:
    """Import what an optimiser imports at its first step, once instead of in each fork."""
    importlib.import_module("torch._dynamo")


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """The batches of one epoch; a last batch of one image joins the one before it.

    Batch normalisation needs at least two images.
    """
    cut = len(order) - 1 if len(order) > size and len(order) % size == 1 else len(order)
    parts = [order[start : min(start + size, cut)] for start in range(0, cut, size)]
    return [*parts[:-1], torch.cat([parts[-1], order[cut:]])]


def _check(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    if len(labels) == 0:
        refuse("training images", NOTHING, "at least one image")
    check_images(images, limits=None)
    if len(images) != len(labels):
        refuse("len(labels)", len(labels), f"{len(images)}, one label per training image")
    with torch.no_grad():
        logits = class_logits(logits_at(model, images[:1]))
    check_logits(logits, 1)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        refuse(
            "training labels",
            Described(f"{low} to {high}"),
            f"from 0 to {logits.shape[1] - 1}, the classes of the model",
        )

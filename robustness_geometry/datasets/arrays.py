"""Arrays from a file, for inputs of any shape: pictures, tables of features, signals, volumes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustness_geometry.checks import (
    NOTHING,
    Described,
    InputError,
    check_classes,
    check_labels,
    number,
    refuse,
)
from robustness_geometry.datasets.sampling import Limits, choose, stratified_order
from robustness_geometry.sizes import check_archive
from robustness_geometry.types import Dataset, Split

__all__ = ["arrays"]

IMAGES = ("images", "x", "data", "features")
LABELS = ("labels", "y", "targets")
"""Names that the arrays of a file may have, in capitals as well."""

Entries: TypeAlias = Mapping[str, Any]


def arrays(
    *,
    path: str | Path | None = None,
    root: str | Path | None = None,
    images: str | None = None,
    labels: str | None = None,
    bounds: Sequence[float] | str | None = None,
    pictures: bool | None = None,
    classes: Sequence[str] | None = None,
    train_share: float = 0.0,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    download: bool = True,
) -> Dataset:
    """The arrays of an ``.npz`` or a ``.safetensors`` file: inputs (N, ...) and labels (N,).

    The file holds ``images`` and ``labels``, or both for ``train`` and for ``test``, such as
    ``train_images`` or ``x_train``. The data set is named after it. Inputs are brought to [0, 1],
    in which all norms and radii count: 8-bit ones by 1 / 255, others by their ``bounds``. A network
    that was trained on the inputs as they are in the file gets them back by ``model.normalise``:
    the means -low / (high - low) and the standard deviations 1 / (high - low).

    Mean and standard deviation are those of each channel, the first dimension of an input, of the
    training inputs (else of all): of each feature where inputs are vectors. A channel that never
    changes has the standard deviation 1.

    Args:
        path: the file; it has to be given.
        root: the folder that ``path`` starts from; None: the working directory.
        images: name of the array of inputs, all of one set; None: the usual names are looked for.
        labels: name of the array of their labels, likewise.
        bounds: lowest and highest value that an input can have; ``features``: the range of each
            value over all inputs of the file; None: 0 to 255 for 8 bits, else 0 to 1.
        pictures: take (N, H, W) as grey pictures and (N, H, W, C) as pictures with their channels
            last; None: where the array has 8 bits.
        classes: class names in the order of the labels; None: the labels themselves, and for
            labels that are texts their alphabetical order.
        train_share: share of one set of inputs to train on, 0 <= share < 1: a random, stratified
            split, fixed by ``seed``.
        train_limit: number of training inputs to keep, a stratified random subset; None: all.
        test_limit: number of held-out inputs to keep, likewise.
        seed: seed of the split and of both subsets.
        download: has no effect, as there is nothing to download.

    Raises:
        InputError: no such file, one whose arrays take more than the free memory (or 64 GiB)
            unpacked, no such arrays, inputs outside their bounds, or labels that are no classes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from robustness_geometry.datasets import arrays
        >>> x, y = np.random.default_rng(0).normal(size=(12, 5)), np.arange(12) % 3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/flowers.npz", X=x, y=y)
        ...     data = arrays(path=f"{folder}/flowers.npz", bounds="features", train_share=0.5)
        >>> data.name, data.shape, len(data.train), len(data.test), data.classes
        ('flowers', (5,), 6, 6, ('0', '1', '2'))
    """
    limits = Limits(train_limit, test_limit, seed)
    share = number("dataset.train_share", train_share)
    if not 0 <= share < 1:
        refuse("dataset.train_share", train_share, "a share with 0 <= share < 1")
    file = None if path is None else Path(root or "", Path(path).expanduser()).expanduser()
    if file is None or not file.is_file() or file.suffix not in (".npz", ".safetensors"):
        refuse("dataset.path", path, "an existing .npz or .safetensors file")
    entries = _read(file)
    parts = _parts(entries, images, labels)
    inputs = {part: _inputs(entries[pair[0]], pictures) for part, pair in parts.items()}
    counts = {part: len(values) for part, values in inputs.items()}
    kept = _Labels.of({part: entries[pair[1]] for part, pair in parts.items()}, counts, classes)
    scaled = _scaled(inputs, bounds)
    if list(parts) == ["all"]:
        order = stratified_order(kept.of_part["all"], seed, file.stem, "split")
        cut = min(round(share * len(order)), len(order) - 1)
        rows = {"train": order[:cut], "test": order[cut:]}
        splits = {p: Split(scaled["all"][r], kept.of_part["all"][r]) for p, r in rows.items()}
    else:
        if share:
            refuse("dataset.train_share", train_share, "0 for a file with a train and a test part")
        splits = {p: Split(scaled[p], kept.of_part[p]) for p in ("train", "test")}
    mean, std = _statistics(splits["train" if len(splits["train"]) else "test"].images)
    kept_rows = {
        part: choose(splits[part].labels, limit, seed, file.stem, part)
        for part, limit in (("train", limits.train), ("test", limits.test))
    }
    train, test = (
        Split(splits[part].images[rows], splits[part].labels[rows])
        for part, rows in kept_rows.items()
    )
    return Dataset(file.stem, train, test, kept.names, mean, std, f"arrays in {file.name}")


def _read(file: Path) -> dict[str, Any]:
    """The arrays of a file by name, as NumPy arrays or tensors."""
    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        check_archive("dataset.path", file)
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except InputError:
        raise
    except Exception as error:  # there is no end to what NumPy raises at a damaged file
        why = (str(error).splitlines() or [type(error).__name__])[0]
        refuse("dataset.path", file, f"a file of arrays of numbers or texts ({why})")


def _parts(entries: Entries, images: str | None, labels: str | None) -> dict[str, tuple[str, str]]:
    """Part -> names of its inputs and labels: ``train`` and ``test``, or ``all``."""
    for key, name in (("images", images), ("labels", labels)):
        if name is not None and name not in entries:
            refuse(f"dataset.{key}", name, f"one of {', '.join(entries) or 'the arrays, of none'}")
    if images is None and labels is None:
        found = {part: _pair(entries, part) for part in ("train", "test")}
        pairs = {part: pair for part, pair in found.items() if pair is not None}
        if len(pairs) == 2:
            return pairs
    pair = (images or _named(entries, IMAGES), labels or _named(entries, LABELS))
    if pair[0] is None or pair[1] is None:
        key = "dataset.images" if pair[0] is None else "dataset.labels"
        held = ", ".join(entries) or "nothing"
        refuse(key, NOTHING, f"the name of an array of the file, which holds {held}")
    return {"all": (pair[0], pair[1])}


def _pair(entries: Entries, part: str) -> tuple[str, str] | None:
    pair = tuple(
        _named(entries, [spelt for name in names for spelt in _spellings(name, part)])
        for names in (IMAGES, LABELS)
    )
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


def _spellings(name: str, part: str) -> Iterator[str]:
    for sign in ("_", "", "-", "."):
        yield f"{part}{sign}{name}"
        yield f"{name}{sign}{part}"


def _named(entries: Entries, names: Sequence[str]) -> str | None:
    """The entry that is called by the first of ``names`` that there is, in any case."""
    lower = {name.lower(): name for name in reversed(list(entries))}
    return next((lower[name] for name in names if name in lower), None)


@dataclass(frozen=True)
class _Labels:
    """The labels of each part as whole numbers, and the class names."""

    of_part: dict[str, Tensor]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, parts: Mapping[str, Any], counts: Mapping[str, int], classes: Sequence[str] | None
    ) -> "_Labels":
        flat = {part: _column(values) for part, values in parts.items()}
        texts = sorted({str(v) for each in flat.values() if _is_text(each) for v in each.tolist()})
        names = tuple(texts if classes is None else map(str, classes))
        found = {}
        for part, values in flat.items():
            if _is_text(values):
                missing = sorted(set(map(str, values.tolist())) - set(names))
                if missing:
                    refuse("dataset.classes", classes, f"names of all classes; {missing[0]} lacks")
                values = np.array([names.index(str(v)) for v in values.tolist()], dtype=np.int64)
            found[part] = check_labels(values, counts[part], key="dataset.labels")
        if not any(map(len, found.values())):
            refuse("dataset.labels", NOTHING, "the labels of at least one input")
        if not names:
            largest = max(int(each.max()) for each in found.values() if len(each))
            names = tuple(str(label) for label in range(largest + 1))
        for each in found.values():
            check_classes(each, len(names), key="dataset.labels")
        return cls(found, names)


def _column(values: Any) -> Any:
    """Labels (N, 1), as some data sets have them, as (N,)."""
    return values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values


def _is_text(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "US"


def _inputs(values: Any, pictures: bool | None) -> Tensor:
    """The inputs as a tensor (N, ...); pictures with their channels first."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "buif":
            refuse("dataset.images", Described(f"an array of {values.dtype}"), "one of numbers")
        values = torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))
    if values.ndim < 2 or values[:1].numel() == 0:
        refuse("dataset.images", Described(f"an array {tuple(values.shape)}"), "inputs (N, ...)")
    if pictures if pictures is not None else values.dtype == torch.uint8:
        if values.ndim == 3:
            return values[:, None]
        if values.ndim == 4 and values.shape[3] <= 4 < min(values.shape[1:3]):
            return values.permute(0, 3, 1, 2)
    return values


def _scaled(
    inputs: Mapping[str, Tensor], bounds: Sequence[float] | str | None
) -> dict[str, Tensor]:
    """The inputs in [0, 1], in float32."""
    shapes = {tuple(values.shape[1:]) for values in inputs.values()}
    if len(shapes) > 1:
        refuse("dataset.images", Described(" and ".join(map(str, shapes))), "inputs of one shape")
    for values in inputs.values():
        if not bool(torch.isfinite(values).all()):
            refuse("dataset.images", Described("NaN or infinite values"), "finite")
    low, high = _bounds(inputs, bounds)
    found = {}
    for part, values in inputs.items():
        scaled = ((values.double() - low) / (high - low)).float().contiguous()
        if len(scaled) and not bool(((scaled >= 0) & (scaled <= 1)).all()):
            least, most = (float(v) for v in torch.aminmax(values.double()))
            refuse(
                "dataset.bounds",
                bounds,
                f"the lowest and highest value of the inputs, which run from {least:.4g} to "
                f"{most:.4g}, or features",
            )
        found[part] = scaled
    return found


def _bounds(inputs: Mapping[str, Tensor], bounds: Sequence[float] | str | None) -> tuple[Any, Any]:
    every = list(inputs.values())
    if bounds is None:
        return 0.0, 255.0 if all(values.dtype == torch.uint8 for values in every) else 1.0
    if bounds == "features":
        values = torch.cat(every).double()
        low, high = values.amin(dim=0), values.amax(dim=0)
        return low, torch.where(high > low, high, low + 1)
    if isinstance(bounds, str) or len(bounds) != 2:
        refuse("dataset.bounds", bounds, "the lowest and the highest value, or features")
    least, most = (number("dataset.bounds", value) for value in bounds)
    if not -np.inf < least < most < np.inf:
        refuse("dataset.bounds", bounds, "two finite numbers, the lower one first")
    return least, most


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel."""
    channels = images.double().transpose(0, 1).flatten(1)
    mean, std = channels.mean(dim=1), channels.std(dim=1, correction=0)
    std = torch.where(std > 1e-8, std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())

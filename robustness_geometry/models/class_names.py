"""The names of a published network's classes, and those of a data set."""

from collections.abc import Sequence

from torch import nn

from robustness_geometry.checks import Described, refuse
from robustness_geometry.models.state_dicts import say
from robustness_geometry.types import Dataset

__all__ = ["check_class_names", "check_count_of_classes", "named"]

SHOWN = 20
"""Number of names up to which a message lists them."""


def named(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Note on ``model`` the names of its classes, in the order of its logits."""
    model.class_names = tuple(names)  # type: ignore[assignment]
    return model


def check_class_names(model: nn.Module, dataset: Dataset) -> None:
    """Check that the logits stand in the order of the data set's classes.

    Only the order of equal names can be judged. Where not all names are the same, as for spellings
    and translations, the classes are taken in order, and that is logged as a warning.

    Args:
        model: a network; nothing is checked unless :func:`named` noted its classes.
        dataset: the data set that it is measured on.

    Raises:
        InputError: the names are the same in another order; the text says what to write.

    Example:
        >>> from robustness_geometry.datasets import mnist5k
        >>> from robustness_geometry.models.class_names import check_class_names, named
        >>> model = named(nn.Flatten(), [str(digit) for digit in range(10)])
        >>> check_class_names(model, mnist5k(test_limit=10))
    """
    theirs = getattr(model, "class_names", ())
    if len(theirs) != len(dataset.classes):
        return
    pairs = zip(theirs, dataset.classes, strict=True)
    different = [(name, own) for name, own in pairs if not _same(name, own)]
    if not different:
        return
    wanted = [own for name in theirs for own in dataset.classes if _same(name, own)]
    if sorted(wanted) == sorted(dataset.classes):
        refuse(
            "dataset.labels",
            Described(_shown(dataset.classes)),
            f"{_shown(wanted)}, the order of the network's classes",
        )
    name, own = different[0]
    say(
        f"{len(different)} of the network's {len(theirs)} classes have another name than the data "
        f"set's, such as {name!r} for {own!r}; they are taken in order"
    )


def check_count_of_classes(name: str, names: Sequence[str], count: int, classes: int) -> None:
    """Check that the network ``name`` has as many classes as the data set.

    Raises:
        InputError: it has another number; the text says how to give the data set its classes.
    """
    if count == classes:
        return
    hint = f"; dataset.labels={_shown(names)} gives an image folder its classes" if names else ""
    refuse("model.name", name, f"a network of {classes} classes; this one has {count}{hint}")


def _same(one: str, other: str) -> bool:
    """Whether two names are one but for case and separators, or one lists the other."""
    first, second = ({_plain(part) for part in name.split(",")} for name in (one, other))
    return _plain(one) == _plain(other) or first <= second or second <= first


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


def _shown(names: Sequence[str]) -> str:
    listed = ",".join(names[:SHOWN])
    return f"[{listed}{',...' if len(names) > SHOWN else ''}]"

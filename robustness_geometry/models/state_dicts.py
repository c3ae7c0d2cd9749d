"""State dicts as the usual tools save them: inside a checkpoint, and with other prefixes."""

import functools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from robustness_geometry.checks import one_of, refuse
from robustness_geometry.models.weight_files import KEY, StandIn

__all__ = ["Named", "entries", "matched", "say"]

_log = logging.getLogger(__name__)

AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_state_dict_ema",
    "model_ema_state_dict",
    "ema_model",
    "params_ema",
    "ema",
)
"""Entries, and prefixes, of an exponential moving average of the weights."""

PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
"""Entries under which checkpoints keep the weights themselves."""

WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Parts of a name that come from a wrapper around a module, wherever they stand."""

PREFIXES = {
    *AVERAGED,
    *PLAIN,
    "backbone",
    "base_model",
    "classifier",
    "encoder",
    "online_model",
    "pl_module",
}
"""Prefixes of a network beside which a file may hold more, such as a loss or a second network."""

APART = ("aux1.", "aux2.", "AuxLogits.", "criterion", "loss", "metric")
"""How the names of auxiliary heads, losses and metrics begin, which no evaluation needs."""

BESIDE = (*APART, "normaliz", "test_", "train_", "val_", "valid_")
"""How the names begin of what may stand beside a prefixed network."""

UNNEEDED = {
    "_extra_state",
    "attn_mask",
    "n_averaged",
    "num_batches_tracked",
    "position_ids",
    "relative_coords_table",
    "relative_position_index",
    "total_ops",
    "total_params",
}
"""Last parts of names that are counters or constants, never parameters."""


@dataclass(frozen=True)
class Named:
    """A state dict of a checkpoint.

    Attributes:
        name: the entry that holds it, dotted; empty for the checkpoint itself.
        state: what it holds.
        known: whether the name is one that tools use for weights.
    """

    name: str
    state: Mapping[str, Any]
    known: bool = True


@functools.lru_cache(maxsize=256)
def say(text: str) -> None:
    """Log ``text`` as a warning, once in a process."""
    _log.warning(text)


def entries(loaded: object, path: Path, wanted: str | None = None) -> list[Named]:
    """The state dicts of a checkpoint, in the order in which they are tried.

    An average of the weights stands before the weights themselves, as in the evaluation scripts of
    the tools that keep both.

    Args:
        loaded: what the file holds.
        path: the file, for messages.
        wanted: the one entry to use; None: all.

    Raises:
        InputError: there is none; the text says what there is instead.
    """
    found = list(_entries(loaded, ""))
    if wanted is not None:
        return _chosen(found, wanted)
    if not found:
        _refuse_no_state(loaded, path)
    known = [entry for entry in found if entry.known]
    return sorted(known, key=_order) or found


def _chosen(found: list[Named], wanted: str) -> list[Named]:
    """The entry of that name, or what stands behind that prefix."""
    chosen = [entry for entry in found if entry.name == wanted]
    for entry in found if not chosen else ():
        inner = _inside(f"{str(wanted).rstrip('.')}.", entry.state)
        chosen += [Named(wanted, inner)] if inner else []
    if not chosen:
        names = [entry.name for entry in found if entry.name]
        refuse("model.weights_key", wanted, one_of(names) if names else "null for this file")
    return chosen


def _order(entry: Named) -> int:
    names = [*AVERAGED, *PLAIN, ""]
    last = entry.name.rpartition(".")[2]
    return names.index(last) if last in names else len(names)


def _entries(loaded: object, name: str) -> Iterator[Named]:
    if not isinstance(loaded, Mapping) or "param_groups" in loaded:  # an optimiser's state
        return
    inside = [
        entry
        for key, value in loaded.items()
        if not str(key).startswith(("optim", "lr_sched", "sched", "scaler", "amp"))
        for entry in _entries(value, f"{name}.{key}" if name else str(key))
    ]
    yield from inside
    if not inside and any(isinstance(value, Tensor) for value in loaded.values()):
        known = name.rpartition(".")[2] in (*AVERAGED, *PLAIN, "")
        yield Named(name, {str(key): value for key, value in loaded.items()}, known)


def _refuse_no_state(loaded: object, path: Path) -> NoReturn:
    wanted = f"a state dict, alone or as entry {', '.join((*PLAIN, *AVERAGED))} of a checkpoint"
    if isinstance(loaded, Mapping):
        names = [str(key) for key in loaded]
        if any(isinstance(value, StandIn) for value in loaded.values()):
            first = next(key for key, value in loaded.items() if isinstance(value, StandIn))
            wanted = (
                "a file of weights alone: safetensors, or a saved state dict; entry "
                f"{first} is a pickled {loaded[first].origin}"
            )
        elif "param_groups" in names or (
            names and all(name.startswith(("optim", "epoch", "lr_sched")) for name in names)
        ):
            wanted += "; this one holds the state of an optimiser alone"
        elif names:
            wanted += f"; this one holds {', '.join(names[:5])}"
    refuse(KEY, path, wanted)


def matched(
    own: Mapping[str, Any], found: list[Named], path: Path, wanted: str | None = None
) -> dict[str, Any]:
    """The file's values under the network's names.

    Wrappers' parts of names (``module``, ``_orig_mod``) are left out, and one prefix, such as
    Lightning's ``model.``, is taken off. What the file holds beside the network is left out and
    said.

    Args:
        own: the network's state dict.
        found: the state dicts to choose from, see :func:`entries`.
        path: the file, for messages.
        wanted: the entry that the reader named.

    Returns:
        The values by name; other names than the network's own are the file's mistakes.

    Raises:
        InputError: several state dicts that differ and fit alike.
    """
    fits = [(entry, *_under(own, entry.state, path)) for entry in found]
    whole = [fit for fit in fits if _complete(own, fit[1])]
    entry, state, beside = (whole or fits)[0]
    others = [fit for fit in whole[1:] if not _equal(fit[1], state)]
    if others and wanted is None:
        names = [fit[0].name for fit in (whole[0], *others)]
        if not entry.known:
            refuse("model.weights_key", wanted, one_of(names))
        say(
            f"{path} holds several sets of weights ({', '.join(names)}): {entry.name} is taken; "
            f"model.weights_key chooses another"
        )
    elif entry.name and not entry.known:
        say(f"{path}: the weights are those of its entry {entry.name}")
    if beside:
        say(f"{path}: {_few(beside)} belong to no layer of the network and are left out")
    return state


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _complete(own: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    """Whether names and shapes agree."""
    return all(name in state and _shape(state[name]) == _shape(own[name]) for name in own)


def _shape(value: object) -> object:
    return value.shape if isinstance(value, Tensor) and not is_lazy(value) else None


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one is other:
        return one is other
    plain = one.layout == other.layout == torch.strided and not one.is_quantized
    return plain and one.shape == other.shape and torch.equal(one, other.to(one.dtype))


def _unneeded(name: str) -> bool:
    return name.rpartition(".")[2] in UNNEEDED


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _under(
    own: Mapping[str, Any], raw: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """The values under the network's names, and the names of the file that are left out."""
    if own.keys() == raw.keys():
        return dict(raw), []
    names = {_bare(name): name for name in own}
    if len(names) == len(own):
        state = _without_wrappers(raw, path)
    else:  # the network itself has wrappers, and names that differ by them alone
        names, state = {name: name for name in own}, dict(raw)
    prefix, less = _prefixes(names, state, path)
    taken = {}
    for name, value in state.items():
        if name.startswith(prefix):
            rest = less + name.removeprefix(prefix)
            taken[names.get(rest, rest)] = value
    beside = [name for name in state if not name.startswith(prefix)]
    odd = {name for name, value in taken.items() if name not in own and _apart(name, value)}
    beside += sorted(name for name in odd if not name.endswith("num_batches_tracked"))
    kept = {name: value for name, value in taken.items() if name not in odd}
    return _filled(own, kept), beside


def _apart(name: str, value: object) -> bool:
    """Whether an entry that the network does not know is none of its weights."""
    return not isinstance(value, Tensor) or _unneeded(name) or name.startswith(APART)


def _filled(own: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Add counters and constants that older files lack, and second names of tied weights."""
    missing = [name for name in own if name not in state]
    if not missing:
        return state
    places: dict[object, str] = {}
    for name in own:
        if name in state:
            places.setdefault(_place(own[name]), name)
    for name in missing:
        if _unneeded(name):
            state[name] = own[name]
        elif (place := _place(own[name])) is not None and place in places:
            state[name] = state[places[place]]
    return state


def _place(value: object) -> object:
    """Where a tensor lies in memory, the same for tied weights; None where that says nothing."""
    if _shape(value) is None or not isinstance(value, Tensor) or value.numel() == 0:
        return None
    return value.data_ptr(), value.shape, value.stride()


def _without_wrappers(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, value in raw.items():
        bare = _bare(name) or name
        if bare in state and not _equal(state[bare], value):
            refuse(KEY, path, f"a file with one set of weights; {name} has two different values")
        state[bare] = value
    return state


def _prefixes(names: Mapping[str, str], state: Mapping[str, Any], path: Path) -> tuple[str, str]:
    """The prefix of the file's names, and that of the network's, without which most agree."""
    best = ("", "")
    most = 0
    for less in _shared(list(names)):
        found: Counter[str] = Counter()
        for name in state:
            parts = name.split(".")
            for cut in range(len(parts)):
                if less + ".".join(parts[cut:]) in names:
                    found["".join(f"{part}." for part in parts[:cut])] += 1
        allowed = {prefix: count for prefix, count in found.items() if _allowed(prefix, state)}
        if allowed and max(allowed.values()) > most:
            most = max(allowed.values())
            equal = sorted((p for p, count in allowed.items() if count == most), key=_rank)
            whole = most >= sum(not _unneeded(name) for name in names)
            best = (_one_of(equal, state, path) if whole else equal[0], less)
    return best


def _shared(names: list[str]) -> list[str]:
    """The prefixes that all names share, the empty one first."""
    prefixes, parts = [""], names[0].split(".")[:-1] if names else []
    for part in parts:
        longer = f"{prefixes[-1]}{part}."
        if not all(name.startswith(longer) for name in names):
            break
        prefixes.append(longer)
    return prefixes


def _one_of(prefixes: list[str], state: Mapping[str, Any], path: Path) -> str:
    """The first of several prefixes behind which a network stands, if they hold the same one."""
    first, *others = prefixes
    inside = _inside(first, state)
    differ = [prefix for prefix in others if not _equal(inside, _inside(prefix, state))]
    if not differ:
        return first
    shown = [prefix.rstrip(".") for prefix in (first, *differ)]
    if not _averaged(first):
        refuse("model.weights_key", None, one_of(shown))
    say(
        f"{path} holds several sets of weights ({', '.join(shown)}): {shown[0]} is taken; "
        "model.weights_key chooses another"
    )
    return first


def _inside(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _averaged(prefix: str) -> bool:
    return any(part in AVERAGED for part in prefix.split("."))


def _rank(prefix: str) -> tuple[bool, int]:
    return (not _averaged(prefix), len(prefix))


def _allowed(prefix: str, state: Mapping[str, Any]) -> bool:
    """Whether what stands beside a prefix is no part of the network."""
    first = prefix.partition(".")[0]
    return first in PREFIXES or all(
        name.startswith((prefix, *BESIDE)) or _unneeded(name) for name in state
    )

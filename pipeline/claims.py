"""The thesis' claims and experiments, read from claims.yaml and checked."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from robustness_geometry.checks import (
    NOTHING,
    Described,
    check_choice,
    check_positive,
    number,
    one_of,
    refuse,
)

__all__ = [
    "ALL",
    "CLAIMS_FILE",
    "THESIS_DATA",
    "Claim",
    "Claims",
    "Condition",
    "Experiment",
    "load_claims",
]

CLAIMS_FILE = Path(__file__).with_name("claims.yaml")
BOUNDS = ("at_least", "at_most", "above", "below")
RELATIONS = (
    "approx",
    "at_least",
    "at_most",
    "decreases_with",
    "increases_with",
    "less_than_other",
    "qualitative",
)
THESIS_DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN", "imagenet": "ImageNet"}
"""Our name of a data set -> the thesis' name; a subset such as mnist5k is not the thesis' data."""

ALL = "all"
"""Takes the place of the network's name in results across networks."""

T = TypeVar("T")


@dataclass(frozen=True)
class Condition:
    """A number and the bounds that it must keep.

    With ``decides=False`` the outcome is only shown. Without a ``premise`` that surely holds, such
    as that an attack is strong enough to judge by, the other tests say nothing.
    """

    number: str
    bounds: Mapping[str, float]
    decides: bool = True
    premise: bool = False


@dataclass(frozen=True)
class Experiment:
    """An experiment of the thesis and the file of ours that repeats it."""

    id: str
    file: str
    title: str
    where: str
    measures: str
    thesis_networks: str
    thesis_samples: str

    @property
    def name(self) -> str:
        """The name of its file and of its results."""
        return self.id.replace("-", "_")

    @property
    def stage(self) -> str:
        """The stage that its file and its claims belong to."""
        return self.file.split("/")[1]

    @property
    def across(self) -> bool:
        """Whether it measures several networks together."""
        return self.name.endswith("_transfer")

    @property
    def run_by(self) -> str:
        """The stage that runs it: its own, or across networks ``<stage>_transfer``."""
        return f"{self.stage}_transfer" if self.across else self.stage


@dataclass(frozen=True)
class Claim:
    """A claim of the thesis; the head of claims.yaml says what each field means."""

    id: str
    experiment: str
    stage: str
    where: str
    statement: str
    quantity: str
    relation: str
    transferable: bool
    setting: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    spread: float | None = None
    formula: str = ""
    expression: str = ""
    threshold_from: str = ""
    number: str = ""
    tests: tuple[Condition, ...] = ()
    over: str = ""
    only_on: str = ""
    lacks: str = ""
    external: bool = False
    derived: bool = False
    note: str = ""

    @property
    def chapter(self) -> int:
        """The thesis' chapter."""
        return int(self.id[2])

    @property
    def models(self) -> tuple[str, ...]:
        """The networks of the thesis that the claim names."""
        named = self.setting.get("models") or [
            self.setting.get("model") or self.setting.get("source_model")
        ]
        return tuple(str(model) for model in named if model)

    @property
    def data(self) -> str:
        """The one of THESIS_DATA's values that the claim names; empty for none or several."""
        text = str(self.setting.get("dataset", "")).replace("ILSVRC", "ImageNet")
        return next((name for name in THESIS_DATA.values() if name in text), "")

    def counterpart(self, model: str, counterparts: Mapping[str, str]) -> str | None:
        """The suite's network that answers for a network of the thesis.

        Args:
            model: name of the network in the thesis.
            counterparts: name of a network in the thesis, with its data set where the name alone is
                ambiguous -> the suite's network.

        Returns:
            The counterpart on the claim's own data, if there is one, else that of the name alone;
            None without any.
        """
        chosen = {name.casefold(): network for name, network in counterparts.items()}
        names = (f"{self.data} {model}".casefold(), model.casefold())
        return next((chosen[name] for name in names if name in chosen), None)


@dataclass(frozen=True)
class Claims:
    """The whole of claims.yaml."""

    claims: tuple[Claim, ...]
    experiments: tuple[Experiment, ...]
    value_tolerance: float
    changed_thresholds: tuple[Mapping[str, str], ...]
    symbols: Mapping[str, str]

    def on(self, counterparts: Mapping[str, str]) -> "Claims":
        """The claims with {source} and {target} replaced by the suite's networks.

        A claim has no number, or is not tested, if the suite names no network for its source or
        target, or the same one for two networks of the thesis.
        """
        return replace(self, claims=tuple(_named(claim, counterparts) for claim in self.claims))


def _named(claim: Claim, counterparts: Mapping[str, str]) -> Claim:
    """A claim with {source} and {target} in its number and its tests replaced."""
    models = {role: str(claim.setting.get(f"{role}_model", "")) for role in ("source", "target")}
    texts = [claim.number, *(test.number for test in claim.tests)]
    wanted = [role for role in models if any(f"{{{role}}}" in text for text in texts)]
    if not wanted:
        return claim
    networks = {role: claim.counterpart(models[role], counterparts) for role in models}
    merged = len(set(models.values())) > len({networks[role] for role in wanted}) == 1 < len(wanted)
    if merged or not all(networks[role] for role in wanted):
        if not any(f"{{{role}}}" in test.number for test in claim.tests for role in wanted):
            return replace(claim, number="")
        named = " and ".join(dict.fromkeys(models[role] for role in wanted))
        lacks = claim.lacks or f"networks of its own for {named} in this suite"
        return replace(claim, number="", tests=(), lacks=lacks)
    tests = tuple(replace(test, number=test.number.format(**networks)) for test in claim.tests)
    return replace(claim, number=claim.number.format(**networks), tests=tests)


def load_claims(path: Path = CLAIMS_FILE) -> Claims:
    """Read and check a claims file.

    Raises:
        InputError: a key is unknown or missing, a name or number is not allowed, or an id occurs
            twice.
    """
    content = yaml.load(
        path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    experiments = tuple(
        _build(Experiment, entry, "experiments") for entry in content["experiments"]
    )
    claims = tuple(_claim(entry) for entry in content["claims"])
    stages = {experiment.id: experiment.stage for experiment in experiments}
    for claim in claims:
        if stages.get(claim.experiment) != claim.stage:
            refuse(
                f"claims.{claim.id}.experiment",
                claim.experiment,
                f"an experiment of stage {claim.stage}",
            )
    for key, items in (("claims", claims), ("experiments", experiments)):
        if repeated := [
            name for name, count in Counter(item.id for item in items).items() if count > 1
        ]:
            refuse(key, repeated[0], "entries whose ids occur once")
    changed = tuple(content["changed_thresholds"])
    for entry in changed:
        if set(entry) != {"id", "old", "new", "reason"}:
            refuse("changed_thresholds", entry, "entries of id, old, new and reason")
    tolerance = check_positive("value_tolerance", content["value_tolerance"])
    return Claims(claims, experiments, tolerance, changed, content["symbols"])


def _build(kind: type[T], entry: Mapping[str, Any], key: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    required = {f.name for f in fields(kind) if f.default is MISSING is f.default_factory}  # type: ignore[arg-type]
    name = f"{key}.{entry.get('id', '(no id)')}"
    for unknown in sorted(set(entry) - known):
        refuse(f"{name}.{unknown}", entry[unknown], one_of(sorted(known)))
    for missing in sorted(required - set(entry)):
        refuse(f"{name}.{missing}", NOTHING, "given")
    return kind(**entry)


def _claim(entry: Mapping[str, Any]) -> Claim:
    key = f"claims.{entry.get('id', '(no id)')}"
    tests = tuple(_test(test, key) for test in entry.get("tests", ()))
    claim = _build(Claim, {**entry, "tests": tests}, "claims")
    check_choice(f"{key}.relation", claim.relation, RELATIONS)
    check_choice(f"{key}.over", claim.over, ("", "all", "any"))
    check_choice(f"{key}.only_on", claim.only_on, ("", *THESIS_DATA.values()))
    if tests and not any(test.decides and not test.premise for test in tests):
        undecided = Described("decides: false or premise: true throughout")
        refuse(f"{key}.tests", undecided, "a list with at least one test that decides")
    if (claim.only_on or (claim.number and not tests)) and not claim.lacks:
        refuse(f"{key}.lacks", NOTHING, "what is missing where the claim cannot be tested")
    return claim


def _test(entry: Mapping[str, Any], key: str) -> Condition:
    bounds = {name: number(f"{key}.tests.{name}", entry[name]) for name in BOUNDS if name in entry}
    if not bounds or not set(entry) <= {"number", "decides", "premise", *BOUNDS}:
        refuse(
            f"{key}.tests",
            dict(entry),
            f"a mapping with number, one or two of {', '.join(BOUNDS)}, and perhaps decides or "
            "premise",
        )
    return Condition(
        entry["number"], bounds, entry.get("decides", True), entry.get("premise", False)
    )

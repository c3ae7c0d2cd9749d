"""The ground that a verdict stands on: how near the measured is to what the claim is about."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from pipeline.claims import ALL, MADE_UP, SUBSETS, THESIS_DATA, Claim, Claims
from pipeline.report.text import DATA
from robustness_geometry.checks import NOTHING, one_of, refuse

__all__ = ["GROUNDS", "Ground", "Grounds", "check_kin"]

GROUNDS = ("theorem", "own", "kin", "far")
"""The grounds, nearest first."""

THEOREM, OWN, KIN, FAR = GROUNDS


@dataclass(frozen=True)
class Ground:
    """A ground and what makes it one.

    Attributes:
        name: one of GROUNDS. ``theorem``: closed forms and made-up classifiers, which test the
            code. ``own``: the thesis' data, or a part of them, and its kind of network. ``kin``:
            the same kind of picture and network, as the suite says. ``far``: anything else.
        why: a few words for the reader.
    """

    name: str
    why: str


@dataclass(frozen=True)
class Grounds:
    """All that tells the ground of a claim on a network.

    Attributes:
        claims: all claims, as one that names no network is about those of its neighbours.
        counterparts: network of the thesis -> the suite's network that answers for it.
        kin: data set of the thesis -> why the suite's pictures and networks are of its kind.
    """

    claims: Claims
    counterparts: Mapping[str, str]
    kin: Mapping[str, str]

    def of(self, claim: Claim, network: str, dataset: str) -> Ground:
        """The ground of a claim on a network.

        Args:
            claim: the claim.
            network: name of the suite's network, or ALL.
            dataset: our name of its data set; empty where it has no results.
        """
        if claim.about == MADE_UP or self._made_up(claim):
            return Ground(THEOREM, "closed forms and made-up classifiers")
        about = self.about(claim)
        data = (THESIS_DATA | SUBSETS).get(dataset, "")
        for name, model in about:
            if name == data and self._answers(claim, name, model, network):
                own = DATA.get(dataset, dataset)
                return Ground(OWN, f"{own}, for the thesis' {data} {model}".rstrip())
        names = list(dict.fromkeys(name for name, _ in about))
        for name in names:
            if name in self.kin:
                return Ground(KIN, f"for {name}: {self.kin[name]}")
        others = " or ".join(name for name in names if name != data)
        if not others:
            return Ground(FAR, "another network than the thesis'")
        return Ground(FAR, f"{DATA.get(dataset, dataset) or 'other data'} instead of {others}")

    def about(self, claim: Claim) -> list[tuple[str, str]]:
        """The pairs of data set and network that a claim is about, by their names in the thesis.

        What it does not name itself is taken from the claims of its experiment, or else from those
        of its chapter.
        """
        if claim.pictures and claim.models:
            return list(product(claim.pictures, claim.models))
        for pairs in self._neighbours(claim):
            fitting = [
                (data, model)
                for data, model in pairs
                if (not claim.pictures or data in claim.pictures)
                and (not claim.models or model in claim.models)
            ]
            if fitting:
                return fitting
        return [(data, "") for data in claim.pictures]

    def _neighbours(self, claim: Claim) -> Iterator[list[tuple[str, str]]]:
        for same in ("experiment", "chapter"):
            near = [c for c in self.claims.claims if getattr(c, same) == getattr(claim, same)]
            pairs = [pair for c in near for pair in product(c.pictures, c.models)]
            yield list(dict.fromkeys(pairs))

    def _answers(self, claim: Claim, data: str, model: str, network: str) -> bool:
        """Whether the suite names the network for one of the thesis'."""
        names = (f"{data} {model}", model)
        chosen = {name.casefold(): found for name, found in self.counterparts.items()}
        found = next((chosen[name.casefold()] for name in names if name.casefold() in chosen), None)
        return found is not None and network in (found, ALL)

    def _made_up(self, claim: Claim) -> bool:
        return any(e.made_up for e in self.claims.experiments if e.id == claim.experiment)


def check_kin(kin: Mapping[str, str]) -> None:
    """Check a suite's ``kin``.

    Raises:
        InputError: a key is no data set of the thesis, or a reason is missing.
    """
    for name, why in kin.items():
        if name not in THESIS_DATA.values():
            refuse("suite.kin", name, one_of(list(THESIS_DATA.values())))
        if not why:
            refuse(f"suite.kin.{name}", NOTHING, "why the suite's pictures are of the same kind")

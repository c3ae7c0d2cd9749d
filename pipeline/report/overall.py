"""The verdict on each claim over all suites that have results: the nearest ground decides."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from pipeline.claims import Claim, Claims, load_claims
from pipeline.report.counting import counts, tally
from pipeline.report.grounds import GROUNDS
from pipeline.report.results import read_results, with_times
from pipeline.report.text import CHAPTERS
from pipeline.report.verdicts import Verdict, judge
from pipeline.report.words import (
    ARITHMETIC,
    FAILS,
    HOLDS,
    NOT_TESTED,
    UNDECIDED,
    VERDICTS,
    outcome_of,
    word,
)
from robustness_geometry.checks import refuse

__all__ = [
    "Beside",
    "Standing",
    "Suite",
    "combine",
    "judged",
    "overall",
    "readme",
    "suites",
    "written",
]


@dataclass(frozen=True)
class Suite:
    """A suite of networks, as its configuration names it."""

    name: str
    networks: tuple[str, ...]
    counterparts: Mapping[str, str]
    kin: Mapping[str, str]


@dataclass(frozen=True)
class Beside:
    """The verdict of one suite on a claim."""

    suite: str
    verdict: str
    ground: str
    networks: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """Where a claim stands over all suites.

    Attributes:
        id: id of the claim.
        stage: its stage.
        verdict: one of VERDICTS.
        ground: one of GROUNDS; empty where nothing was tested.
        kind: "value", "relation", or "" where nothing was tested.
        test: what claims that share one test have in common.
        decided_by: the suites on the nearest ground that tested it.
        beside: the other suites that tested it.
    """

    id: str
    stage: str
    verdict: str
    ground: str
    kind: str
    test: str
    decided_by: tuple[Beside, ...] = ()
    beside: tuple[Beside, ...] = ()


def suites(root: Path) -> list[Suite]:
    """The suites that have results, in alphabetical order; those of the smoke budget say nothing.

    Args:
        root: folder of the repository, with ``conf/suite`` and ``results``.

    Raises:
        InputError: a suite's file names no networks.
    """
    found = []
    for path in sorted((root / "conf" / "suite").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = [entry for entry in content["defaults"] if isinstance(entry, dict)]
        suite = content["suite"]
        smoke = any(entry.get("override /budget") == "smoke" for entry in defaults)
        if smoke or not any((root / "results" / suite["name"]).glob("*/*/metrics.json")):
            continue
        named = [entry["/classifier"] for entry in defaults if "/classifier" in entry]
        if not named:
            refuse("defaults", str(path), "a list with the suite's networks under /classifier")
        networks = tuple(named[0]) if isinstance(named[0], list) else (named[0],)
        kin = suite.get("kin") or {}
        found.append(Suite(suite["name"], networks, suite.get("counterparts") or {}, kin))
    return found


def judged(root: Path, suite: Suite, claims: Claims) -> list[Verdict]:
    """The verdicts of a suite, computed from the metrics that are there.

    Times, which stand apart from these and are not kept with the code, come from the suite's own
    file of verdicts.

    Args:
        root: folder of the repository.
        suite: the suite.
        claims: claims to judge.
    """
    folder = root / "results" / suite.name
    return judge(
        claims,
        with_times(read_results(folder, suite.networks), folder / "claims.json", claims),
        networks=suite.networks,
        counterparts=suite.counterparts,
        kin=suite.kin,
    )


def overall(root: Path, claims: Claims | None = None) -> list[Standing]:
    """The standing of every claim, in the order of the claims file.

    Args:
        root: folder of the repository.
        claims: claims to judge; None: those of the project.
    """
    claims = claims or load_claims()
    by_suite = {suite.name: judged(root, suite, claims) for suite in suites(root)}
    return [
        combine(claim, {name: verdicts[i] for name, verdicts in by_suite.items()})
        for i, claim in enumerate(claims.claims)
    ]


def combine(claim: Claim, verdicts: Mapping[str, Verdict]) -> Standing:
    """The standing of a claim.

    The suites on the nearest ground on which it was tested decide. Of several, those that decide it
    outweigh those that leave it undecided; where they disagree, it is undecided.

    Args:
        claim: the claim.
        verdicts: suite -> its verdict.
    """
    tested = {name: verdict for name, verdict in verdicts.items() if verdict.ground}
    ground = next((g for g in GROUNDS if any(v.ground == g for v in tested.values())), "")
    if not ground:
        return Standing(claim.id, claim.stage, NOT_TESTED, "", "", "")
    near = {name: verdict for name, verdict in tested.items() if verdict.ground == ground}
    found = {_outcome(verdict) for verdict in near.values()} - {UNDECIDED}
    outcome = found.pop() if len(found) == 1 else UNDECIDED
    arithmetic = all(verdict.verdict == ARITHMETIC for verdict in near.values())
    return Standing(
        claim.id,
        claim.stage,
        ARITHMETIC if arithmetic else word(outcome, ground),
        ground,
        "value" if any(v.kind == "value" for v in near.values()) else "relation",
        " and ".join(f"{name}: {verdict.test}" for name, verdict in near.items()),
        tuple(_beside(name, verdict) for name, verdict in near.items()),
        tuple(_beside(name, v) for name, v in tested.items() if name not in near),
    )


def _outcome(verdict: Verdict) -> str:
    outcome = outcome_of(verdict.verdict)
    return outcome if outcome in (HOLDS, FAILS) else UNDECIDED


def _beside(suite: str, verdict: Verdict) -> Beside:
    networks = tuple(judgement.network for judgement in verdict.decided_by if judgement.tests)
    return Beside(suite, verdict.verdict, verdict.ground, networks)


def written(standings: Sequence[Standing], names: Iterable[str]) -> str:
    """The text of ``results/verdicts.json``: counts as in a suite's file, and every standing."""
    content = {
        "suites": sorted(names),
        "counts": counts(standings),
        "claims": [asdict(standing) for standing in standings],
    }
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def readme(standings: Sequence[Standing], names: Sequence[str]) -> str:
    """The lines of README.md that say what holds."""
    shown = VERDICTS[:5]
    whole = tally(standings)
    tested = sum(whole.claims[name] for name in shown)
    lines = [
        f"Suites with results: {', '.join(names)}. {tested} of {len(standings)} claims are tested, "
        f"by {whole.asked} distinct tests",
        f"(claims that share one count once), of which {whole.decided} are decided; "
        f"{whole.claims[ARITHMETIC]} claims are arithmetic, and",
        f"{whole.claims[NOT_TESTED]} are not tested.",
        "",
        f"| Chapter | decided / asked | {' | '.join(shown)} | claims tested |",
        f"| --- | {' | '.join(['---:'] * (len(shown) + 2))} |",
    ]
    for number, title in CHAPTERS.items():
        chosen = [standing for standing in standings if int(standing.id[2]) == number]
        lines.append(_row(f"{number} {title}", chosen))
    return "\n".join([*lines, _row("All", standings)]) + "\n"


def _row(title: str, standings: Sequence[Standing]) -> str:
    found = tally(standings)
    claims = sum(found.claims[name] for name in VERDICTS[:5])
    words = " | ".join(str(found.tests[name]) for name in VERDICTS[:5])
    return f"| {title} | {found.decided} / {found.asked} | {words} | {claims} of {len(standings)} |"

"""The page over all suites: each distinct test, where it was decided, and what stands beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.claims import Claim, Claims, load_claims
from pipeline.ledger import write_own
from pipeline.report.counting import by_test, tally
from pipeline.report.overall import Standing, overall, suites
from pipeline.report.template import BRAND, environment, style
from pipeline.report.text import CHAPTERS
from pipeline.report.words import NEGATIVE

__all__ = ["write_overall"]


@dataclass(frozen=True)
class Row:
    """A distinct test: its standing, and the claims that share it."""

    standing: Standing
    claims: tuple[Claim, ...]


def write_overall(root: Path, claims: Claims | None = None) -> Path | None:
    """Write ``reports/index.html``, what holds over all suites that have results.

    Args:
        root: folder of the repository.
        claims: claims to judge; None: those of the project.

    Returns:
        The page's path; None without any results.

    Raises:
        InputError: a results file is not what a stage writes, or a suite's file is not one.
    """
    names = [suite.name for suite in suites(root)]
    if not names:
        return None
    claims = claims or load_claims()
    standings = overall(root, claims)
    rows = _rows(standings, claims)
    failing: dict[str, list[Row]] = {}
    for row in rows:
        if row.standing.verdict in NEGATIVE:
            failing.setdefault(row.claims[0].reason, []).append(row)
    chapters = [
        (
            number,
            title,
            tally([standing for standing in standings if int(standing.id[2]) == number]),
            [row for row in rows if row.claims[0].chapter == number],
        )
        for number, title in CHAPTERS.items()
    ]
    text = (
        environment()
        .get_template("overall.html")
        .render(
            suites=names,
            summary=tally(standings),
            chapters=chapters,
            failing=failing,
            claims=claims,
            style=style(),
        )
    )
    page = root / "reports" / "index.html"
    write_own(page, text, lambda found: BRAND in found)
    return page


def _rows(standings: Sequence[Standing], claims: Claims) -> list[Row]:
    by_id = {claim.id: claim for claim in claims.claims}
    rows = []
    for test in by_test(standings):
        shared = [standing.id for standing in standings if standing.test == test.test]
        shared.sort(key=lambda name: name != test.id)
        standing = next(standing for standing in standings if standing.id == test.id)
        rows.append(Row(standing, tuple(by_id[name] for name in shared)))
    return rows

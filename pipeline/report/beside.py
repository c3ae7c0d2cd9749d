"""The tables of the thesis with our rows beside its own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.claims import ALL, Claim, Experiment
from pipeline.report.origins import Page
from pipeline.report.results import Measured, Results
from pipeline.report.text import counts_text, estimate_text, label, printed
from pipeline.report.verdicts import Verdict

__all__ = ["BesideTable", "Cell", "Material", "Row", "beside_tables", "cell", "thesis_value"]


@dataclass(frozen=True)
class Material:
    """What the views are made of.

    Attributes:
        experiments: experiments that the claims file declares.
        judged: claims with their verdicts.
        results: what was measured.
        networks: networks of the suite.
        page: what the page says of the origin of results.
    """

    experiments: Sequence[Experiment]
    judged: Sequence[tuple[Claim, Verdict]]
    results: Results
    networks: Sequence[str]
    page: Page = field(default_factory=Page)


@dataclass(frozen=True)
class Cell:
    """A number and its interval."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        title: network, or the text of a heading.
        kind: "ours", "thesis", or "apart": a heading over rows for which none of our networks
            answers.
        cells: numbers.
    """

    title: str
    kind: str
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class BesideTable:
    """A table of the thesis with our rows beside its own.

    Attributes:
        title: number of the table in the thesis.
        columns: headings.
        rows: rows of both.
        counts: images and training seeds behind our rows.
        across: whether it has a row and a column per network.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    counts: str
    across: bool = False


def cell(measured: Measured | None, name: str) -> Cell:
    """A number of an experiment on a network; a dash where there is none."""
    if measured is None or name not in measured.numbers:
        return Cell("–")
    return Cell(*estimate_text(name, measured.numbers[name]))


def beside_tables(experiment: Experiment, material: Material) -> list[BesideTable]:
    """The tables of the thesis that an experiment repeats.

    The row of a network of ours stands above the rows of the thesis for which it answers. A table
    that several experiments fill is shown, whole, with the one that fills most of it.
    """
    filled = [
        pair for pair in material.judged if pair[0].where.startswith("Table") and pair[0].number
    ]
    if experiment.across:  # what a table says of single pairs of networks
        filled = [
            pair for pair in filled if {"source_model", "target_model"} <= set(pair[0].setting)
        ]
    tables = []
    for where in dict.fromkeys(
        claim.where for claim, _ in filled if claim.experiment == experiment.id
    ):
        entries = [pair for pair in filled if pair[0].where == where]
        owner = Counter(claim.experiment for claim, _ in entries).most_common(1)[0][0]
        if owner != experiment.id:
            entries = [pair for pair in entries if pair[0].experiment == experiment.id]
        tables.append((_across if experiment.across else _beside)(where, entries, material))
    return tables


def _across(
    where: str, entries: Sequence[tuple[Claim, Verdict]], material: Material
) -> BesideTable:
    """A table of pairs, with a row per source of a perturbation and a column per target."""
    pairs = {
        (str(c.setting["source_model"]), str(c.setting["target_model"])): c for c, _ in entries
    }
    found = material.results.get(entries[0][0].experiment.replace("-", "_"), {}).get(ALL)
    targets = list(dict.fromkeys(target for _, target in pairs))
    rows: list[Row] = []
    for source in dict.fromkeys(source for source, _ in pairs):
        claims = [pairs.get((source, target)) for target in targets]
        rows.append(
            Row(
                source,
                "ours",
                tuple(cell(found, claim.number) if claim else Cell("–") for claim in claims),
            )
        )
        rows.append(
            Row(
                source,
                "thesis",
                tuple(Cell(thesis_value(claim) if claim else "–") for claim in claims),
            )
        )
    measured = found.numbers if found else {}
    estimates = [measured[claim.number] for claim in pairs.values() if claim.number in measured]
    counts = counts_text((estimate.n, estimate.seeds) for estimate in estimates)
    return BesideTable(where, tuple(targets), tuple(rows), counts, across=True)


def _beside(
    where: str, entries: Sequence[tuple[Claim, Verdict]], material: Material
) -> BesideTable:
    columns = {claim.number: claim.experiment.replace("-", "_") for claim, _ in entries}
    thesis = _thesis_rows(entries, list(columns))
    rows: list[Row] = []
    estimates: list[tuple[int, int]] = []
    for network in material.networks:
        found = {
            number: material.results.get(name, {}).get(network) for number, name in columns.items()
        }
        cells = tuple(cell(measured, number) for number, measured in found.items())
        rows.append(Row(network, "ours", cells))
        rows += thesis.get(network, [])
        known = [m.numbers[number] for number, m in found.items() if m and number in m.numbers]
        estimates += [(estimate.n, estimate.seeds) for estimate in known]
    if apart := thesis.get(""):
        rows += [Row("No network of this suite answers for", "apart"), *apart]
    return BesideTable(
        where, tuple(label(number) for number in columns), tuple(rows), counts_text(estimates)
    )


def _thesis_rows(
    entries: Sequence[tuple[Claim, Verdict]], columns: Sequence[str]
) -> dict[str, list[Row]]:
    """Network of ours ("" for none) -> the rows of the thesis for which it answers."""
    printed_cells: dict[tuple[str, str], dict[str, Cell]] = {}
    for claim, verdict in entries:
        title = f"{claim.setting.get('dataset', '')} {claim.setting.get('model', '')}".strip()
        printed_cells.setdefault((_answers(verdict), title), {})[claim.number] = Cell(
            thesis_value(claim)
        )
    rows: dict[str, list[Row]] = {}
    for (network, title), cells in printed_cells.items():
        row = Row(title, "thesis", tuple(cells.get(number, Cell("–")) for number in columns))
        rows.setdefault(network, []).append(row)
    return rows


def _answers(verdict: Verdict) -> str:
    """The suite's network for that of a claim; empty where only the default one answers."""
    named = [judgement.network for judgement in verdict.decided_by]
    return named[0] if verdict.named and named else ""


def thesis_value(claim: Claim) -> str:
    """The number that the thesis prints, with its unit; empty where it prints none."""
    if claim.value is None:
        return ""
    name = claim.number or (
        "" if claim.value > 1 else f"share_{claim.id}" if _is_share(claim) else ""
    )
    return printed(name, claim.value, relation=claim.relation, spread=claim.spread)


def _is_share(claim: Claim) -> bool:
    return any(
        word in claim.quantity
        for word in ("fooling", "accuracy", "error", "share of", "probability")
    )

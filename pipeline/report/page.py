"""Writing the report: one self-contained HTML file, and the verdicts as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.claims import ALL, Claims, load_claims
from pipeline.ledger import write_own
from pipeline.report.beside import Material
from pipeline.report.counting import tally
from pipeline.report.freshness import Freshness
from pipeline.report.front import chapter_fronts, failures, network_words
from pipeline.report.origins import Page
from pipeline.report.provenance import committed
from pipeline.report.results import Results, read_results, with_times
from pipeline.report.template import BRAND, environment, style
from pipeline.report.text import estimate_text
from pipeline.report.verdicts import Verdict, judge, write_verdicts
from pipeline.report.views import beyond_views, chapter_views
from pipeline.report.words import ARITHMETIC, NOT_TESTED

__all__ = ["write_report"]


@dataclass(frozen=True)
class NetworkView:
    """A network of the suite, as the table of networks shows it."""

    name: str
    dataset: str
    model: str
    seeds: str
    error: str
    answers: str
    default: bool


def write_report(
    suite: str,
    results: Path,
    reports: Path,
    *,
    networks: Mapping[str, Mapping[str, Any]],
    counterparts: Mapping[str, str],
    provenance: Mapping[str, str],
    kin: Mapping[str, str] | None = None,
    description: str = "",
    claims: Claims | None = None,
    coming: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Judge every claim by the results of a suite, and write the page and the verdicts.

    Writes ``reports/<suite>/index.html`` and ``results/<suite>/claims.json``, each atomically.
    Stages, experiments and figures that are missing are named in the page.

    Args:
        suite: name of the suite.
        results: folder that holds ``<suite>/<stage>/<network>/``.
        reports: folder in which the page's folder is made.
        networks: networks of the suite in order, each with its ``dataset`` and ``model``, a name or
            a leaf of the configuration (``_target_`` and options).
        counterparts: networks of the thesis -> the suite's network that answers for them; see
            :func:`~.verdicts.judge`.
        provenance: versions, seeds, commit, device ...: label -> text, shown as given.
        kin: data set of the thesis -> why the suite's pictures and networks are of its kind.
        description: one sentence on the suite.
        claims: claims to judge; None: those of the project.
        coming: stage or experiment -> the networks that a run under way still is to measure, all
            where it is not listed; None: no run is under way.

    Returns:
        The page's path.

    Raises:
        InputError: a results file is not what a stage writes.
    """
    claims = (claims or load_claims()).on(counterparts)
    verdicts_file = results / suite / "claims.json"
    found = with_times(read_results(results / suite, networks), verdicts_file, claims)
    verdicts = judge(claims, found, networks=list(networks), counterparts=counterparts, kin=kin)
    write_verdicts(verdicts_file, suite, claims, verdicts)
    judged = list(zip(claims.claims, verdicts, strict=True))
    made = Page(reports / suite, Freshness(results.parent), _commits(found, results, suite), coming)
    material = Material(claims.experiments, judged, found, list(networks), made)
    chapters, beyond = chapter_views(material), beyond_views(material)
    views = [_network(name, spec, found, counterparts) for name, spec in networks.items()]
    words = network_words(
        {
            view.name: (_leaf(spec.get("model", "")).split(",")[0], view.dataset)
            for view, spec in zip(views, networks.values(), strict=True)
        }
    )
    text = (
        environment()
        .get_template("page.html")
        .render(
            suite=suite,
            description=description,
            provenance=provenance,
            networks=views,
            words=words,
            fronts=chapter_fronts(material, words),
            failures=failures(judged, words),
            chapters=chapters,
            beyond=beyond,
            awaited=list(dict.fromkeys(name for each in chapters for name in each.awaited)),
            under_way=coming is not None,
            link=made.link,
            summary=tally(verdicts),
            tested=sum(
                1 for verdict in verdicts if verdict.verdict not in (ARITHMETIC, NOT_TESTED)
            ),
            reasons=_reasons(verdicts),
            missing=_missing(claims, found, list(networks)),
            claims=claims,
            style=style(),
        )
    )
    page = reports / suite / "index.html"
    write_own(page, text, lambda found: BRAND in found)
    return page


def _commits(results: Results, place: Path, suite: str) -> Mapping[Path, str]:
    """The commits of results whose runs noted none, such as those of a fresh checkout."""
    unknown = any(not m.origin.get("commit") for each in results.values() for m in each.values())
    return committed(place.parent, place / suite) if unknown else {}


def _network(
    name: str, spec: Mapping[str, Any], results: Results, counterparts: Mapping[str, str]
) -> NetworkView:
    measured = [entry[name] for entry in results.values() if name in entry]
    seeds = sorted({seed for each in measured for seed in each.training_seeds})
    trained = results.get("train_classifiers", {}).get(name)
    error = trained.numbers.get("test_error") if trained else None
    answers: dict[str, str] = {}
    for key, network in counterparts.items():
        if network == name:
            answers.setdefault(key.casefold(), key)
    return NetworkView(
        name=name,
        dataset=measured[0].dataset if measured else _leaf(spec.get("dataset", "")),
        model=_leaf(spec.get("model", "")),
        seeds=", ".join(str(seed) for seed in seeds),
        error=" ".join(estimate_text("test_error", error)) if error else "",
        answers=", ".join(title for key, title in answers.items() if key != "default"),
        default="default" in answers,
    )


def _leaf(leaf: object) -> str:
    """A configuration leaf in words: the function's name and its options."""
    if not isinstance(leaf, Mapping):
        return str(leaf)
    given = {str(key): value for key, value in leaf.items() if value is not None}
    options = [f"{key}={value}" for key, value in given.items() if not key.startswith("_")]
    return ", ".join([given.get("_target_", "").rpartition(".")[2], *options]).strip(", ")


def _reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Why claims are not tested -> how many."""
    reasons = [verdict.why for verdict in verdicts if verdict.verdict == NOT_TESTED]
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def _missing(claims: Claims, results: Results, networks: Sequence[str]) -> list[str]:
    """Stages and single experiments without results, of those that claims are tested on."""
    tested = {claim.experiment for claim in claims.claims if claim.tests}
    wanted = [experiment for experiment in claims.experiments if experiment.id in tested]
    lines = []
    for stage in dict.fromkeys(experiment.run_by for experiment in wanted):
        own = [experiment for experiment in wanted if experiment.run_by == stage]
        for network in (ALL,) if own[0].across else networks:
            absent = [each.name for each in own if network not in results.get(each.name, {})]
            if len(absent) == len(own):
                lines.append(f"no results of stage {stage} for {network}")
            else:
                lines += [f"{name} has not run on {network}" for name in absent]
    return lines

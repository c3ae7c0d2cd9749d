"""Writes the report from the results that are there, and logs it."""

from dataclasses import asdict
from pathlib import Path

from pipeline import tracking
from pipeline.report import provenance, write_overall, write_report
from pipeline.storage import check_folder, refuse_full_disk
from stages.command_line import command_line
from stages.config import Config, typed
from stages.meanwhile import page_lock, under_way

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent.parent.parent


def write(config: Config) -> None:
    """Write the suite's page and verdicts from the results that are there, and log both.

    The page over all suites is written beside them.
    """
    suite = config.suite
    for name in ("results", "reports"):
        check_folder(name, ROOT / name / suite.name)
    settings = typed(tracking.Settings, config.tracking, "tracking")
    with tracking.stage_run(
        settings,
        stage="report",
        network="all",
        suite=suite.name,
        parameters={"suite": suite.name, "networks": list(config.networks)},
        tags={},
    ) as run:
        with refuse_full_disk(ROOT), page_lock(Path(config.executor["work"]), suite.name):
            page = write_report(
                suite.name,
                ROOT / "results",
                ROOT / "reports",
                networks={name: asdict(network) for name, network in config.networks.items()},
                counterparts=suite.counterparts,
                kin=suite.kin,
                provenance={
                    "Training seeds": ", ".join(map(str, config.seeds)),
                    **provenance(ROOT),
                },
                description=suite.description,
                coming=suite.networks if under_way() else None,
            )
        run.log_report(page, ROOT / "results" / suite.name / "claims.json")
        with refuse_full_disk(ROOT):
            write_overall(ROOT)
    print(f"report: {page.relative_to(ROOT)}")


def main() -> None:
    """The command line of ``python -m stages.report``."""
    command_line("report", write)

"""The command line that every stage shares: Hydra, and one line for what it cannot use."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from robustness_geometry.checks import InputError
from robustness_geometry.training import TrainingDiverged
from stages.config import Config, read

__all__ = ["command_line"]

CONF = Path(__file__).resolve().parent.parent / "conf"


def command_line(stage: str, run: Callable[[Config], None]) -> None:
    """Call ``run`` with the checked configuration; a configuration or data error is one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    )
    sys.argv[1:] = _named(stage, sys.argv[1:])
    name = (
        stage if (CONF / f"{stage}.yaml").exists() else "config"
    )  # some stages compose a configuration of their own

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)  # type: ignore[untyped-decorator]
    def application(raw: DictConfig) -> None:
        try:  # here, as Hydra prints lines of its own about an exception that leaves a job
            run(read(raw))
        except InputError as error:
            _stop(stage, error, 2)
        except TrainingDiverged as error:
            _stop(stage, error, 1)

    try:
        application()
    except (HydraException, OmegaConfBaseException) as error:
        _stop(stage, error, 2)


def _named(stage: str, arguments: list[str]) -> list[str]:
    """The command line with the job's name beside the other overrides, which argparse wants in one place."""
    where = next(
        (i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")), len(arguments)
    )
    return [*arguments[:where], f"hydra.job.name={stage}", *arguments[where:]]


def _stop(stage: str, error: Exception, code: int) -> NoReturn:
    """Print the error as one line and leave with ``code``."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"{stage}: {' '.join(lines) or type(error).__name__}", file=sys.stderr)
    sys.exit(code)

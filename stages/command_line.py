"""The command line that every stage shares: Hydra, and one line for what it cannot use."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.checks import InputError
from pipeline.training import TrainingDiverged
from stages.config import Config, read

__all__ = ["command_line"]

CONF = Path(__file__).resolve().parent.parent / "conf"


def command_line(stage: str, run: Callable[[Config], None]) -> None:
    """Call ``run`` with the checked configuration; a configuration or data error is one line and exit code 2."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them and exiting with 1
    sys.argv[1:] = _named(stage, sys.argv[1:])

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")  # type: ignore[untyped-decorator]
    def application(raw: DictConfig) -> None:
        run(read(raw))

    try:
        application()
    except (InputError, HydraException, OmegaConfBaseException) as error:
        print(f"{stage}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except TrainingDiverged as error:
        print(f"{stage}: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _named(stage: str, arguments: list[str]) -> list[str]:
    """The command line with the job's name beside the other overrides, which argparse wants in one place."""
    where = next((i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")), len(arguments))
    return [*arguments[:where], f"hydra.job.name={stage}", *arguments[where:]]


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__

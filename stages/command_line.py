"""The command line that every stage shares: Hydra, and one line for what it cannot use."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipeline.faults import fault, is_out_of_memory
from robustness_geometry.checks import InputError
from robustness_geometry.training import TrainingDiverged
from stages.config import Config, read
from stages.mistakes import explained
from stages.overrides import prepared, with_origins
from stages.sweeps import Sweep, is_swept, one_line

__all__ = ["command_line"]

CONF = Path(__file__).resolve().parent.parent / "conf"

Check = Callable[[Config, DictConfig, Sequence[str]], None]
"""Called with the checked configuration, the raw one, and the overrides of the command line."""


Outcome = tuple[str, int, Exception | None]


def command_line(stage: str, run: Callable[[Config], None], check: Check | None = None) -> None:
    """Call ``run`` with the checked configuration.

    A configuration or data error is one line and exit code 2. In a sweep it does not stop the other
    runs; the end names those that failed.

    Args:
        stage: the name of the stage.
        run: what the stage does.
        check: refuses, before that, what the stage cannot use.
    """
    # Hydra then raises its errors instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    logging.raiseExceptions = False  # a log on a full disk must not print traces of its own
    sys.argv[1:] = _with_name(stage, prepared(sys.argv[1:]))
    # Some stages compose a configuration of their own.
    name = stage if (CONF / f"{stage}.yaml").exists() else "config"
    sweep = Sweep(stage)
    running = False

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)  # type: ignore[untyped-decorator]
    def application(raw: DictConfig) -> int:
        nonlocal running
        running = True
        # Here, as Hydra prints lines of its own about an exception that leaves a job.
        ended = _outcome(stage, raw, partial(_work, raw, run, check))
        return sweep.end(*ended) if is_swept() else _end(stage, *ended)

    try:
        application()
    except SystemExit as stopped:
        if isinstance(stopped.code, InputError):  # what a whole sweep needs was refused
            _stop(stage, str(stopped.code), 2)
        raise
    except Exception as error:
        reason, code = _why(error, name, running)
        if not reason:
            raise
        _stop(stage, reason, code)
    sweep.finish()


def _why(error: Exception, name: str, running: bool) -> tuple[str, int]:
    """Why a command line ended, and its exit code; no reason for an error of the program."""
    if isinstance(error, InputError):
        return str(error), 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explained(error, name), 2
    if isinstance(error, OSError) and not running:
        return f"the folder of this run cannot be made, see hydra.run.dir: {error}", 2
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError) and not running:
        wanted = "make params writes params.yaml anew; git restores what lies in conf"
        return f"a file of the configuration is damaged: {error}: {wanted}", 2
    return fault(error) or "", 1


def _work(raw: DictConfig, run: Callable[[Config], None], check: Check | None) -> None:
    config = read(raw)
    if check is not None:
        check(config, raw, list(HydraConfig.get().overrides.task))
    run(config)


def _outcome(stage: str, raw: DictConfig, work: Callable[[], None]) -> Outcome:
    """Why a run failed, its exit code, and an error whose trace is worth showing."""
    try:
        work()
    except InputError as error:
        if is_out_of_memory(error):  # which looks like bad input to what was tried and failed
            return one_line(fault(error) or ""), 1, None
        return one_line(with_origins(str(error), stage, raw)), 2, None
    except (HydraException, OmegaConfBaseException) as error:
        return one_line(str(error)), 2, None
    except TrainingDiverged as error:
        return one_line(str(error)), 1, None
    except Exception as error:
        if sentence := fault(error):
            return one_line(sentence), 1, None
        return one_line(f"{type(error).__name__}: {error}"), 1, error
    return "", 0, None


def _end(stage: str, reason: str, code: int, error: Exception | None) -> int:
    """End a single run: a failure ends the process."""
    if error is not None:
        raise error
    if code:
        _stop(stage, reason, code)
    return code


def _explained(error: Exception, name: str) -> str:
    given = get_args_parser().parse_args(sys.argv[1:])
    folder, name = given.config_dir or str(CONF), given.config_name or name
    where = str(Path(folder).resolve())
    if given.config_dir and (missing := _missing(Path(where, f"{name}.yaml"))):
        return f"{name}.yaml is damaged: it lacks {missing}; make params writes params.yaml anew"
    return explained(error, given.overrides, where, name, multirun=given.multirun)


def _missing(path: Path) -> str:
    """The blocks that a composed configuration lacks, as one that was cut short does."""
    if not path.is_file():
        return ""
    content = yaml.safe_load(path.read_text("utf-8")) or {}
    if not isinstance(content, dict):
        return "keys"
    blocks = () if "defaults" in content else ("suite", "networks", "seeds", "executor", "tracking")
    return ", ".join(block for block in blocks if block not in content)


def _with_name(stage: str, arguments: Sequence[str]) -> list[str]:
    """The command line with the job's name.

    It stands beside the other overrides, which argparse wants in one place.
    """
    where = next(
        (i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-")), len(arguments)
    )
    return [*arguments[:where], f"hydra.job.name={stage}", *arguments[where:]]


def _stop(stage: str, text: str, code: int) -> NoReturn:
    """Print an error as one line and leave with ``code``."""
    print(f"{stage}: {one_line(text)}", file=sys.stderr)
    sys.exit(code)

"""Where Hydra writes: it would overwrite files of its own names, whoever's they are."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipeline.ledger import RUN, there
from robustness_geometry.checks import InputError, refuse

__all__ = ["Places"]


class Places(Callback):  # type: ignore[misc]
    """A Hydra callback: refuses a folder in which another program's runs of Hydra lie.

    What is refused leaves as a SystemExit whose code is the :class:`InputError`, as Hydra would
    only warn of another exception.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check the folder of a single run."""
        folder = Path(OmegaConf.select(config, "hydra.run.dir"))
        _check("hydra.run.dir", folder, folder / ".hydra" / "hydra.yaml")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the folder of a sweep, and those of the runs that lie in it."""
        folder = Path(OmegaConf.select(config, "hydra.sweep.dir"))
        for path in (folder / "multirun.yaml", *sorted(folder.glob("*/.hydra/hydra.yaml"))):
            _check("hydra.sweep.dir", folder, path)


def _check(key: str, folder: Path, path: Path) -> None:
    if not there(path) or _is_ours(path):
        return
    name = path.relative_to(folder).as_posix()
    try:
        refuse(key, str(folder), f"a folder without a {name} of another program")
    except InputError as error:
        raise SystemExit(error) from error


def _is_ours(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return RUN.search(path.read_text("utf-8", errors="replace")) is not None

"""params.yaml is ``conf/base.yaml`` composed: write it, or check that it has not drifted.

``python -m pipeline.params`` writes it, ``python -m pipeline.params --check`` exits with 1 when it
differs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent


def composed(overrides: Sequence[str] = ()) -> str:
    """The text of params.yaml for ``conf/base.yaml`` with ``overrides`` such as ``suite=smoke``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("base", list(overrides))
    OmegaConf.resolve(config)
    return OmegaConf.to_yaml(config)


def main(arguments: Sequence[str]) -> int:
    """Write or check params.yaml; returns the exit code."""
    path = ROOT / "params.yaml"
    if list(arguments) == ["--check"]:
        current = path.read_text(encoding="utf-8") if path.exists() else ""
        if current == composed():
            return 0
        print("params.yaml differs from what conf/ composes to: run make params", file=sys.stderr)
        return 1
    temporary = path.with_suffix(".tmp")
    temporary.write_text(composed(arguments), encoding="utf-8")
    temporary.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

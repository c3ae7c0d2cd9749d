"""Settings of one experiment that only repeat those of its stage, as conf/defaults.yaml has them.

They stand there, as ``samples: ${cure.samples}``, so that DVC can set them for one experiment.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

__all__ = ["without_links"]

ROOT = Path(__file__).resolve().parent.parent


def without_links(raw: DictConfig) -> DictConfig:
    """The configuration without settings that repeat their stage's: the stage's then hold.

    Args:
        raw: a composed configuration, in which they are interpolations, or params.yaml with
            overrides, in which they are the values that the stage has in the file.
    """
    settings = raw.get("settings")
    if not isinstance(settings, DictConfig):
        return raw
    raw = raw.copy()
    for experiment, key, link in _links():
        own = raw.settings.get(experiment)
        node: Any = own._get_node(key) if isinstance(own, DictConfig) else None
        if node is not None and _repeats(node, link):
            with open_dict(own):
                del own[key]
    return raw


def _repeats(node: Any, link: str) -> bool:
    if node._is_interpolation():
        return bool(node._value() == link)
    stage, key = link[2:-1].split(".")
    plain = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
    block = _read("params.yaml").get(stage) or {}
    return key in block and bool(block[key] == plain)


@cache
def _links() -> list[tuple[str, str, str]]:
    return list(_found(_read("conf/defaults.yaml").get("settings", {})))


def _found(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Experiment, key and link of every setting that is one."""
    for experiment, own in settings.items():
        for key, value in own.items():
            if isinstance(value, str) and value.startswith("${"):
                yield experiment, key, value


@cache
def _read(name: str) -> dict[str, Any]:
    path = ROOT / name
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}

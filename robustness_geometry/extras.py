"""Optional packages: imported where they are used, with one line that says how to get them."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from robustness_geometry.checks import NOTHING, refuse

__all__ = ["folder", "require"]


def require(module: str, extra: str) -> ModuleType:
    """Import ``module`` of an optional package.

    Args:
        module: the module's full name, such as ``torchvision.datasets``.
        extra: the extra of this package that installs it.

    Raises:
        InputError: the package cannot be imported; the text names it and the extra.

    Example:
        >>> from robustness_geometry.extras import require
        >>> require("json", extra="examples").dumps([1, 2])
        '[1, 2]'
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        _absent(module, extra)


def folder(package: str, extra: str) -> Path:
    """The folder of an optional package that is installed, without importing it.

    Args:
        package: the package's name.
        extra: the extra of this package that installs it.

    Raises:
        InputError: the package is not installed; the text names it and the extra.

    Example:
        >>> from robustness_geometry.extras import folder
        >>> folder("json", extra="examples").name
        'json'
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        _absent(package, extra)
    return Path(spec.origin).parent


def _absent(module: str, extra: str) -> NoReturn:
    package = module.partition(".")[0]
    command = f"pip install robustness-geometry[{extra}]"
    refuse(f"package {package}", NOTHING, f"installed: {command}")

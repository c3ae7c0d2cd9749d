"""The extension of griffe, which reads the docstrings, that rewrites them for the site."""

from typing import Any

from griffe import Extension

from docsite.docstrings import as_markdown

__all__ = ["Docstrings"]


class Docstrings(Extension):  # type: ignore[misc]  # griffe is only where the site is built
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """Rewrite the docstring of one module, class or function."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

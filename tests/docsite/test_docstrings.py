"""Docstrings become Markdown: cross-references, examples and tables."""

import doctest

import pytest

from docsite import docstrings, gallery, hooks
from docsite.docstrings import as_markdown


@pytest.mark.parametrize("module", [docstrings, gallery, hooks])
def test_the_examples_run(module):
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (
            "See :func:`robustness_geometry.norms.norms`.",
            'See <autoref identifier="robustness_geometry.norms.norms" optional>'
            "<code>norms.norms</code></autoref>.",
        ),
        ("See :class:`Section` and :mod:`.assembly`.", "See `Section` and `assembly`."),
        ("With ``clip=None``.", "With `clip=None`."),
        ("== ==\na  b\n== ==\n1  2\n== ==\n", "```text\n== ==\na  b\n== ==\n1  2\n== ==\n```\n"),
        (">>> f(\n...     1\n... )\n2\n\nNext ``a``.", None),
    ],
)
def test_each_form_is_rewritten(written, shown):
    if shown is None:
        shown = "```pycon\n>>> f(\n...     1\n... )\n2\n```\n\nNext `a`."
    assert as_markdown(written) == shown


def test_an_example_at_the_end_is_closed():
    assert as_markdown("    >>> 1\n    1") == "    ```pycon\n    >>> 1\n    1\n    ```"

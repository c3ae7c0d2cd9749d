"""Docstrings as the site shows them: references, examples and tables in Markdown."""

import re

__all__ = ["as_markdown"]

ROLE = re.compile(r":(?:func|class|mod|attr|meth|data):`~?([\w.]+)`")
CODE = re.compile(r"``([^`]+)``")
RULE = re.compile(r"^=+( +=+)+$")


def as_markdown(text: str) -> str:
    """A docstring whose roles, examples and tables are Markdown.

    Roles become cross-references, and plain code where the site has no such name. Examples with
    ``>>>`` and tables between rows of ``====`` become blocks of code.

    Example:
        >>> as_markdown("See :func:`.find_path` with ``depth=3``.")
        'See `find_path` with `depth=3`.'
    """
    lines: list[str] = []
    closing = ""  # the indentation of the open block, with its fence
    for line in text.split("\n"):
        bare = line.strip()
        space = line[: len(line) - len(line.lstrip())]
        example, rule = bare.startswith(">>>"), bool(RULE.match(bare))
        if not closing and (example or rule):
            closing = f"{space}```"
            lines += [f"{space}```{'pycon' if example else 'text'}"]
        elif closing and not bare:
            lines.append(closing)
            closing = ""
        lines.append(line if closing else _inline(line))
    return "\n".join([*lines, closing] if closing else lines)


def _inline(line: str) -> str:
    return ROLE.sub(_reference, CODE.sub(r"`\1`", line))


def _reference(role: "re.Match[str]") -> str:
    name = role[1]
    shown = name.removeprefix("robustness_geometry.").lstrip(".")
    if not name.startswith("robustness_geometry."):
        return f"`{shown}`"
    return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'

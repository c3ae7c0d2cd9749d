"""Find dead links in a built site, and whatever it would load from another host.

``python -m docsite.links site`` exits with 1 and names each of them.
"""

import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Page", "dead_links", "main"]

LOADED = {"script", "img", "iframe", "source", "video", "audio", "embed", "object"}
"""Elements whose address a browser loads by itself, beside style sheets and icons."""

FETCHED = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest"}


class Page(HTMLParser):
    """The links and the anchors of a page.

    Attributes:
        anchors: what a fragment can name.
        links: addresses that a reader can follow.
        loaded: addresses that the browser loads.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what an element names and refers to."""
        given = {name: value for name, value in attrs if value is not None}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "link" and not FETCHED & set(given.get("rel", "").split()):
            return
        loaded = tag in LOADED or tag == "link"
        for name in ("href", "src", "data"):
            if name in given and (name != "data" or tag == "object"):
                (self.loaded if loaded else self.links).append(given[name])


def dead_links(site: Path) -> list[str]:
    """One line for each link of the site that leads nowhere, or that loads from another host.

    Args:
        site: the folder of a built site.
    """
    root = site.resolve()
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in root.rglob("*.html")}
    return [
        f"{path.relative_to(root)}: {problem}"
        for path, page in sorted(pages.items())
        for problem in _problems(root, path, page, pages)
    ]


def _problems(root: Path, path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    for address in page.loaded:
        if urlsplit(address).netloc:
            yield f"{address} is loaded from another host"
    for address in dict.fromkeys([*page.links, *page.loaded]):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        name = unquote(parts.path)
        start = root if name.startswith("/") or path.name == "404.html" else path.parent
        target = (start / name.lstrip("/")).resolve() if name not in ("", ".") else path
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"{address} leads nowhere"
        elif parts.fragment and target in pages and not _is_there(parts.fragment, pages[target]):
            yield f"{address}: no such place on that page"


def _is_there(fragment: str, page: Page) -> bool:
    return unquote(fragment) in page.anchors


def main(arguments: Sequence[str]) -> int:
    """Print the dead links of the site in a folder; returns the exit code."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.html").is_file():
        print("python -m docsite.links FOLDER: a built site, with index.html", file=sys.stderr)
        return 2
    found = dead_links(Path(arguments[0]))
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

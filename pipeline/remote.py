"""Where a team keeps its results: the default remote of DVC, of this checkout alone.

``python -m pipeline.remote s3://BUCKET/PATH`` checks that the place answers and writes it to
``.dvc/config.local``; ``dvc push`` and ``dvc pull`` then need no further options. Keys are never
written: DVC takes them from the environment or from ~/.aws, as every program for S3 does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import servers
from pipeline.processes import root
from robustness_geometry.checks import NOTHING, InputError, refuse
from robustness_geometry.extras import require

__all__ = ["main", "set_remote"]

NAME = "team"
"""The remote's name in DVC."""

PATIENCE = 30.0
"""Seconds that a place may take to list what it holds."""


def set_remote(url: str, endpoint: str | None = None, region: str | None = None) -> Path:
    """Make ``url`` the default remote of DVC, if it answers.

    Args:
        url: ``s3://BUCKET/PATH``, a folder, or any other address that DVC takes.
        endpoint: address of a server that speaks S3; None: AWS, or what ~/.aws says.
        region: its region; None: what the environment or ~/.aws says.

    Returns:
        The file that says so.

    Raises:
        InputError: the place does not answer, is not there, or does not let this user in.
    """
    given = {"url": url, "endpointurl": endpoint, "region": region}
    options = {name: value for name, value in given.items() if value is not None}
    if urlsplit(url).scheme == "s3":
        require("dvc_s3", extra="s3")
    elif endpoint or region:
        refuse("ENDPOINT" if endpoint else "REGION", endpoint or region, "left out unless URL=s3:")
    if endpoint is not None:
        servers.check_server(endpoint, "ENDPOINT")
    _check(options)
    from dvc.config import Config  # takes a second

    folder = root() / ".dvc"
    with Config(str(folder)).edit("local") as config:
        config["remote"][NAME] = options
        config["core"]["remote"] = NAME
    return folder / "config.local"


def _check(options: dict[str, str]) -> None:
    """Check that what is under an address can be listed."""
    from dvc.fs import get_cloud_fs  # takes a second

    try:
        kind, config, path = get_cloud_fs({}, **options)
        place = kind(**config)
        place.fs  # noqa: B018  # imports the driver, which takes seconds, before the clock runs
        done = servers.within(PATIENCE, lambda: _list(place, path))
    except FileNotFoundError:
        refuse("URL", options["url"], "in a bucket, or a folder, that exists")
    except Exception as error:  # of DVC, or of any of its file systems
        reason = " ".join(str(error).split()) or type(error).__name__
        refuse("URL", options["url"], f"a place that DVC can use ({reason})")
    if not done:
        refuse("URL", options["url"], f"a place that answers (none did within {PATIENCE:.0f} s)")


def _list(place: Any, path: str) -> None:
    """Look at a path of a file system of DVC; one that is not there yet is fine in a bucket."""
    if place.protocol == "local":  # DVC would make it, also where a disk is not mounted
        if not Path(path).is_dir():
            raise FileNotFoundError(path)
    elif not place.exists(path):
        place.ls(path.partition("/")[0] if place.protocol == "s3" else path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Set the default remote of DVC, in .dvc/config.local."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.remote", description=main.__doc__)
    parser.add_argument("url", nargs="?", help="s3://BUCKET/PATH, or another address for DVC")
    parser.add_argument("--endpoint", help="address of a server that speaks S3, if not AWS")
    parser.add_argument("--region", help="its region, such as us-east-1")
    given = parser.parse_args(arguments)
    if not given.url:
        refuse("URL", NOTHING, "s3://BUCKET/PATH, or another address that DVC takes")
    url = given.url if "://" in given.url else str(Path(given.url).resolve())
    file = set_remote(url, given.endpoint, given.region)
    print(f"remote: {url} (in {file.relative_to(root())}); next: dvc push, or dvc pull")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"remote: {error}", file=sys.stderr)
        sys.exit(2)

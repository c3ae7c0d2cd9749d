"""Which photographs Debian's packages hold, and how their bytes are found."""

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["SOURCES", "Original", "Source", "absent", "originals", "version_of"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Source:
    """The photographs of one package.

    Attributes:
        package: the package's name.
        folder: where they lie below the root.
        only: patterns of their paths below the folder; the path of a picture in one of Qt's
            resource files is ``<file>/<path inside it>``.
        without: patterns of paths that are left out: what is no photograph.
    """

    package: str
    folder: str
    only: tuple[str, ...]
    without: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        """Whether the picture at ``path`` below the folder is one of the photographs."""
        name = path.casefold()
        return (
            name.endswith(SUFFIXES)
            and any(fnmatchcase(path, pattern) for pattern in self.only)
            and not any(fnmatchcase(path, pattern) for pattern in self.without)
        )


DRAWINGS = (  # among the stamps, beside the folders of drawings
    "*/fish/bluegroper.*", "*/fish/butterflyfish.*", "*/fish/clownfish.*", "*/fish/coraltrout.*",
    "*/fish/dolphinfish.*", "*/fish/moonwrasse.*", "*/fish/stripedfish.*", "*/fish/shrimp.*",
    "*/insects/bee.*", "*/insects/fly.*", "*/aquatic/whale.*", "*/mammals/hedgehog.*",
    "*/mammals/echidna.*", "*/dishes/glass.*", "*/dishes/mug.*", "*/arttools/pen_dryerase.*",
    "*/arttools/highlighter.*", "household/key.*", "medical/tooth.*", "clothes/button.*",
    "food/pizza.*", "*/monuments/inukshuk-outline.*", "sports/rugby_goal_posts.*",
    "*/trees/holly_leaves.*", "*/trees/birch.*", "space/voyager2.*", "town/usps_mailbox.*",
    "*/nuts/walnut_shelled.*", "*/emergency/sedan_police.*",
)  # fmt: skip

STAMPS = Source(
    "tuxpaint-stamps-default",
    "usr/share/tuxpaint/stamps",
    (
        "animals/*", "clothes/clothespin*", "food/*", "hobbies/*", "household/*", "medical/*",
        "military/vehicles/*", "people/toys/*", "plants/*", "space/apollo*", "space/spacewalk*",
        "space/moon/moon_full*", "sports/*", "town/monuments/*", "town/*mailbox*",
        "town/uk_post_box*", "town/roadsigns/traffic_cone*", "vehicles/*",
        "seasonal/christmas/Candy_cane_photo_1.*", "seasonal/christmas/Christmas_Tree_photo.*",
        "seasonal/christmas/Christmas_pudding.*", "seasonal/christmas/German_Christmas_toy.*",
        "seasonal/christmas/Mince_Pie.*", "seasonal/christmas/Roast_turkey.*",
        "seasonal/christmas/xmaswreath.*",
    ),
    ("*cartoon*", "*_mirror.*", "*_flip.*", "*symbols*", *DRAWINGS),
)  # fmt: skip

PHOTOGRAPHS = (
    Source(
        "gcompris-qt-data",
        "usr/share/gcompris-qt/rcc",
        ("categorization.rcc/*", "erase.rcc/*", "explore_*.rcc/*"),
        ("*/alphabets/*", "*/numbers/*", "*.svg", "*/categorization/*icon*"),
    ),
    Source(
        "opencv-doc",
        "usr/share/doc/opencv-doc/examples/data",
        (
            "aloeL.jpg", "apple.jpg", "baboon.jpg", "basketball1.png", "board.jpg", "building.jpg",
            "butterfly.jpg", "chicky_512.png", "fruits.jpg", "home.jpg", "left01.jpg",
            "leuvenA.jpg", "messi5.jpg", "orange.jpg", "rubberwhale1.png", "squirrel_cls.jpg",
            "stuff.jpg",
        ),
    ),
    Source(
        "python3-skimage",
        "usr/lib/python3/dist-packages/skimage/data",
        (
            "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
            "grass.png", "gravel.png", "motorcycle_left.png", "rocket.jpg",
        ),
    ),
    Source(
        "python3-sklearn",
        "usr/lib/python3/dist-packages/sklearn/datasets/images",
        ("china.jpg", "flower.jpg"),
    ),
    Source("palapeli-data", "usr/share/palapeli/collection", ("*.jpg",)),
    Source("mate-backgrounds", "usr/share/backgrounds/mate/nature", ("*.jpg",)),
    Source(
        "plasma-workspace-wallpapers",
        "usr/share/wallpapers",
        tuple(
            f"{name}/contents/images/2560x1600.jpg"
            for name in (
                "BytheWater", "ColdRipple", "ColorfulCups", "EveningGlow", "FallenLeaf", "Kite",
                "OneStandsOut", "Path", "summer_1am",
            )
        ),
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "usr/share/backgrounds",
        (
            "Picture_1A_by_freespace.jpg", "Wine_by_*.jpg", "aitzgorri_by_*.jpg", "free_by_*.jpg",
            "friends_by_*.jpg", "life_by_*.jpg", "picosdeeuropa_by_*.jpg", "seeding_by_*.jpg",
            "sunset_by_*.jpg", "Dragonfly_by_*.jpg", "Picture_0B_by_freespace.jpg",
            "greentock_by_*.jpg", "Bridge_by_*.jpg",
        ),
    ),
    Source("lomiri-wallpapers-20.04", "usr/share/backgrounds", ("Kleiber_by_*.jpg",)),
)  # fmt: skip

SOURCES = (STAMPS, *PHOTOGRAPHS)
"""The packages of Debian 12 that are read."""


@dataclass(frozen=True)
class Original:
    """A picture as a package holds it.

    Attributes:
        source: the package.
        path: where it lies below the root.
        content: its bytes.
    """

    source: Source
    path: str
    content: bytes


def originals(source: Source, root: Path) -> list[Original]:
    """The photographs of a package below ``root``, in the order of their paths; none if absent."""
    folder = root / source.folder
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file() or path.is_symlink():
            continue
        inner = path.relative_to(folder).as_posix()
        place = path.relative_to(root).as_posix()
        if path.suffix == ".rcc":
            if any(fnmatchcase(f"{inner}/", f"{only.partition('/')[0]}/") for only in source.only):
                found += [
                    Original(source, f"{place}/{name}", content)
                    for name, content in sorted(_resources(path.read_bytes()))
                    if source.takes(f"{inner}/{name}")
                ]
        elif source.takes(inner):
            found.append(Original(source, place, path.read_bytes()))
    return found


def absent(sources: tuple[Source, ...], root: Path) -> list[str]:
    """The packages of which nothing lies below ``root``."""
    return [each.package for each in sources if not originals(each, root)]


def version_of(package: str, root: Path) -> str:
    """The version of a package, from its changelog; ``unknown`` where that is not there."""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = root / "usr/share/doc" / package / name
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
                found = re.match(r"\S+ \(([^)]+)\)", file.readline())
            if found:
                return found[1]
    return "unknown"


DIRECTORY, DEFLATED, OTHER_COMPRESSION = 2, 1, 4
"""Flags of an entry of a Qt resource file."""


def _resources(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a Qt resource file (``.rcc``): path and bytes.

    Its header holds the version and the places of three tables. The tree has one entry a file or
    folder: place of its name, flags, then number and first of a folder's entries, or the place of
    a file's bytes. What is compressed by something other than zlib is left out.
    """
    if content[:4] != b"qres":
        return
    version, tree, data, names = struct.unpack(">4I", content[4:20])
    width = 14 if version < 2 else 22
    waiting = [(0, "")]
    while waiting:
        index, parent = waiting.pop()
        at = tree + index * width
        name, flags = struct.unpack(">IH", content[at : at + 6])
        path = f"{parent}/{_name(content, names + name)}".lstrip("/") if index else ""
        if flags & DIRECTORY:
            count, first = struct.unpack(">2I", content[at + 6 : at + 14])
            waiting += [(first + each, path) for each in range(count)]
        elif not flags & OTHER_COMPRESSION:
            place = data + struct.unpack(">I", content[at + 10 : at + 14])[0]
            length = struct.unpack(">I", content[place : place + 4])[0]
            value = content[place + 4 : place + 4 + length]
            yield path, zlib.decompress(value[4:]) if flags & DEFLATED else value


def _name(content: bytes, at: int) -> str:
    length = struct.unpack(">H", content[at : at + 2])[0]
    return content[at + 6 : at + 6 + 2 * length].decode("utf-16-be")

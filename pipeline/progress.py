"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

__all__ = ["Progress", "label", "say"]

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


def label(experiment: str, network: str, seed: int | None, work: str) -> str:
    """What is under way, such as ``attack_l2 · mnist5k_lenet · seed 1 · deepfool``.

    Args:
        experiment: name of the experiment; empty outside of one.
        network: name of the network; empty across networks.
        seed: training seed; None if the work belongs to none.
        work: what is done, in words.
    """
    parts = (experiment, network, "" if seed is None else f"seed {seed}", work)
    return " · ".join(filter(None, parts))


def say(line: str) -> None:
    """One line on stderr, above a bar if there is one."""
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """Counts images: how many are done, at what rate, and the time that is left.

    Args:
        label: name of the work.
        total: number of images to do.
        shown: False prints nothing.
    """

    def __init__(self, label: str, total: int, shown: bool = True) -> None:
        self._label, self._total, self._done = label, total, 0
        self._began = self._said = time.monotonic()
        terminal = sys.stderr.isatty()
        self._lines = shown and not terminal
        self._bar = tqdm(
            total=total, desc=label, unit=" images", disable=not (shown and terminal), leave=False
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """Count ``images`` more as done."""
        self._done += images
        self._bar.update(images)
        now = time.monotonic()
        if self._lines and now - self._said >= LINE_EVERY:
            self._said = now
            say(
                tqdm.format_meter(
                    self._done,
                    self._total,
                    now - self._began,
                    prefix=self._label,
                    unit=" images",
                    ncols=100,
                )
            )

"""Where the process of a stage starts: ``--help`` is answered before libraries are imported."""

import sys
from contextlib import suppress

from pipeline.faults import fault
from stages.usage import usage

__all__ = ["helped", "main"]


def main(stage: str) -> None:
    """Run ``python -m stages.<stage>``, or print what can be set there."""
    if not helped(stage):
        try:
            from stages import runner  # here, as it imports torch, which takes seconds
        except (ImportError, MemoryError, OSError) as error:
            if (sentence := fault(error)) is None:
                raise
            sys.exit(f"{stage}: {sentence}")
        runner.main(stage)


def helped(stage: str) -> bool:
    """Print the help, if the command line asks for it; returns whether it did."""
    wanted = any(argument in ("--help", "-h") for argument in sys.argv[1:])
    if wanted:
        with suppress(BrokenPipeError):  # whoever reads it, such as head, may stop early
            print(usage(stage), flush=True)
    return wanted

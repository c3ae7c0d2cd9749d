"""The experiments of the thesis: one package per stage, one file per table or figure."""

import atexit
import gc
import sys


def _leave() -> None:
    """Skip the garbage collection at exit, except under Triton, which reports it as a leak."""
    if "triton" not in sys.modules:
        gc.freeze()


if sys.argv[0] == "-m":  # Python is still looking for the stage that a command line asks for
    # Importing large libraries is a fifth faster so; the run switches it on again afterwards.
    gc.disable()
    atexit.register(_leave)

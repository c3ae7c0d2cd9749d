"""The experiments of the thesis, one package a stage and one file a table or figure."""

import atexit
import gc
import sys


def _leave() -> None:
    """Spare the process a last look at a million objects, except where triton would call that a leak."""
    if "triton" not in sys.modules:
        gc.freeze()


if sys.argv[0] == "-m":  # Python is still looking for the stage that a command line asks for
    gc.disable()  # a fifth off the imports of large libraries; the run switches it on again once they are there
    atexit.register(_leave)

"""The experiments of the thesis: one package per stage, one file per table or figure."""

import atexit
import gc
import os
import sys

INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""What makes an x86 processor with newer instructions add in the same order as one without."""


def _leave() -> None:
    """Skip the garbage collection at exit (except under Triton, which reports it as a leak)."""
    if "triton" not in sys.modules:
        gc.freeze()


if sys.argv[0] == "-m":  # Python is still looking for the stage that a command line asks for
    for name, value in INSTRUCTIONS.items():  # before torch is there; a value that is set stays
        os.environ.setdefault(name, value)
    gc.disable()  # a fifth off the imports of large libraries; the run switches it on again
    atexit.register(_leave)

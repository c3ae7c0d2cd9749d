"""The experiments of the thesis: one package per stage, one file per table or figure."""

import atexit
import gc
import os
import platform
import sys

INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4",
}
"""What makes an x86 processor with newer instructions add in the same order as one without."""


def _leave() -> None:
    """Skip the garbage collection at exit (except under Triton, which reports it as a leak)."""
    if "triton" not in sys.modules:
        gc.freeze()


if sys.argv[0] == "-m":  # Python is still looking for the stage that a command line asks for
    if platform.machine().lower() in ("x86_64", "amd64"):
        for name, value in INSTRUCTIONS.items():  # before torch and NumPy are there
            os.environ.setdefault(name, value)  # a value that is set stays
    gc.disable()  # a fifth off the imports of large libraries; the run switches it on again
    atexit.register(_leave)

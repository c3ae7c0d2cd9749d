"""The experiments of the thesis, one package a stage and one file a table or figure."""

import gc
import sys

if sys.argv[0] == "-m":  # Python is still looking for the stage that a command line asks for
    gc.disable()  # a fifth off the imports of large libraries; the run switches it on again once they are there

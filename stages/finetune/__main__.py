"""Command line of the stage: `python -m stages.finetune`."""

from stages.start import main

if __name__ == "__main__":
    main("finetune")

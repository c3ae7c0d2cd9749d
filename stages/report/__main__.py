"""Command line of the stage: `python -m stages.report` writes the report of a suite."""

from stages.start import helped

if __name__ == "__main__" and not helped("report"):
    from stages.report.writing import main  # here, as it imports libraries that take seconds

    main()

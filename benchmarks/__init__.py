"""Speed beside that of other libraries: ``make bench``, or ``python -m benchmarks`` where they are installed."""

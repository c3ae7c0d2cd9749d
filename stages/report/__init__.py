"""The report: what was measured beside what the thesis printed."""

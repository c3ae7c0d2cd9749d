"""The geometry card: one page of numbers and pictures for any classifier."""

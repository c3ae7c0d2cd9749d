"""The instruments that chapters measure with, one module for each subject."""

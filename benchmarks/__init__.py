"""Speed beside other libraries; ``make bench`` sets up their environment and runs this package."""

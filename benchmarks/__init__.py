"""How fast streamwsi is, beside what else one could use: ``python -m benchmarks``, or ``make bench``."""

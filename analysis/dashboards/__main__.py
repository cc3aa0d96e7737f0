"""`python -m analysis.dashboards SWEEP... --json OUT` and/or `--push`."""

from analysis.command import run
from analysis.dashboards.main import main

run(main)

"""`python -m analysis.report RUNS_DIR/SWEEP`."""

from analysis.command import run
from analysis.report.write import main

run(main)

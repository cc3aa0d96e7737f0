"""`python -m analysis.report RUNS_DIR/SWEEP`."""

from analysis.report.write import main

raise SystemExit(main())

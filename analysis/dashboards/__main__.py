"""`python -m analysis.dashboards SWEEP... --json OUT` and/or `--push`."""

from analysis.dashboards.main import main

raise SystemExit(main())

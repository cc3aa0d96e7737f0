"""`python -m analysis.quality SOURCE`."""

from analysis.command import run
from analysis.quality.command import quality_command

run(quality_command)

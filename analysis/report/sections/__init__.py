"""The text and tables of a report, a module per question."""

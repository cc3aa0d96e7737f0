"""Ranges that keys must lie in: one sentence each, with the key, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable

from scaling.errors import UserError


def at_least(key: str, value: float, least: float) -> None:
    """UserError where the key's value is below `least`."""
    within(key, value, lambda v: v >= least, f"{least} or more")


def positive(key: str, value: float | None) -> None:
    """UserError where the key has a value that is not above 0."""
    if value is not None:
        within(key, value, lambda v: v > 0, "above 0")


def within(key: str, value: float, holds: Callable[[float], bool], allowed: str) -> None:
    """UserError, naming what is `allowed`, where the key's value does not hold."""
    if not holds(value):
        raise UserError(f"{key}={value} is out of range. Set it to {allowed}.")

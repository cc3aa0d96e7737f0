"""What analysis needs of the package wandb: a connection, its file format, what its errors mean.

The only module here that imports wandb, and only when W&B is asked for: the import takes seconds.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from analysis.errors import TableError

_TIMEOUT_S = 60
_BUSY = frozenset({429, 500, 502, 503, 504})
_BUSY_TEXT = re.compile(r"\b(HTTP|status|code|error)\W{0,3}(429|50[0234])\b|rate.?limit", re.I)


def connect() -> Any:
    """`wandb.Api` of the server and account of the environment.

    Raises:
        TableError: wandb is not installed, there is no login, or the server does not answer.
    """
    wandb = _wandb()
    try:
        return wandb.Api(timeout=_TIMEOUT_S)
    except Exception as error:  # whatever it raises, W&B cannot be asked
        raise TableError(
            f"W&B cannot be asked ({one_line(error)}); run `wandb login` or set WANDB_API_KEY "
            "(and WANDB_BASE_URL for a server of your own), or read the sweep's folder instead."
        ) from error


def parse_entry(data: bytes) -> Any:
    """One entry of a .wandb file, a protobuf `Record`. ValueError where it is none."""
    record, decode_error = _entry_types()
    try:
        return record.FromString(data)
    except decode_error as error:
        raise ValueError(f"an entry is no record of W&B ({error})") from error


def is_busy(error: BaseException) -> bool:
    """Whether the same request may succeed later: too many requests, a server or network fault."""
    chain = _causes(error)
    if any(isinstance(cause, ConnectionError | TimeoutError) for cause in chain):
        return True
    statuses = {status for cause in chain if (status := _http_status(cause)) is not None}
    return bool(statuses & _BUSY) or (
        not statuses and any(_BUSY_TEXT.search(str(cause)) for cause in chain)
    )


def retry_after_s(error: BaseException) -> float:
    """Seconds that the server asked to wait; 0 where it did not say."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        value = str(headers.get("Retry-After", ""))
        if value.isdigit():
            return float(value)
    return 0.0


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ").rstrip(": ")


@cache
def _entry_types() -> tuple[Any, type[Exception]]:
    _wandb()
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    # The generated module makes its classes when it is loaded: no type checker sees them.
    return vars(wandb_internal_pb2)["Record"], DecodeError


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise TableError(
            f"reading W&B needs the package wandb ({error}); install it with `pip install wandb`, "
            "or read the sweep's folder instead."
        ) from error
    return wandb


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what wandb wrapped in it (`exc`), and what each was raised from."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and cause not in found:
            found.append(cause)
            waiting += [getattr(cause, "exc", None), cause.__cause__, cause.__context__]
    return found


def _http_status(error: BaseException) -> int | None:
    """Of a `requests` error (status_code) or one of wandb's service (http_status)."""
    response = getattr(error, "response", None)
    for name in ("status_code", "http_status"):
        status = getattr(response, name, None)
        if isinstance(status, int) and status:
            return status
    return None

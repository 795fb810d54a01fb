"""What this package tells the log of the program that it is in: one logger, without credentials."""

from __future__ import annotations

import logging
import traceback

from sched_profiler.redact import redacted

__all__ = ["logger"]

logger = logging.getLogger("sched_profiler")


def _without_credentials(record: logging.LogRecord) -> bool:
    """Take credentials out of a message and its traceback; let it pass.

    What is in an error of somebody else's sink, or of a client of storage, nobody here knows.
    """
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - what cannot be printed must not cost the message
        text = record.msg
    record.msg, record.args = redacted(text), ()
    if record.exc_info:
        # What formatters take where there is no exception any more.
        record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info))).rstrip()
        record.exc_info = None
    return True


logger.addFilter(_without_credentials)

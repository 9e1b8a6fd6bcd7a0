"""Lines of the server's log: for people, or as JSON for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

__all__ = ["configure_logs"]

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        extra = "".join(f"  {name}={_plain(value)}" for name, value in _extra(record).items() if value != "")
        text = f"{clock}  {level}{record.getMessage()}{extra}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure_logs(*, as_json: bool) -> None:
    """Send the server's and uvicorn's lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    for name, level in (("saccade.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _plain(value: object) -> str:
    """A value in one line, without what terminals obey."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def _extra(record: logging.LogRecord) -> dict[str, object]:
    """What a line says besides its text."""
    return {name: value for name, value in vars(record).items() if name not in _USUAL}

"""What a sink refused for good, kept to be looked at."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import TYPE_CHECKING

from picostep.payload import encode_local
from picostep.ringdir import OwnDir, open_own
from picostep.times import iso_ms

if TYPE_CHECKING:
    from picostep.record import Record

__all__ = ["NAME", "OLDER", "DeadLetters"]

NAME = "dead-letters.jsonl"
OLDER = "dead-letters.1.jsonl"
MOST_BYTES = 8 << 20  # of each of the two files

log = logging.getLogger(__name__)


class DeadLetters:
    """
    A file of JSON lines: `time`, `reason`, and the `record` as far as it can be encoded.

    When it has reached its limit it becomes the older of two, and the one before it goes.

    Args:
        base: Directory of all spools; made when there is something to write.

        sink: As for `Spool`.
    """

    def __init__(self, base: str, sink: str) -> None:
        self._base = base
        self._sink = sink
        self._directory: OwnDir | None = None

    def write(self, record: Record, reason: str) -> None:
        """Append a record. Where that fails it is only counted, as it is anyway."""
        try:
            encoded = encode_local(record)
        except Exception:  # that is why it is here
            ids = {key: value for key, value in record.items() if key == "kind" or key.endswith("_id")}
            encoded = json.dumps(ids).encode("ascii")
        head = json.dumps({"time": iso_ms(time.time_ns()), "reason": reason})[:-1]
        try:
            self._append(f'{head}, "record": '.encode() + encoded + b"}\n")
        except OSError as error:
            log.warning("cannot keep a dead letter: %s", error.strerror)

    def _append(self, line: bytes) -> None:
        if self._directory is None:
            self._directory = open_own(self._base, self._sink, create=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(NAME, flags, 0o600, dir_fd=self._directory.fd)
        try:
            if os.fstat(fd).st_size + len(line) > MOST_BYTES:
                os.replace(NAME, OLDER, src_dir_fd=self._directory.fd, dst_dir_fd=self._directory.fd)
                os.close(fd)
                fd = os.open(NAME, flags, 0o600, dir_fd=self._directory.fd)
            os.write(fd, line)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the directory; for a forked child, too."""
        if self._directory is not None:
            self._directory.close()
            self._directory = None

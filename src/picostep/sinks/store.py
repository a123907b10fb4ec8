"""Sink `store:PATH`: records into one SQLite file of this machine."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from picostep.sinks import RetryLater
from picostep.store.schema import StoreError
from picostep.store.write import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picostep.record import Record

__all__ = ["StoreSink"]


class StoreSink:
    """
    Writes records to a store; a re-delivered record replaces itself.

    Opened at the first delivery and again whenever the file has been removed or replaced, so that deleting
    a store while an exporter runs loses nothing that is recorded afterwards.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._writer: StoreWriter | None = None

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Store the records in one transaction, on disk when this returns.

        Returns:
            Index and reason of each record that cannot be stored as it is (a number beyond 64 bits, a
            missing id).

        Raises:
            RetryLater: The file is locked, unreadable, not ours, or the disk is full.
        """
        try:
            return self._open().write(records)
        except (OSError, sqlite3.Error, StoreError) as error:
            self.close()  # also rolls back what was begun
            raise RetryLater(f"store: {error}") from error

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> StoreWriter:
        if self._writer is not None and not self._writer.is_at(self._path):
            self.close()
        if self._writer is None:
            self._writer = StoreWriter(self._path)
        return self._writer

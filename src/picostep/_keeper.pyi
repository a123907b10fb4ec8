"""The thread that keeps an exporter process alive for a ring directory."""

from collections.abc import Callable
from typing import final

@final
class Keeper:
    """Keeps one exporter running while `start()` was called last, not `stop()`."""

    def __new__(
        cls,
        lock_path: bytes,
        argv: list[bytes],
        env: list[bytes],
        config: bytes,
        when_failed: Callable[[], object],
    ) -> Keeper: ...
    @property
    def failed(self) -> bool:
        """Whether no process can be started here."""

    @property
    def child(self) -> int:
        """Pid of the exporter that this process started; 0 for none."""

    @property
    def starts(self) -> int:
        """How many exporters this process has started."""

    def start(self) -> bool:
        """Want an exporter; False when there can be no thread."""

    def stop(self) -> None:
        """Want none any more; one that runs ends by itself."""

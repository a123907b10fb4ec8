"""The thread that keeps an exporter process alive for a ring directory; see keeper.h."""

from collections.abc import Callable
from typing import final

@final
class Keeper:
    """
    What keeps one exporter running while `start()` was called last, not `stop()`.

    Args:
        lock_path: the directory's lock file.
        argv, env: of the exporter; bytes without NUL.
        config: what it reads from its standard input.
        when_failed: called once, from another thread, when no process can be started here.

    Attributes:
        failed: whether no process can be started here.

    Raises:
        OSError: this platform or process can have none.
    """

    def __new__(
        cls,
        lock_path: bytes,
        argv: list[bytes],
        env: list[bytes],
        config: bytes,
        when_failed: Callable[[], object],
    ) -> Keeper: ...
    @property
    def failed(self) -> bool: ...
    @property
    def child(self) -> int:
        """Pid of the exporter that this process started; 0 for none, or if another process started it."""

    @property
    def starts(self) -> int:
        """How many exporters this process has started."""

    def start(self) -> bool:
        """Want an exporter; return False when there can be no thread."""

    def stop(self) -> None:
        """Want none any more; one that runs ends by itself."""

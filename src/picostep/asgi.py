"""
For ASGI servers: wait, when a worker is told to end, until what it has recorded is delivered.

A process that ends waits by itself, but by `atexit`, and not every server gets that far: uvicorn raises the
signal again that it was ended by; gunicorn's uvicorn workers and granian's workers end without. All of them
run the lifespan protocol (https://asgi.readthedocs.io/en/latest/specs/lifespan.html), and this listens to it.
"""

from __future__ import annotations

import asyncio

from picostep import runtime
from picostep.errors import ArgumentError, ArgumentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from typing import Any

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

__all__ = ["Flush"]


class Flush:
    """
    An application that waits at its end for what was recorded; everything else it leaves to another.

    `app.add_middleware(Flush)` for Starlette and FastAPI, `app = Flush(app)` for every other.

    Args:
        app: The application. One that does not know the lifespan protocol is served as before.

        timeout: Longest wait in seconds; None: the setting `exit_timeout`.

    Raises:
        ArgumentTypeError, ArgumentError: `timeout` is not a number ≥ 0.
    """

    def __init__(self, app: App, timeout: float | None = None) -> None:
        if timeout is not None:
            if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
                raise ArgumentTypeError(
                    f"Flush(): timeout must be a number of seconds, not {type(timeout).__name__}"
                )
            if not 0 <= timeout < float("inf"):
                raise ArgumentError(f"Flush(): timeout must be ≥ 0 and finite, not {timeout}")
        self.app = app
        self._timeout = timeout

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan of a worker."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _live(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        said: list[str] = []  # what the application has answered

        async def watched(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._wait()
            said.append(message["type"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if said:  # it has begun, or has said that it cannot
                await self._wait()
                raise
        # One that does not know the protocol raises, or returns, without a word; so this speaks for it.
        while not any(word.startswith(("lifespan.shutdown.", "lifespan.startup.failed")) for word in said):
            if "lifespan.startup.complete" not in said:
                await watched({"type": "lifespan.startup.complete"})
            if (await receive())["type"] == "lifespan.shutdown":
                await watched({"type": "lifespan.shutdown.complete"})

    async def _wait(self) -> None:
        """Flush in a thread of its own: the event loop may have other things to end."""
        await asyncio.get_running_loop().run_in_executor(None, runtime.wait_for_delivery, self._timeout)

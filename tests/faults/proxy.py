"""What stands between an exporter and the receiver, and does to their connection what the test says."""

from __future__ import annotations

import asyncio
import gzip
import re
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

HEAD_END = b"\r\n\r\n"
PAUSE = 0.01  # seconds between the bytes of a slow answer
OK = b"HTTP/1.1 200 OK\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what is closed is reset


class Exchange:
    """One request, of which the head is read, and what may be done with it."""

    def __init__(self, connection: _Connection, head: bytes) -> None:
        self.head = head
        self.length = _length(head)
        self._connection = connection
        self._body: bytes | None = None

    async def body(self) -> bytes:
        """Read the rest of the request."""
        if self._body is None:
            self._body = await self._connection.reader.readexactly(self.length)
        return self._body

    async def forward(self) -> bytes:
        """Have the receiver take the request; return its answer, which the exporter does not have yet."""
        reader, writer = await self._connection.receiver()
        writer.write(self.head + await self.body())
        await writer.drain()
        head = await reader.readuntil(HEAD_END)
        return head + await reader.readexactly(_length(head))

    async def send(self, data: bytes) -> None:
        self._connection.writer.write(data)
        await self._connection.writer.drain()

    async def held(self) -> None:
        """Wait until another fault is set, and reset the connection then: the backend starts anew."""
        await self._connection.proxy.changed()
        self.reset()

    def close(self) -> None:
        """End the connection as a server does that has no more to say."""
        self._connection.open = False

    def reset(self) -> None:
        """End the connection by RST."""
        self.close()
        _abort(self._connection.writer)


Fault = Callable[[Exchange], Awaitable[None]]
"""Deals with one request. When it returns the connection goes on, unless it ended it."""


async def passing(exchange: Exchange) -> None:
    """No fault."""
    await exchange.send(await exchange.forward())


async def refuse(exchange: Exchange) -> None:
    """Nobody listens. (The proxy closes its listener; this is for a request that was under way.)"""
    exchange.reset()


async def blackhole(exchange: Exchange) -> None:
    """Connections are taken, and nothing is read from them or answered."""
    await exchange.held()


async def hang(exchange: Exchange) -> None:
    """The request is read, and not answered."""
    await exchange.body()
    await exchange.held()


async def hang_after(exchange: Exchange) -> None:
    """The request is taken, and not answered."""
    await exchange.forward()
    await exchange.held()


async def reset_before(exchange: Exchange) -> None:
    exchange.reset()


async def reset_within(exchange: Exchange) -> None:
    """Half of the body is read."""
    with suppress(asyncio.IncompleteReadError):
        await exchange._connection.reader.readexactly(exchange.length // 2)
    exchange.reset()


async def reset_after(exchange: Exchange) -> None:
    """The receiver has taken it, and its answer is lost."""
    await exchange.forward()
    exchange.reset()


async def slow(exchange: Exchange) -> None:
    """The answer drips."""
    for byte in await exchange.forward():
        await exchange.send(bytes([byte]))
        await asyncio.sleep(PAUSE)


async def truncate_head(exchange: Exchange) -> None:
    """The answer is cut within its status line, which so says nothing."""
    await exchange.send((await exchange.forward())[:7])
    exchange.close()


async def truncate_body(exchange: Exchange) -> None:
    """The answer is cut after its head, which says that the receiver has taken it."""
    await exchange.forward()
    await exchange.send(OK + b"Content-Length: 1000\r\n\r\n{")
    exchange.close()


def status(code: int, *headers: str) -> Fault:
    """Return a fault that answers every request with a status."""

    async def answer(exchange: Exchange) -> None:
        await exchange.body()
        lines = [f"HTTP/1.1 {code} Status", "Content-Length: 2", *headers]
        await exchange.send("\r\n".join(lines).encode() + HEAD_END + b"{}")

    answer.__name__ = f"status_{code}"
    return answer


def refusing(code: int, pattern: bytes) -> Fault:
    """Return a fault that answers with a status where a pattern is found in the body, and else forwards."""
    search = re.compile(pattern).search
    refused = status(code)

    async def answer(exchange: Exchange) -> None:
        await (refused if search(await exchange.body()) else passing)(exchange)

    return answer


def redirect(code: int, url: str) -> Fault:
    return status(code, f"Location: {url}")


async def oversized(exchange: Exchange) -> None:
    """The receiver takes it, and the answer has no end."""
    await exchange.forward()
    await _pour(exchange, OK + b"Content-Length: 10000000000\r\n\r\n")


async def oversized_error(exchange: Exchange) -> None:
    """The same with a status that is no success, without the receiver."""
    await exchange.body()
    await _pour(exchange, b"HTTP/1.1 500 Oops\r\nContent-Length: 10000000000\r\n\r\n")


async def endless_chunks(exchange: Exchange) -> None:
    """The same as one chunk that never ends."""
    await exchange.forward()
    await _pour(exchange, OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n")


async def _pour(exchange: Exchange, head: bytes) -> None:
    proxy, poured = exchange._connection.proxy, 0
    with suppress(OSError):  # the exporter has had enough
        await exchange.send(head)
        while not proxy.is_changed(exchange):
            await exchange.send(bytes(1 << 14))
            poured += 1 << 14
    proxy.poured = max(proxy.poured, poured)
    exchange.close()


async def bomb(exchange: Exchange) -> None:
    """A small compressed answer that is large when it is unpacked."""
    await exchange.forward()
    data = _bomb()
    await exchange.send(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


@cache
def _bomb() -> bytes:
    return gzip.compress(bytes(40 << 20))


async def strange_encoding(exchange: Exchange) -> None:
    """An answer that says it is compressed, and is not."""
    await exchange.forward()
    await exchange.send(OK + b"Content-Encoding: br, gzip, zstd, x\r\nContent-Length: 2\r\n\r\n{}")


async def garbage(exchange: Exchange) -> None:
    """What answers is no HTTP server."""
    await exchange.body()
    await exchange.send(b"\x16\x03\x01\x00\xff SSH-2.0 \r\n\r\n\x00" * 20)
    exchange.close()


async def long_head(exchange: Exchange) -> None:
    """A million bytes of header lines."""
    await exchange.body()
    with suppress(OSError):
        await exchange.send(OK + b"X-Header: value\r\n" * 60_000 + b"Content-Length: 0" + HEAD_END)
    exchange.close()


class Proxy:
    """
    An HTTP proxy on 127.0.0.1, in a thread of its own.

    Args:
        port: Of the receiver.

    Attributes:
        connections: Taken since the start.

        requests: When each request's head was there, in `time.monotonic()` seconds.

        received: Bytes of all bodies that were announced.

        most_at_once: Requests under way at the same time, at most.

        poured: Bytes of the longest answer without end that a client took, with what lay in the buffers.
    """

    def __init__(self, port: int) -> None:
        self.connections = self.received = self.most_at_once = self.poured = 0
        self.requests: list[float] = []
        self._receiver_port = port
        self._fault: Fault = passing
        self._change = asyncio.Event()
        self._at_once = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self.port = 0
        self._run(self._set(passing))
        self.url = f"http://127.0.0.1:{self.port}"

    def set(self, fault: Fault) -> None:
        """Have this happen to all requests from now on."""
        self._run(self._set(fault))

    def stop(self) -> None:
        self._run(self._set(refuse))
        self._run(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(10.0)

    # Below, all is in the thread of the loop.

    async def changed(self) -> None:
        await self._change.wait()

    def is_changed(self, exchange: Exchange) -> bool:
        return exchange._connection.change.is_set()

    async def _set(self, fault: Fault) -> None:
        self._fault = fault
        self._change.set()
        self._change = asyncio.Event()
        if fault is refuse:
            if self._server:
                self._server.close()
                self._server = None
            for writer in list(self._open):
                _abort(writer)
        elif self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=128)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._open.add(writer)
        self.connections += 1
        connection = _Connection(self, reader, writer)
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):
                while connection.open:
                    await self._exchange(connection)
        finally:
            connection.close()
            self._open.discard(writer)
            self._tasks.discard(task)

    async def _exchange(self, connection: _Connection) -> None:
        head = await connection.reader.readuntil(HEAD_END)
        connection.change = self._change
        exchange = Exchange(connection, head)
        self.requests.append(time.monotonic())
        self.received += exchange.length
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self._fault(exchange)
        finally:
            self._at_once -= 1


class _Connection:
    """One connection of an exporter, and the one to the receiver that belongs to it: they end together."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.open = True
        self.change: asyncio.Event
        self._receiver: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def receiver(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._receiver is None:
            self._receiver = await asyncio.open_connection("127.0.0.1", self.proxy._receiver_port)
        return self._receiver

    def close(self) -> None:
        self.writer.close()
        if self._receiver:
            self._receiver[1].close()


def _length(head: bytes) -> int:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    return int(found[1]) if found else 0


def _abort(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()

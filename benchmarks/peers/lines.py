"""
One JSON object a line: `{"do": NAME, ...arguments}` to a process, `{"value": …}` or `{"error": …}` back.

The process reads stdin and ends when that is closed. What it or its libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO


class Failed(Exception):
    """A process could not do what it was told, died, or took too long."""


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Answer on what is stdout at the moment; from then on stdout is stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            reply: Any = {"value": commands[arguments.pop("do")](**arguments)}
        except Exception as e:
            traceback.print_exc()
            reply = {"error": f"{type(e).__name__}: {e}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


class Process:
    """
    The other side: starts the process, calls its commands, and ends it.

    Args:
        arguments: Program and arguments.

        env: Its environment.

        directory: Its working directory.

        log: Where its stderr goes.
    """

    def __init__(
        self, arguments: Sequence[str], env: Mapping[str, str], directory: Path, log: TextIO
    ) -> None:
        self._process = subprocess.Popen(
            arguments,
            env=env,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, do: str, timeout: float = 300.0, **arguments: Any) -> Any:
        """
        Run a command and return its value.

        Raises:
            Failed: It failed, or there is no answer within `timeout` seconds; then the process is killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(timeout, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise Failed(f"{do}: no answer: the process ended, or was killed after {timeout:.0f} s")
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(f"{do}: {reply['error']}")
        return reply["value"]

    def pause(self) -> None:
        """Stop all of its threads until `resume()`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self, timeout: float = 20.0) -> None:
        """Close its stdin and wait for its end; kill it after `timeout` seconds."""
        self.resume()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

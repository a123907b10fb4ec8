"""
Applications for the servers of the fault tests: each request records a run with a step and a tool call.

Like a program of `workload`, one writes `i ID DIGEST` into a ledger before a step's `end()`; the promise is
the response. The ledger is a file, as servers do not hand descriptors on to all of their workers. Settings:
`SERVED_LEDGER`, its name; `SERVED_AT_IMPORT=1` to record a step when this module is imported, which is what
gunicorn's master does with `--preload`; `SERVED_PLAIN=1` for the same application without picostep.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

PLAIN = os.environ.get("SERVED_PLAIN") == "1"
TEXT = "what the user said " * 20

if not PLAIN:
    import picostep as tcc
    from workload import digest

    _ledger = os.open(os.environ["SERVED_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def answer(name: str) -> bytes:
    """Serve one request; return the ids of what it recorded as JSON."""
    if PLAIN:
        return json.dumps({"pid": os.getpid()}).encode()
    prompt = f"{name}: {TEXT}"
    with tcc.run() as run:
        run.prompt(prompt).response("done")
        with run.tool_call("search") as call:
            call.args({"query": name}).result([name])
        with run.step() as step:
            step.prompt(prompt).response("done").tokens(completion=len(name))
            fields = {"prompt": prompt, "response": "done", "completion_tokens": len(name)}
            promised = digest({**fields, "step_id": step.step_id, "run_id": run.run_id})
            os.write(_ledger, f"i {step.step_id} {promised}\n".encode())
    ids = {"step": step.step_id, "run": run.run_id, "tool_call": call.tool_call_id, "pid": os.getpid()}
    return json.dumps(ids).encode()


def wsgi(environ: Mapping[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """The application as gunicorn's sync and threaded workers call it."""
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: Mapping[str, Any],
    receive: Callable[[], Awaitable[Mapping[str, Any]]],
    send: Callable[[Mapping[str, Any]], Awaitable[None]],
) -> None:
    """The application as uvicorn calls it."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # as the specification has it: uvicorn then goes without
    body = answer(scope["path"])
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if not PLAIN:
    from picostep.asgi import Flush

    flushed = Flush(asgi)  # the same, which waits at its end


if os.environ.get("SERVED_AT_IMPORT") == "1" and not PLAIN:
    answer("import")

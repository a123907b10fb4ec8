"""What the benchmarks time: one step with all setters, by picostep and its baselines; and its check."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import picostep

HERE = Path(__file__).parent
SIZES = {
    "0.3KB": 300,
    "3KB": 3_000,
    "30KB": 30_000,
    "400KB": 400_000,
}  # characters of prompt, response and tools together
SCRIPTS = {"ascii": "a prompt, a response and tools. ", "cjk": "提示和回答以及工具定义的文字。"}


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for rings, in memory where that is to be had."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    return tempfile.TemporaryDirectory(prefix="picostep-bench-", dir=shm, ignore_cleanup_errors=True)


@contextlib.contextmanager
def exporter(**settings: Any) -> Iterator[None]:
    """A real exporter for all benchmarks, into a file in memory that is cut back whenever it was checked."""
    with temporary_directory() as directory:
        Picostep.output = os.path.join(directory, "steps.jsonl")
        picostep.configure(to=f"jsonl:{Picostep.output}", dir=directory, **settings)
        yield
        picostep.shutdown(10)


@dataclass(frozen=True)
class Texts:
    prompt: str
    response: str
    tools: str

    @classmethod
    def of(cls, size: str, script: str) -> Texts:
        """Half of the characters are the prompt, a third the response, the rest tool definitions."""
        n, pattern = SIZES[size], SCRIPTS[script]
        text = (pattern * (n // len(pattern) + 1))[:n]
        half, third = n // 2, n // 3
        return cls(text[:half], text[half : half + third], text[half + third :])

    def steps_per_round(self) -> int:
        """As many as fill less than half of a 16 MiB ring, so that none is shed."""
        width = 1 if self.prompt.isascii() else 2
        return max(4, min(1000, 6_000_000 // (width * len(self.prompt + self.response + self.tools) + 400)))


def chain(step: Any, texts: Texts) -> None:
    step.prompt(texts.prompt).response(texts.response).model("gpt-4o", "gpt-4o-2024-08-06").tokens(
        1200, 300, 250
    ).finish_reason("stop").tool_definitions(texts.tools).end()


@dataclass(slots=True)
class PlainStep:
    """What a careful person writes in plain Python: a slotted dataclass on a queue. No ids, no checks."""

    queue: queue.SimpleQueue[Any]
    start_ns: int
    end_ns: int = 0
    prompt_: str | None = None
    response_: str | None = None
    requested: str | None = None
    used: str | None = None
    uncached: int | None = None
    cached: int | None = None
    completion: int | None = None
    reason: str | None = None
    tools: str | None = None

    def prompt(self, text: str) -> PlainStep:
        self.prompt_ = text
        return self

    def response(self, text: str) -> PlainStep:
        self.response_ = text
        return self

    def model(self, requested: str | None = None, used: str | None = None) -> PlainStep:
        if requested is not None:
            self.requested = requested
        if used is not None:
            self.used = used
        return self

    def tokens(
        self, uncached: int | None = None, cached: int | None = None, completion: int | None = None
    ) -> PlainStep:
        if uncached is not None:
            self.uncached = uncached
        if cached is not None:
            self.cached = cached
        if completion is not None:
            self.completion = completion
        return self

    def finish_reason(self, reason: str) -> PlainStep:
        self.reason = reason
        return self

    def tool_definitions(self, definitions: str) -> PlainStep:
        self.tools = definitions
        return self

    def end(self) -> None:
        self.end_ns = time.time_ns()
        self.queue.put(self)


class Picostep:
    """The chain, into the ring, with an exporter at work."""

    name = "picostep"
    output = ""
    recorded = 0  # by this process, in all benchmarks

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.run = picostep.run()

    def settle(self) -> None:
        """Empties the ring and the exporter's file before a round."""
        assert picostep.flush(60)
        if os.path.exists(self.output):
            os.truncate(self.output, 0)

    def steps(self, n: int) -> None:
        step, texts = self.run.step, self.texts
        for _ in range(n):
            chain(step(), texts)
        Picostep.recorded += n

    def check(self) -> None:
        """Every step was accepted whole and delivered."""
        self.settle()
        stats = picostep.stats()
        assert stats["delivered"] == Picostep.recorded
        assert stats["shed"] == 0
        assert sum(stats["dropped"].values()) == 0


class SendStep(Picostep):
    """The same in one call."""

    name = "picostep.send_step"

    def steps(self, n: int) -> None:
        send, run_id, texts = picostep.send_step, self.run.run_id, self.texts
        for _ in range(n):
            send(
                run_id,
                prompt=texts.prompt,
                response=texts.response,
                model_requested="gpt-4o",
                model_used="gpt-4o-2024-08-06",
                prompt_uncached=1200,
                prompt_cached=300,
                completion=250,
                finish_reason="stop",
                tool_definitions=texts.tools,
            )
        Picostep.recorded += n


class Dataclass:
    """The plain-Python baseline."""

    name = "dataclass + SimpleQueue"

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.count = 0

    def settle(self) -> None:
        while not self.queue.empty():
            self.last = self.queue.get()

    def steps(self, n: int) -> None:
        texts, to = self.texts, self.queue
        for _ in range(n):
            chain(PlainStep(to, time.time_ns()), texts)
        self.count += n

    def check(self) -> None:
        self.settle()
        assert (self.last.prompt_, self.last.tools) == (self.texts.prompt, self.texts.tools)


class Floor:
    """No-op chain, two clock reads, the copy."""

    name = "floor"

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.floor = compiled("floor")
        self.run = self.floor.FloorRun()

    def settle(self) -> None:
        pass

    def steps(self, n: int) -> None:
        step, texts = self.run.step, self.texts
        for _ in range(n):
            chain(step(), texts)

    def check(self) -> None:
        encoding = "latin-1" if self.texts.tools.isascii() else f"utf-16-{sys.byteorder[0]}e"
        raw = self.texts.tools.encode(encoding)
        assert self.floor.last(len(raw)) == raw


ALL = (Picostep, SendStep, Dataclass, Floor)


def compiled(name: str, *depends: Path) -> Any:
    """Compile a Cython module into build/ unless it is newer than its source and `depends`; import it."""
    if name in sys.modules:
        return sys.modules[name]
    built = HERE / "build"
    target = built / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [HERE / f"{name}.pyx", *depends]
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        modules = cythonize(
            [Extension(name, [str(sources[0])], extra_compile_args=["-O3"])],
            include_path=[str(HERE.parent / "ext")],
            build_dir=str(built),
            force=True,
            quiet=True,
        )
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib = command.build_temp = str(built)
        command.ensure_finalized()
        command.run()
    spec = importlib.util.spec_from_file_location(name, target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def cost_loop() -> Any:
    """Loops in C over what `end()` and the exporter do with a price."""
    return compiled("cost_loop", HERE.parent / "ext" / "picostep" / "_cost.pxd")

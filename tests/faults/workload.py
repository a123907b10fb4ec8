"""
Hosts for the fault tests: programs that record steps and keep a ledger of what they promise.

Run as `python workload.py PROGRAM LEDGER_FD ARGS…`. A ledger is lines in a pipe, for each promise one:

    i ID DIGEST     before a step's `end()`
    p ID            when `end()` has returned: the step is accepted
    l LEVEL COUNT   when `stats()` says that the first COUNT accepted steps have reached a further level
    r JSON          at the end of some programs: what they have seen

What is written there survives the process, as records must. `oracle` reads it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from hashlib import blake2b
from math import inf
from random import Random
from typing import Any

import picostep as tcc

SMALL, KILOBYTE, MEDIUM, LARGE = 300, 700, 3_000, 400_000
# Which sizes a host draws from, and how often. In "large" nearly all the time of `end()` is the copy.
MIXES = {
    "mixed": {SMALL: 60, MEDIUM: 38, LARGE: 2},
    "small": {SMALL: 1},
    "kilobyte": {KILOBYTE: 1},
    "large": {LARGE: 1},
}
VARIANTS = 4
TEXT_FIELDS = ("prompt", "response", "tool_definitions", "model_used")
RING_BYTES = 16 << 20
CHILD_DEADLINE = 20.0
BEFORE_ACCEPTANCE = ("ring_full", "no_ring")
WATCH_EVERY = 0.002  # seconds


def dropped(counted: Mapping[str, Any]) -> int:
    """Sum up what was dropped after it had been accepted."""
    return sum(count for reason, count in counted["dropped"].items() if reason not in BEFORE_ACCEPTANCE)


def balanced(counted: Mapping[str, Any]) -> bool:
    """Whether what was accepted is delivered, waits, or was dropped and counted."""
    waiting = counted["in_ring"] + counted.get("in_spool", 0)
    return bool(counted["accepted"] == counted["delivered"] + waiting + dropped(counted))


# The levels of safety beyond "accepted", and how many of the first accepted steps have reached each.
LEVELS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "delivered": lambda stats: stats["delivered"] + dropped(stats),
    "synced": lambda stats: (
        stats["delivered"] + dropped(stats) + stats.get("in_spool", 0) - stats.get("unsynced", 0)
    ),
}


@cache
def text(size: int, variant: int) -> str:
    """Return a text without repetition: ASCII, and from 3 KB on also CJK and beyond the BMP."""
    raw = Random(f"{size}/{variant}").randbytes(size)
    if size < MEDIUM or variant % 4 < 2:
        return raw.hex()[:size]
    first = 0x4E00 if variant % 4 == 2 else 0x1F300
    return raw.decode("latin-1").translate({byte: first + byte for byte in range(256)})[: size // 4]


@cache
def _fingerprint(value: str) -> str:
    return blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def digest(step: Mapping[str, Any]) -> str:
    """Hash all of a step that its host decides, as a ledger or as an item of the ingest has it."""
    parts = [step["step_id"], step["run_id"], str(step.get("completion_tokens"))]
    parts += [_fingerprint(step[name]) if name in step else "-" for name in TEXT_FIELDS]
    return blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def prepare(mix: str) -> None:
    """Make the texts of a mix, and their hashes, so that it is not done between two steps."""
    for size in MIXES[mix]:
        for variant in range(VARIANTS):
            _fingerprint(text(size, variant))


class Recorder:
    """
    Records random steps, and writes of each into the ledger before and after.

    Thread-safe. In a forked child `reseed()` comes first, or it records what its parent does.

    Args:
        ledger: Descriptor to write to.

        mix: A key of `MIXES`.

        seed: Of what is recorded.

        waits: For room, before a ring may shed bodies.

    Attributes:
        took: How often `end()` took so many microseconds.
    """

    def __init__(self, ledger: int, mix: str, seed: int, waits: bool = True) -> None:
        self._ledger = ledger
        self._sizes = MIXES[mix]
        self._limit = int(os.environ.get("PICOSTEP_RING_BYTES", RING_BYTES)) // 2 if waits else inf
        self.took: Counter[int] = Counter()
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        self._random = Random(seed)
        self._run_id = tcc.run().run_id  # no run stays open: only steps are held against the ledger
        self._used = 0
        self._lock = threading.Lock()

    def one(self) -> None:
        """Record a step; first wait for room in the ring, as a full one sheds bodies by design."""
        with self._lock:
            draw = self._random.random
            size = self._random.choices(list(self._sizes), list(self._sizes.values()))[0]
            fields: dict[str, Any] = {
                "prompt": text(SMALL, int(draw() * VARIANTS)),
                "response": text(size, int(draw() * VARIANTS)),
            }
            if draw() < 0.5 and size in (SMALL, MEDIUM):
                fields["tool_definitions"] = text(MEDIUM, int(draw() * VARIANTS))
                fields["model_used"] = f"model-{draw()}"
            fields["completion_tokens"] = int(draw() * 1e6)
            self._make_room(
                sum(4 * len(value) + 64 for value in fields.values() if isinstance(value, str)) + 512
            )
        step = tcc.step(self._run_id)
        step.prompt(fields["prompt"]).response(fields["response"]).tokens(
            completion=fields["completion_tokens"]
        )
        if "tool_definitions" in fields:
            step.tool_definitions(fields["tool_definitions"]).model(used=fields["model_used"])
        promised = digest({**fields, "step_id": step.step_id, "run_id": self._run_id})
        os.write(self._ledger, f"i {step.step_id} {promised}\n".encode())
        start = time.perf_counter_ns()
        step.end()
        self.took[(time.perf_counter_ns() - start) // 1000] += 1
        os.write(self._ledger, f"p {step.step_id}\n".encode())

    def many(self, count: int) -> None:
        for _ in range(count):
            self.one()

    def forever(self) -> None:
        while True:
            self.one()

    def _make_room(self, size: int) -> None:
        if self._used + size > self._limit:
            if os.environ.get("PICOSTEP_EXPORTER") == "off":
                threading.Event().wait()  # nobody empties the ring before this process is dead
            while not tcc.flush(1.0):
                pass
            self._used = 0
        self._used += size


# --- programs ---------------------------------------------------------------------------------------------


def endless(ledger: int, seed: str, mix: str, threads: str) -> None:
    """Record until killed."""
    recorder = Recorder(ledger, mix, int(seed))
    for _ in range(int(threads) - 1):
        threading.Thread(target=recorder.forever, daemon=True).start()
    recorder.forever()


def some(ledger: int, seed: str, mix: str, count: str) -> None:
    """Record a number of steps and leave."""
    Recorder(ledger, mix, int(seed)).many(int(count))


def paced(ledger: int, seed: str, mix: str, rate: str, seconds: str, patience: str) -> None:
    """
    Record so many steps a second until SIGTERM comes or the time is over, wait for delivery, and report.

    Meanwhile a thread looks at the counters: they must be right at any time. When the exporter is so slow
    that the ring would shed bodies, it is waited for, and the report says how long.
    """
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    recorder = Recorder(ledger, mix, int(seed), waits=False)
    watcher = Watcher(ledger)
    watcher.start()
    slice_seconds = max(0.005, 1 / float(rate))
    begin, slices, held_up = time.monotonic(), 0, 0.0
    while not stopped and slices * slice_seconds < float(seconds):
        held_up += _wait_for_room(mix)
        recorder.many(round(float(rate) * slice_seconds))
        slices += 1
        time.sleep(max(0.0, begin + slices * slice_seconds - time.monotonic()))
    took = time.monotonic() - begin
    flushed = tcc.flush(float(patience))
    watcher.stop()
    report = {
        **tcc.stats(),
        **watcher.seen(),
        "flushed": flushed,
        "rate": round(tcc.stats()["recorded"] / took),
        "held_up": round(held_up, 3),
        "end_us": _distribution(recorder.took),
    }
    os.write(ledger, f"r {json.dumps(report)}\n".encode())


def _wait_for_room(mix: str) -> float:
    """Wait until the ring is about half full at most; return the seconds of it, 0 where there was room."""
    sizes = MIXES[mix]
    mean = sum(size * weight for size, weight in sizes.items()) // sum(sizes.values())
    tools = MEDIUM // 2 if sizes.keys() & {SMALL, MEDIUM} else 0
    most = int(os.environ.get("PICOSTEP_RING_BYTES", RING_BYTES)) // 2 // (SMALL + mean + tools + 512)
    start = None  # a look is no waiting: some 50 us beside the watcher, two hundred times a second
    while tcc.stats()["in_ring"] > most:
        start = start or time.monotonic()
        time.sleep(0.005)
    return 0.0 if start is None else time.monotonic() - start


class Watcher(threading.Thread):
    """Looks at the counters of this process all the time; the ledger gets the levels that it is told of."""

    def __init__(self, ledger: int) -> None:
        super().__init__()
        self._ledger = ledger
        self._over = threading.Event()
        self._samples = 0
        self._wrong: list[dict[str, Any]] = []
        self._reached = dict.fromkeys(LEVELS, 0)

    def run(self) -> None:
        while not self._over.wait(WATCH_EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        stats = tcc.stats()
        self._samples += 1
        if not balanced(stats) and len(self._wrong) < 3:
            self._wrong.append(stats)
        for level, count_of in LEVELS.items():
            count = count_of(stats)
            if count != self._reached[level]:
                self._reached[level] = count
                os.write(self._ledger, f"l {level} {count}\n".encode())

    def stop(self) -> None:
        self._over.set()
        self.join()

    def seen(self) -> dict[str, Any]:
        return {"samples": self._samples, "wrong": self._wrong}


def _distribution(took: Mapping[int, int]) -> dict[str, int]:
    """Percentiles of what `end()` took, in microseconds."""
    total, sorted_ = sum(took.values()), sorted(took.items())
    found, seen = {}, 0
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)):
        seen = 0
        for microseconds, count in sorted_:
            seen += count
            if seen >= share * total:
                found[name] = microseconds
                break
    return found


def adopt(ledger: int) -> None:
    """Record one step, and with it have an exporter started that takes what others left behind."""
    Recorder(ledger, "small", 0).one()


def open_runs(ledger: int, seed: str) -> None:
    """
    Keep up to twenty runs open, and change or end a random one, until killed.

    The ledger has `b ID` when a run has begun, `t ID N` and `s ID N` before and after its N-th change, `e ID`
    and `E ID` before and after its end. A change sets both parts of the prompt, to texts that begin with N.
    """
    random = Random(seed)
    runs: list[tuple[tcc.Run, list[int]]] = []
    while True:
        if len(runs) < 20 and random.random() < 0.3:
            run = tcc.run()
            runs.append((run, [0]))
            os.write(ledger, f"b {run.run_id}\n".encode())
        elif runs:
            number = random.randrange(len(runs))
            run, changes = runs[number]
            if changes[0] and random.random() < 0.2:
                del runs[number]
                os.write(ledger, f"e {run.run_id}\n".encode())
                run.end()
                os.write(ledger, f"E {run.run_id}\n".encode())
                continue
            changes[0] += 1
            os.write(ledger, f"t {run.run_id} {changes[0]}\n".encode())
            filling = random.choice(["x", "\u6df1", "\U0001f600"]) * random.choice([1, 50, 2000, 100_000])
            run.prompt(f"{changes[0]} {filling}", f"{changes[0]} {filling[::2]}")
            os.write(ledger, f"s {run.run_id} {changes[0]}\n".encode())


def changing(ledger: int) -> None:
    """Do nothing but change one run, both parts of its prompt at once."""
    run = tcc.run()
    first, second = "first " * 50, "second " * 50
    run.prompt(first, first)
    os.write(ledger, f"b {run.run_id}\n".encode())
    while True:
        run.prompt(second, second)
        run.prompt(first, first)


def ending(ledger: int) -> None:
    """End a run of which the copy takes some milliseconds."""
    run = tcc.run()
    run.prompt("x" * (40 << 20))
    os.write(ledger, f"b {run.run_id}\ne {run.run_id}\n".encode())
    run.end()
    os.write(ledger, f"E {run.run_id}\n".encode())
    threading.Event().wait()


def forking(ledger: int, seed: str, forks: str) -> None:
    """
    Fork at random moments from a process in which four threads record.

    Every third child leaves by `os._exit` right after its last `end()`, every fourth forks again.
    """
    recorder = Recorder(ledger, "small", int(seed))
    stop = threading.Event()

    def record() -> None:
        while not stop.is_set():
            recorder.one()
            time.sleep(0.0002)  # four threads, one core for the others

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    random = Random(seed)
    children = []
    try:
        for number in range(int(forks)):
            time.sleep(random.uniform(0.0, 0.02))
            children.append(_fork(partial(_child, recorder, number)))
        for pid in children:
            _reap(pid)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _child(recorder: Recorder, number: int) -> None:
    recorder.reseed(os.getpid())
    recorder.many(5)
    if number % 4 == 0:
        grandchild = _fork(lambda: (recorder.reseed(os.getpid()), recorder.many(5)))
        recorder.many(5)
        _reap(grandchild)
    if number % 3 == 0:
        recorder.one()
        os._exit(0)


def _fork(child: Callable[[], object]) -> int:
    """Run a function in a forked child, which then ends as a program does; return the child's pid."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        except Exception:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        raise SystemExit(0)  # through the frames of the parents, then atexit
    return pid


def _reap(pid: int) -> None:
    """Wait for a child; kill it and fail when it hangs."""
    deadline = time.monotonic() + CHILD_DEADLINE
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            if status:
                raise RuntimeError(f"child {pid} ended with status {status}")
            return
        if time.monotonic() > deadline:
            os.kill(pid, 6)
            os.waitpid(pid, 0)
            raise RuntimeError(f"child {pid} hung for {CHILD_DEADLINE} s")
        time.sleep(0.002)


def forked_by_c(ledger: int, seed: str, forks: str) -> None:
    """
    Fork as C code does: none of Python's hooks runs in the child.

    Other threads of this process wait meanwhile; with the GIL contended the child would hang in CPython.
    """
    fork = ctypes.PyDLL(None).fork
    recorder = Recorder(ledger, "small", int(seed))
    for number in range(int(forks)):
        recorder.many(3)
        pid = fork()
        if pid == 0:
            status = 1
            try:
                recorder.reseed(number + 1)
                recorder.many(3)
                status = 0
            finally:
                os._exit(status)
        recorder.many(3)
        _reap(pid)


def processes(ledger: int, method: str, count: str) -> None:
    """Record in children of `multiprocessing`."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    recorder = Recorder(ledger, "small", 1)
    recorder.many(3)
    receiver, sender = context.Pipe(duplex=False)
    children = [context.Process(target=_record_into, args=(sender, number)) for number in range(int(count))]
    for child in children:
        child.start()
    sender.close()
    try:
        while True:
            os.write(ledger, receiver.recv_bytes())
    except EOFError:
        pass
    for child in children:
        child.join(CHILD_DEADLINE)
        if child.exitcode != 0:
            raise RuntimeError(f"child ended with {child.exitcode}")
    recorder.many(3)


def _record_into(sender: Any, number: int) -> None:
    # A pipe of its own for the ledger, as no descriptor is inherited by a spawned child.
    reading, writing = os.pipe()
    Recorder(writing, "small", 1000 + number).many(20)
    os.close(writing)
    with open(reading, "rb") as lines:
        sender.send_bytes(lines.read())


PROGRAMS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        *(endless, some, paced, adopt),
        *(open_runs, changing, ending, forking, forked_by_c, processes),
    )
}

if __name__ == "__main__":
    program, descriptor, *rest = sys.argv[1:]
    os.set_inheritable(int(descriptor), False)
    for mix in MIXES.keys() & {*rest}:
        prepare(mix)
    os.read(0, 1)  # a host that is held waits here; others have nothing to read
    PROGRAMS[program](int(descriptor), *rest)

"""Rings of other versions: older ones are read whole, newer ones left to an exporter of theirs."""

from __future__ import annotations

import fcntl
import logging
import lzma
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import picostep
from picostep import ringdir
from picostep._ring import JSONText, NewerRing, RingReader
from picostep.exporter.loop import Exporter
from picostep.record import Record
from picostep.ringdir import RingDir
from picostep.settings.destination import Destination
from ringfile import (
    FRAME,
    HAS_COUNTS,
    HEADER,
    HEADER_SIZE,
    RECORD,
    TEXT,
    WORD,
    Rig,
    drain,
    frames,
    header,
    images,
    put,
    texts_at,
)
from support import run_python, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

NEWER = 4
DATA = Path(__file__).parents[1] / "data"
START = int(datetime(2026, 11, 27, 20, tzinfo=timezone.utc).timestamp()) * 10**9 + 123_456_789
TIMES = {"start_ns": START, "end_ns": START // 10**9 * 10**9 + 1_500_000_000}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DEAD = "the process ended before the run did"
LARGE = "93474565-e4a2-451b-b9ca-955bf8af74af"
"""The id that the program which made the file has written down for its last run."""

# What tests/data/old_ring.py has recorded.
RECORDED: list[dict[str, Any]] = [
    {
        "kind": "run",
        "run_id": "run 深",
        "session_id": "session",
        "conversational": True,
        "user_prompt": "é",
        "system_prompt": "\U0001f600" * 3,
        "full_input": '[{"role": "user", "content": "\\u00e9"}]',
        "response": "深",
        "full_output": "out",
        "metadata": '{"b": [1, 2]}',
        "status_code": 7,
        "status_message": "slow",
        "traceparent": PARENT,
        **TIMES,
    },
    {
        "kind": "step",
        "run_id": "run 深",
        "step_id": "step",
        "prompt": '["\\u6df1", {"a": 1}]',
        "response": "r" * 100,
        "tool_definitions": '{"t": []}',
        "model_requested": "asked",
        "model_used": "used",
        "provider": "provider",
        "service_tier": "batch",
        "prompt_uncached_tokens": 1,
        "prompt_cached_tokens": 2,
        "completion_tokens": 3,
        "cache_write_tokens": 4,
        "cache_write_1h_tokens": 0,
        "reasoning_tokens": 3,
        "real_total_cost": Decimal("0.10"),
        "finish_reason": "stop",
        "status_code": 2,
        "status_message": "failed",
        "traceparent": PARENT,
        **TIMES,
    },
    {
        "kind": "step",
        "run_id": "run 深",
        "step_id": "few",
        "prompt": "",
        "response": "\ud800",
        "prompt_cached_tokens": 9,
        "real_total_cost": 0.25,
        "status_code": 0,
        **TIMES,
    },
    {
        "kind": "tool_call",
        "run_id": "run 深",
        "tool_call_id": "call",
        "tool_name": "tool",
        "args": '{"x": "\\u00e9"}',
        "result": "",
        "status_code": 0,
        **TIMES,
    },
    {"kind": "feedback", "run_id": "with feedback", "score": "thumbs_down", "text": "why", "status_code": 0},
]
# The runs that were open when it was killed, less their end.
OPEN: list[dict[str, Any]] = [
    {
        "kind": "run",
        "run_id": "small",
        "session_id": "talk",
        "user_prompt": "p",
        "system_prompt": '{"s": 1}',
        "metadata": '{"k": "v"}',
        "start_ns": START,
        "status_code": 2,
        "status_message": f"so far; {DEAD}",
        "traceparent": PARENT,
    },
    {
        "kind": "run",
        "run_id": LARGE,
        "start_ns": START,
        "status_code": 2,
        "status_message": DEAD,
        "shortened": True,
    },
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The ring of a host of version 2 that was killed."""
    if sys.byteorder != "little":
        pytest.skip("it was made on a machine of the other byte order")
    path = tmp_path / "1-old.ring"
    path.write_bytes(lzma.decompress((DATA / "ring-2.xz").read_bytes()))
    path.chmod(0o600)
    return path


def stripped(record: Record) -> dict[str, Any]:
    """A record less what differs each time: its number, and of a feedback its id and times."""
    free = {"seq", *(("feedback_id", "start_ns", "end_ns") if record["kind"] == "feedback" else ())}
    return {name: value for name, value in record.items() if name not in free}


def check_open(found: Sequence[Record]) -> None:
    """Fail unless these are the open runs of the old host."""
    small, large = ({**record} for record in found)
    assert small.pop("end_ns") > START
    assert large.pop("end_ns") > START
    kept, cut = large.pop("user_prompt").split("… ")
    assert set(kept) == {"深"}
    assert cut == f"[picostep kept {len(kept)} of 1000 characters]"
    assert [stripped(small), stripped(large)] == OPEN


# --- older ------------------------------------------------------------------------------------------------


def test_a_ring_of_version_2(old: Path) -> None:
    assert header(old.read_bytes())["version"] & 0xFFFFFFFF == 2
    reader = RingReader(str(old))
    assert not reader.alive()
    found = list(drain(reader))
    assert [stripped(record) for record in found] == RECORDED
    assert {name for name, value in found[1].items() if isinstance(value, JSONText)} == {
        "prompt",
        "tool_definitions",
    }

    assert reader.fail_open_runs() == 2
    failed = list(drain(reader))
    check_open(failed)
    assert isinstance(failed[0]["system_prompt"], JSONText)
    assert reader.fail_open_runs() == 0
    counters = reader.counters()
    assert counters["accepted"] == counters["delivered"] == len(RECORDED) + 2
    assert sum(counters["dropped"].values()) + counters["torn"] == 0
    reader.close()


def test_failed_runs_stay_in_the_form_of_their_ring(old: Path) -> None:
    """An exporter that is killed then leaves a ring that one of version 2 could read."""
    reader = RingReader(str(old))
    assert not reader.alive()
    sum(1 for _ in drain(reader))
    head = header(old.read_bytes())["head"]
    assert reader.fail_open_runs() == 2
    reader.close()
    raw = old.read_bytes()
    fixed = struct.Struct("<4q6qd16s16sHHHBB")  # as 574d21a documents it
    at = HEADER_SIZE + head
    for status, run_uuid in ((2, 0), (2, 1)):
        _, size, kind, texts, _, _ = FRAME.unpack_from(raw, at)
        values = fixed.unpack_from(raw, at + FRAME.size)
        assert (kind, values[3], values[13] & 1, values[17]) == (2, status, run_uuid, 2)
        entries = [
            TEXT.unpack_from(raw, at + FRAME.size + fixed.size + TEXT.size * number)
            for number in range(texts)
        ]
        assert size == FRAME.size + fixed.size + sum(TEXT.size + -(-entry[3] // 8) * 8 for entry in entries)
        at += size


@pytest.mark.slow
def test_damage_in_a_ring_of_version_2(old: Path) -> None:
    """What is whole is recovered, and the rest is counted."""
    raw = old.read_bytes()
    second = HEADER_SIZE + FRAME.unpack_from(raw, HEADER_SIZE)[1]
    for at in range(second, second + FRAME.unpack_from(raw, second)[1]):
        old.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        reader = RingReader(str(old))
        assert not reader.alive()
        found = [stripped(record) for record in drain(reader)]
        corrupt = reader.counters()["dropped"]["corrupt"]
        reader.close()
        assert len(found) + corrupt == len(RECORDED)
        assert found[0] == RECORDED[0]
        assert found[-3:] == RECORDED[2:]


def test_a_note_for_a_host_of_version_2(old: Path) -> None:
    """It reads 64 bytes; what lies behind them is nobody's."""
    reader = RingReader(str(old))
    for note, shown in [("x" * 600, "x" * 63), ("short", "short"), ("", "")]:
        reader.set_last_error(note)
        assert reader.counters()["last_error"] == shown
        raw = old.read_bytes()[HEADER["last_error"] :]
        assert raw[:64] == shown.encode().ljust(64, b"\0")
        assert not any(raw[64 : HEADER_SIZE - HEADER["last_error"]])
    reader.close()


# --- a rolling upgrade ------------------------------------------------------------------------------------


class Keeper:
    """A sink that keeps what it takes."""

    name = "keeper"

    def __init__(self) -> None:
        self.taken: list[Record] = []

    def deliver(self, records: Sequence[Record]) -> dict[int, str]:
        self.taken += records
        return {}

    def close(self) -> None:
        pass

    def of(self, run_id: str) -> list[Record]:
        return [record for record in self.taken if record["run_id"] == run_id]


@pytest.fixture
def directory(ring_base: Path, clean_env: pytest.MonkeyPatch) -> Iterator[RingDir]:
    """The ring directory of hosts that record for `stdout`, with no exporter of their own."""
    clean_env.setenv("PICOSTEP_TO", "stdout")
    clean_env.setenv("PICOSTEP_EXPORTER", "off")
    name = Destination(("stdout",)).fingerprint
    opened = ringdir.open_dir(ringdir.base(str(ring_base)), name, create=True)
    yield opened
    opened.close()


def host(directory: RingDir, run_id: str) -> None:
    """Have a host of today record a step and end; its ring is gone as soon as an exporter has read it."""
    base = Path(directory.path).parent.parent
    code = "import sys, picostep; picostep.send_step(sys.argv[1], prompt='p', response='r')"
    settings = {"PICOSTEP_TO": "stdout", "PICOSTEP_EXPORTER": "off", "PICOSTEP_DIR": str(base)}
    run_python(code, settings, args=(run_id,))


def ring_of_host(directory: RingDir, run_id: str) -> Path:
    """Return the ring of such a host, where nobody exports."""
    before = set(Path(directory.path).glob("*.ring"))
    host(directory, run_id)
    (path,) = set(Path(directory.path).glob("*.ring")) - before
    return path


def exporter(directory: RingDir, sink: Keeper, **options: Any) -> Exporter:
    return Exporter(
        [directory], [sink], **{"stop": threading.Event(), "prepare": lambda records: None, **options}
    )


def test_an_old_host_beside_a_new_one(directory: RingDir, old: Path) -> None:
    """One exporter serves both; the old one's open runs are reported when it dies, and not before."""
    sink, stop = Keeper(), threading.Event()
    path = Path(directory.path) / old.name
    shutil.copy2(old, path)
    with path.open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        host(directory, "new")
        thread = threading.Thread(target=exporter(directory, sink, stop=stop, linger=0.0).run)
        thread.start()
        try:
            wait_until(lambda: len(sink.taken) == len(RECORDED) + 1)
            host(directory, "newer")
            wait_until(lambda: len(sink.taken) == len(RECORDED) + 2)
            assert sink.of("small") == []
            fcntl.flock(alive, fcntl.LOCK_UN)
            wait_until(lambda: not list(Path(directory.path).glob("*.ring")))
        finally:
            stop.set()
            thread.join(10)
    assert not thread.is_alive()
    (new,), (newer,) = sink.of("new"), sink.of("newer")
    assert new["prompt"] == newer["prompt"] == "p"
    check_open(sink.of("small") + sink.of(LARGE))
    rest = [record for record in sink.taken if record["run_id"] not in ("new", "newer", "small", LARGE)]
    assert [stripped(record) for record in rest] == RECORDED


# --- newer ------------------------------------------------------------------------------------------------


def made_newer(path: Path, version: int = NEWER) -> bytes:
    """Say that a ring is of another version; return what is in the file then."""
    raw = path.read_bytes()
    byte_order = struct.unpack_from("=I", raw, HEADER["version"] + 4)[0]
    (word,) = WORD.unpack(struct.pack("=II", version, byte_order))
    path.write_bytes(put(raw, "version", word))
    return path.read_bytes()


@pytest.mark.parametrize("version", [NEWER, 5, 2**32 - 1])
def test_a_newer_ring_is_refused_by_name(rig: Rig, version: int) -> None:
    rig.ring.close()
    made_newer(rig.path, version)
    with pytest.raises(NewerRing, match=f"version {version}; this one reads 2 to 3"):
        rig.reader()


@pytest.mark.slow
@pytest.mark.parametrize("living", [False, True])
def test_a_newer_ring_is_left_alone(
    directory: RingDir, caplog: pytest.LogCaptureFixture, living: bool
) -> None:
    """Name, bytes and counters stay; the log says so once; an exporter of its version takes it over."""
    caplog.set_level(logging.INFO)
    path = ring_of_host(directory, "future")
    found = made_newer(path)
    with path.open("rb") as alive:
        if living:
            fcntl.flock(alive, fcntl.LOCK_EX)
        host(directory, "today")
        sink = Keeper()
        exporter(directory, sink, linger=1.5).run()  # several scans, and it ends beside the ring
    assert [record["run_id"] for record in sink.taken] == ["today"]
    assert path.read_bytes() == found
    assert [entry.name for entry in Path(directory.path).glob("*.ring*")] == [path.name]
    totals = (Path(directory.path) / "totals.json").read_text()
    assert '"damaged_rings": 0' in totals
    lines = [entry.getMessage() for entry in caplog.records if path.name in entry.getMessage()]
    assert lines == [
        f"cannot read ring {path.name}: a ring of version 4; this one reads 2 to 3; "
        "it is left to an exporter of that version"
    ]

    made_newer(path, 3)
    exporter(directory, sink, linger=0.0).run()
    assert [record["run_id"] for record in sink.taken] == ["today", "future"]
    assert not path.exists()


# --- a later host of the same version -----------------------------------------------------------------------


def with_last_frame(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another last frame in the place of its own."""
    last = frames(raw)[-1]
    made = bytearray(change(raw[last.at : last.at + last.size]))
    struct.pack_into("=I", made, 8, len(made))
    changed = raw[: last.at] + made + raw[last.at + len(made) :]
    return put(changed, "head", last.position + len(made))


MADE: dict[str, Any] = {
    "prompt": "p",
    "response": "r",
    "model_used": "m",
    "prompt_uncached": 1,
    "reasoning": 5,
    "completion": 5,
}


def last_entry(frame: bytes) -> int:
    """Where the entry of the frame's last text is: of the model that was used."""
    texts = FRAME.unpack_from(frame)[3]
    return texts_at(frame, 0) + TEXT.size * (texts - 1)


def in_slot(frame: bytes, slot: int) -> bytes:
    at = last_entry(frame)
    return frame[:at] + bytes([slot]) + frame[at + 1 :]


def in_encoding(frame: bytes, encoding: int) -> bytes:
    at = last_entry(frame) + 2
    return frame[:at] + bytes([encoding]) + frame[at + 1 :]


def with_counts(frame: bytes, last: int) -> bytes:
    """With a count of this number, and zeros where others could be."""
    fixed = FRAME.size + RECORD.size
    values = list(RECORD.unpack_from(frame, FRAME.size))
    end = texts_at(frame, 0)
    values[HAS_COUNTS] |= 1 << last
    words = frame[fixed:end].ljust(8 * (last - 3), b"\0") + WORD.pack(77)
    return frame[: FRAME.size] + RECORD.pack(*values) + words + frame[end:]


def with_flags(frame: bytes, flags: int) -> bytes:
    values = list(RECORD.unpack_from(frame, FRAME.size))
    values[HAS_COUNTS - 1] |= flags
    return frame[: FRAME.size] + RECORD.pack(*values) + frame[FRAME.size + RECORD.size :]


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        pytest.param(lambda frame: in_slot(frame, 31), {"model_used"}, id="text"),
        pytest.param(lambda frame: in_slot(frame, 16), {"model_used"}, id="reserved text"),
        pytest.param(lambda frame: in_encoding(frame, 2), {"model_used"}, id="bytes"),
        pytest.param(lambda frame: in_encoding(frame, 255), {"model_used"}, id="encoding"),
        pytest.param(lambda frame: with_counts(frame, 6), set(), id="count"),
        pytest.param(lambda frame: with_counts(frame, 31), set(), id="last count"),
        pytest.param(lambda frame: with_flags(frame, 0xFFFFFF80), set(), id="flags"),
    ],
)
def test_what_has_no_name_is_left_out(rig: Rig, change: Callable[[bytes], bytes], missing: set[str]) -> None:
    """A host of a later release may use what is reserved: its record comes all the same, without that."""
    picostep.send_step("run", step_id="s", **MADE)
    reader = rig.reader()
    (whole,) = reader.read(10, 1 << 20)
    reader.close()
    assert {whole.get("model_used"), whole.get("reasoning_tokens")} == {"m", 5}
    rig.ring.close()
    rig.path.write_bytes(with_last_frame(rig.raw(), change))
    reader = rig.reader()
    assert not reader.alive()
    (record,) = drain(reader)
    assert record == {name: value for name, value in whole.items() if name not in missing}
    assert reader.counters()["dropped"]["corrupt"] == 0
    reader.close()


def test_an_id_without_a_name_is_damage(rig: Rig) -> None:
    """A record must have the id of its run."""
    picostep.send_step("run", **MADE)
    rig.ring.close()

    def nameless(frame: bytes) -> bytes:
        at = texts_at(frame, 0)
        assert frame[at] == 0
        return frame[:at] + bytes([31]) + frame[at + 1 :]

    rig.path.write_bytes(with_last_frame(rig.raw(), nameless))
    reader = rig.reader()
    assert not reader.alive()
    assert list(drain(reader)) == []
    assert reader.counters()["dropped"]["corrupt"] == 1
    reader.close()


def test_an_open_run_of_a_later_host_keeps_what_has_no_name(rig: Rig) -> None:
    """An exporter that reports it puts everything back into the ring, for one that knows more."""
    run = picostep.run("r", "session").prompt("p")
    raw = bytearray(rig.raw())
    rig.ring.close()
    (image,) = images(bytes(raw))
    at = texts_at(bytes(raw), image.at) + TEXT.size
    assert raw[at] == 1
    raw[at] = 14
    rig.path.write_bytes(raw)
    reader = rig.reader()
    assert not reader.alive()
    assert reader.fail_open_runs() == 1
    (record,) = reader.read(10, 1 << 20)
    reader.close()
    assert (record["user_prompt"], record["status_message"]) == ("p", DEAD)
    assert "session_id" not in record
    (frame,) = frames(rig.raw())
    assert [slot for slot, *_ in frame.texts] == [0, 14, 2, 8]
    del run


# --- last_error ---------------------------------------------------------------------------------------------


def test_whoever_reads_a_note_sees_one_of_those_that_were_left(rig: Rig) -> None:
    """However often an exporter changes it: never parts of two, nor what lies behind the end of one."""
    notes = ["", "http 503", "x" * 511, "y" * 511, "xy" * 200, "a longer text than the first " * 5]
    code = """
    import sys
    from picostep._ring import RingReader
    reader, notes = RingReader(sys.argv[1]), sys.argv[2:]
    for number in range(200_000):
        reader.set_last_error(notes[number % len(notes)])
    """
    seen = set()
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(rig.path), *notes]) as exporter:
        while exporter.poll() is None:
            seen.add(rig.ring.counters()["last_error"])
    assert exporter.returncode == 0
    assert len(seen) > 1
    assert seen <= set(notes)


def test_a_note_that_was_never_finished(rig: Rig) -> None:
    """Its writer was killed before it set the first character, which goes first and comes last."""
    reader = rig.reader()
    reader.set_last_error("whole")
    with rig.path.open("r+b") as file:
        file.seek(HEADER["last_error"])
        file.write(b"\0new text")
    assert rig.ring.counters()["last_error"] == reader.counters()["last_error"] == ""
    reader.close()

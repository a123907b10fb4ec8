"""The spool by itself: its files, what damage costs, limits, other exporters, the disk's faults."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from picostep._ring import JSONText
from picostep.cli import spools
from picostep.exporter import lanes
from picostep.exporter import spool as module
from picostep.exporter.dead_letters import NAME, OLDER, DeadLetters
from picostep.exporter.spool import Done, Part, Spool
from picostep.settings.destination import Destination
from spoolfile import FRAME_BYTES, HEADER_BYTES, acknowledged, frames, segments
from support import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no spool there")

SINK = "0123456789abcdef"
KEY = bytes.fromhex(SINK)
RING = b"ring-one"
CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"


def record(number: int, size: int = 10) -> dict[str, Any]:
    return {"kind": "step", "seq": number, "run_id": "r", "step_id": str(number), "prompt": "p" * size}


def part(first: int, count: int, *, ring: bytes = RING, size: int = 10) -> Part:
    """Records that are numbered like their positions in the ring."""
    return Part(ring, first, first + count, [record(n, size) for n in range(first, first + count)])


def ids(records: list[dict[str, Any]]) -> list[int]:
    return [int(record["step_id"]) for record in records]


def take(spool: Spool, most: int = 1000) -> list[int]:
    """Read and settle everything."""
    found: list[int] = []
    while len(spool):
        spool.drop_unreadable()
        records = spool.read(most, 1 << 30)
        spool.mark_settled(len(records))
        found += ids(records)
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool"


def opened(base: Path, most_bytes: int = 1 << 30, most_seconds: float = 1e6) -> Spool:
    return Spool(str(base), SINK, most_bytes, most_seconds)


@pytest.fixture
def spool(base: Path) -> Iterator[Spool]:
    made = opened(base)
    yield made
    made.close()


# --- the format ---------------------------------------------------------------------------------------------


def test_files_are_as_documented(spool: Spool, base: Path) -> None:
    strange = {
        **record(5),
        "prompt": "深\U0001f300\0",
        "response": JSONText('{"a":1}'),
        "real_total_cost": Decimal("0.1000000000000000000001"),
        "start_ns": 2**62,
    }
    surrogates = {**record(6), "prompt": "\ud800 lone", "cost_pico": 10**30}
    assert spool.append(part(0, 3)) == 1
    assert spool.append(Part(b"ring-two", 7, 9, [strange, surrogates])) == 1

    (path,) = segments(base)
    first, second = frames(path.read_bytes(), KEY)
    assert (first.seq, first.ring, first.end, first.records) == (0, RING, 3, [record(n) for n in range(3)])
    assert (second.seq, second.ring, second.end) == (3, b"ring-two", 9)
    assert second.records[0]["prompt"] == strange["prompt"]
    assert second.records[0]["~json"] == ["response"]
    assert second.records[0]["~number"] == ["real_total_cost"]
    assert second.records[1]["cost_pico"] == 10**30

    records = spool.read(100, 1 << 20)
    assert records == [*first.records, strange, surrogates]
    assert type(records[3]["response"]) is JSONText
    assert type(records[3]["real_total_cost"]) is Decimal
    spool.mark_settled(4)
    assert acknowledged(path) == 4


def test_everything_belongs_to_its_owner(spool: Spool, base: Path) -> None:
    before = os.umask(0)
    try:
        spool.append(part(0, 3))
        spool.read(10, 100)
        spool.mark_settled(1)
    finally:
        os.umask(before)
    found = [base, *base.rglob("*")]
    assert len(found) >= 6
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_order_limits_and_what_is_reported(spool: Spool) -> None:
    for first in (0, 10, 20):
        spool.append(part(first, 10))
    spool.append(part(0, 5, ring=b"ring-two"))
    assert len(spool) == 35
    assert ids(spool.read(20, 1 << 20)) == [*range(20)]
    assert ids(spool.read(15, 1 << 20)) == [*range(10)]
    assert ids(spool.read(1, 1)) == [*range(10)]  # a whole frame at least

    spool.mark_settled(4, {1: "rejected"})
    assert spool.collect() == []
    assert ids(spool.read(15, 1 << 20)) == [*range(4, 10)]
    spool.mark_settled(8, {0: "rejected", 7: "encode_error"})  # 4 to 11
    assert spool.collect() == [Done(RING, 10, 10, {"rejected": 2})]
    spool.mark_settled(len(spool))
    assert spool.collect() == [
        Done(RING, 20, 10, {"encode_error": 1}),
        Done(RING, 30, 10, {}),
        Done(b"ring-two", 5, 5, {}),
    ]
    assert not len(spool)


def test_large_parts_are_several_frames(spool: Spool) -> None:
    """Only the last one of a part says that the ring is settled up to its end."""
    count = spool.append(part(100, 20, size=50_000))
    assert 3 < count < 20
    assert [end for _, end, _ in spool.entries()] == [100] * (count - 1) + [120]
    assert take(spool) == [*range(100, 120)]


def test_empty_spool_has_no_files(spool: Spool, base: Path) -> None:
    for first in range(0, 40, 10):
        spool.append(part(first, 10))
        assert take(spool) == [*range(first, first + 10)]
        spool.collect()
        assert [path.name for path in base.rglob("*") if path.is_file()] == ["lock"]


# --- the next exporter --------------------------------------------------------------------------------------


def test_next_exporter_goes_on(base: Path) -> None:
    spool = opened(base)
    spool.append(part(0, 10))
    spool.append(part(10, 10))
    spool.mark_settled(13)
    spool.close()

    spool = opened(base)
    assert len(spool) == 7
    assert spool.entries() == [(RING, 20, 7)]
    assert take(spool) == [*range(13, 20)]
    assert spool.collect() == [Done(RING, 20, 10, {})]
    spool.close()


@pytest.mark.parametrize("ack", [None, b"", b"garbage", bytes(16), b"\xff" * 16])
def test_lost_progress_costs_duplicates_only(base: Path, ack: bytes | None) -> None:
    spool = opened(base)
    spool.append(part(0, 10))
    spool.mark_settled(4)
    spool.close()
    (path,) = segments(base)
    if ack is None:
        path.with_suffix(".ack").unlink()
    else:
        path.with_suffix(".ack").write_bytes(ack)
    spool = opened(base)
    assert take(spool) == [*range(10)]
    spool.close()


def test_torn_end(base: Path) -> None:
    """A frame that was being written when its exporter died was never promised; all before it are there."""
    spool = opened(base)
    spool.append(part(0, 10))
    spool.append(part(10, 10))
    spool.close()
    (path,) = segments(base)
    raw = path.read_bytes()
    whole, last = frames(raw, KEY)
    for cut in range(last.at, len(raw)):
        path.write_bytes(raw[:cut])
        spool = opened(base)
        assert ids(spool.read(100, 1 << 20)) == [*range(10)]
        spool.close()
    assert whole.at == HEADER_BYTES


def test_lanes_of_living_and_dead_exporters(base: Path) -> None:
    """Two exporters of one sink do not meet; what one leaves is taken over by the other, once."""
    first, second = opened(base), opened(base)
    first.append(part(0, 10))
    second.append(part(10, 10))
    first.adopt()
    second.adopt()
    assert (len(first), len(second)) == (10, 10)
    first.mark_settled(3)
    first.close()

    second.adopt()
    assert sorted(take(second)) == [*range(3, 20)]
    third = opened(base)
    assert len(third) == 0
    third.close()
    second.close()


def test_others_are_given_nothing(base: Path) -> None:
    """Neither another sink's spool, nor a file that was moved into it."""
    spool = opened(base)
    spool.append(part(0, 10))
    spool.close()
    (path,) = segments(base)
    other = Spool(str(base), "fedcba9876543210", 1 << 30, 1e6)
    assert len(other) == 0
    other.append(part(50, 1))
    other.close()
    (lane,) = {each.parent for each in segments(base)} - {path.parent}
    path.rename(lane / path.name)
    other = Spool(str(base), "fedcba9876543210", 1 << 30, 1e6)
    assert take(other) == [50]
    other.close()


def test_names_of_sinks_tell_nothing() -> None:
    """Key and URLs are part of what a name stands for, and cannot be read from it."""

    def name(*, key: str = "dev_key", url: str = "http://h/", to: str = "tcc") -> str:
        return Destination((to,), key, url, url).sink_fingerprint(to)

    names = {name(), name(key="dev_other"), name(url="http://i/"), name(to="other:x")}
    assert len(names) == 4
    assert all(len(bytes.fromhex(each)) == 8 for each in names)
    # What does not send has the same spool whatever key there is.
    assert name(to="store:/a") == name(to="store:/a", key="dev_other")


# --- damage -------------------------------------------------------------------------------------------------


def made_segment(base: Path, count: int) -> tuple[Path, bytes]:
    spool = opened(base)
    for first in range(0, count * 3, 3):
        spool.append(part(first, 3))
    spool.close()
    (path,) = segments(base)
    return path, path.read_bytes()


def recovered(base: Path) -> tuple[list[int], Counter[str]]:
    """What a new exporter delivers, and what it counts as dropped."""
    spool = opened(base)
    delivered = take(spool)
    dropped: Counter[str] = Counter()
    for done in spool.collect():
        dropped.update(done.dropped)
    spool.close()
    return delivered, dropped


def check_damage(base: Path, path: Path, raw: bytes, damaged: bytes) -> None:
    """
    All frames without damage are delivered, and nothing else.

    Of a frame whose header is damaged, this exporter cannot know; its ring's counters tell the next one.
    """
    path.write_bytes(damaged)
    delivered, dropped = recovered(base)
    path.unlink(missing_ok=True)
    path.with_suffix(".ack").unlink(missing_ok=True)
    expected = [
        int(record["step_id"])
        for frame in frames(raw, KEY)
        if damaged[frame.at : frame.at + frame.size] == raw[frame.at : frame.at + frame.size]
        for record in frame.records
    ]
    assert delivered == expected
    assert dropped.total() <= len(frames(raw, KEY)) * 3 - len(delivered)
    assert dropped.keys() <= {"corrupt"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_bit_of_a_segment(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every run a sample; in a campaign all bits of a segment, and random damage: 100,000 in all."""
    monkeypatch.setattr(module, "ADOPT_WITHIN", 0.0)
    monkeypatch.setattr(lanes.Lanes, "set_aside", lambda self, name: None)
    monkeypatch.setattr(module.os, "fsync", lambda fd: None)
    path, raw = made_segment(base, 4)
    random = Random(7)
    bits = list(range(len(raw) * 8))
    if not CAMPAIGN:
        bits = random.sample(bits, 150)
    for bit in bits:
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        check_damage(base, path, raw, bytes(changed))
    for _ in range(100_000 - len(bits) if CAMPAIGN else 100):
        changed = bytearray(raw)
        start = random.randrange(len(raw))
        length = min(random.choice((1, 8, FRAME_BYTES, 400)), len(raw) - start)
        changed[start : start + length] = random.choice((bytes(length), random.randbytes(length)))
        check_damage(base, path, raw, bytes(changed))


def test_truncated_anywhere(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADOPT_WITHIN", 0.0)
    path, raw = made_segment(base, 4)
    ends = [frame.at + frame.size for frame in frames(raw, KEY)]
    for size in range(0, len(raw), 1 if CAMPAIGN else 13):
        path.write_bytes(raw[:size])
        delivered, dropped = recovered(base)
        path.unlink(missing_ok=True)
        assert delivered == [*range(3 * sum(end <= size for end in ends))]
        assert not dropped


def test_damage_while_it_is_read(spool: Spool, base: Path) -> None:
    """What is lost is counted to the record, and for its ring; the file is kept to be looked at."""
    for first, ring in ((0, RING), (10, b"ring-two"), (20, RING)):
        spool.append(part(first, 10, ring=ring))
    (path,) = segments(base)
    _, second, _ = frames(path.read_bytes(), KEY)
    with path.open("rb+") as file:
        file.seek(second.at + FRAME_BYTES + 5)
        file.write(b"XXXX")
    assert take(spool) == [*range(10), *range(20, 30)]
    assert spool.collect() == [
        Done(RING, 10, 10, {}),
        Done(b"ring-two", 20, 10, {"corrupt": 10}),
        Done(RING, 30, 10, {}),
    ]
    assert [each.name for each in (base / SINK / "bad").iterdir()] == [path.name]


CRASH = """
import os, sys
from picostep.exporter import segment, spool
segment.decode = lambda *_: os._exit(9)
found = spool.Spool(sys.argv[1], sys.argv[2], 1 << 30, 1e6)
found.drop_unreadable()
found.read(100, 1 << 20)
"""


def test_frame_that_crashes_its_reader(base: Path) -> None:
    """Three times; then it is put aside, counted, and no exporter dies of it any more."""
    spool = opened(base)
    spool.append(part(0, 5))
    spool.close()
    for _ in range(3):
        assert run_python(CRASH, args=(str(base), SINK), check=False).returncode == 9
    assert run_python(CRASH, args=(str(base), SINK)).returncode == 0
    assert len(list((base / SINK / "bad").iterdir())) == 1
    assert not segments(base)


def test_crashes_without_a_reason_in_the_file_do_not_matter(base: Path) -> None:
    """An exporter that is killed again and again while it waits for its sink loses nothing."""
    spool = opened(base)
    spool.append(part(0, 5))
    spool.close()
    for _ in range(5):
        spool = opened(base)
        assert ids(spool.read(100, 1 << 20)) == [*range(5)]
        spool.close()
    assert recovered(base) == ([*range(5)], Counter())


def test_aside_is_bounded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ASIDE_BYTES", 1000)
    for _ in range(8):
        path, raw = made_segment(base, 2)
        path.write_bytes(raw[:HEADER_BYTES] + b"damage" + raw[HEADER_BYTES + 6 :])
        recovered(base)
    kept = list((base / SINK / "bad").iterdir())
    assert 0 < sum(each.stat().st_size for each in kept) <= 1000


# --- limits and faults --------------------------------------------------------------------------------------


def test_limit_of_bytes(base: Path) -> None:
    """What does not fit is not taken, and fits again when there is room."""
    random = Random(1)
    texts = [random.randbytes(30_000).hex() for _ in range(20)]
    spool = opened(base, most_bytes=1 << 20)
    taken = 0
    while spool.append(Part(RING, taken, taken + 1, [{**record(taken), "prompt": texts[taken % 20]}])):
        taken += 1
    assert 20 < taken < 100
    assert spool.trouble == "spool: EDQUOT"
    assert sum(path.stat().st_size for path in segments(base)) <= 1 << 20
    other = opened(base, most_bytes=1 << 20)  # another exporter of the same sink shares the limit
    assert not other.append(Part(RING, 0, 1, [{**record(0), "prompt": texts[0]}]))
    other.close()
    assert take(spool) == [*range(taken)]
    spool.collect()
    assert spool.append(part(0, 1))
    assert spool.trouble == ""
    spool.close()


def test_disk_is_left_room(spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    monkeypatch.setattr(module, "KEEP_FREE_PART", 1)
    monkeypatch.setattr(module, "KEEP_FREE", space.f_bavail * space.f_frsize + (1 << 40))
    assert not spool.append(part(0, 1))
    assert spool.trouble == "spool: ENOSPC"


def test_age(base: Path) -> None:
    spool = opened(base, most_seconds=0.05)
    spool.append(part(0, 10))
    spool.mark_settled(2)
    time.sleep(0.06)
    assert spool.drop_unreadable()
    assert spool.collect() == [Done(RING, 10, 10, {"expired": 8})]
    assert not len(spool)
    spool.close()


def test_age_does_not_follow_the_clock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(base, most_seconds=3600.0)
    spool.append(part(0, 10))
    late = time.time_ns() + 10**18
    monkeypatch.setattr(time, "time_ns", lambda: late)
    assert not spool.drop_unreadable()
    assert take(spool) == [*range(10)]
    spool.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("name", ["pwrite", "open", "fsync", "fstatvfs"])
def test_failing_calls(base: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Whichever call of `append()` fails: all or nothing is taken, and it goes on when the disk does."""
    real = getattr(os, name)
    for failing in range(6):
        spool = opened(base)
        taken: list[int] = []
        calls = iter(range(1000))

        def fail(*args: Any, calls: Any = calls, failing: int = failing, **kwargs: Any) -> Any:
            if next(calls) == failing:
                raise OSError(code, "made up")
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, fail)
        for first in range(0, 100, 10):
            if spool.append(part(first, 10)):
                taken += range(first, first + 10)
        monkeypatch.setattr(os, name, real)
        assert len(taken) >= 90
        assert take(spool) == taken
        spool.collect()
        spool.close()
        assert recovered(base) == ([], Counter())


@pytest.mark.parametrize("name", ["open", "pread", "fstat"])
def test_files_that_cannot_be_looked_into(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """At a first error it looks again; while it cannot, their records count as damage, not as delivered."""
    spool = opened(base)
    spool.append(part(0, 5))
    spool.close()
    call, calls = getattr(os, name), Counter[str]()

    def failing(*args: Any, **options: Any) -> Any:
        target = args[0] if name == "open" else os.readlink(f"/proc/self/fd/{args[0]}")
        if str(target).endswith(".seg"):
            calls[name] += 1
            if calls[name] <= failures:
                raise OSError(errno.EIO, "injected")
        return call(*args, **options)

    monkeypatch.setattr(module.os, name, failing)
    for failures in (1, 100):
        calls.clear()
        spool = opened(base)
        assert (len(spool), spool.damaged) == ((5, False) if failures == 1 else (0, True))
        spool.close()
    monkeypatch.undo()
    spool = opened(base)
    assert take(spool) == list(range(5))
    spool.close()


def test_short_writes(spool: Spool, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    assert spool.append(part(0, 100))
    monkeypatch.undo()
    (path,) = segments(base)
    assert len(frames(path.read_bytes(), KEY)) == 1
    assert take(spool) == [*range(100)]


def test_failed_sync_is_never_a_success(spool: Spool, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written before is not called synced, and what comes goes to another file."""
    monkeypatch.setattr(module, "SYNC_AFTER", 0.0)
    spool.append(part(0, 10))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "made up")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail)
        spool.sync()
    assert spool.trouble == "spool: EIO"
    spool.append(part(10, 10))
    assert len(segments(base)) == 2
    spool.sync()
    assert not spool.synced
    assert take(spool) == [*range(20)]
    spool.collect()
    assert spool.synced


def test_sync_by_time_and_by_bytes(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.setattr(module, "SYNC_BYTES", 1 << 40)
    monkeypatch.setattr(module, "SYNC_AFTER", 3600.0)
    spool.append(part(0, 10))
    spool.sync()
    assert not synced
    assert not spool.synced
    monkeypatch.setattr(module, "SYNC_BYTES", 1)
    spool.sync()
    assert len(synced) == 1
    assert spool.synced
    monkeypatch.setattr(module, "SYNC_BYTES", 1 << 40)
    monkeypatch.setattr(module, "SYNC_AFTER", 0.0)
    spool.append(part(10, 10))
    spool.sync()
    assert len(synced) == 2
    spool.sync()
    assert len(synced) == 2


def test_removed_under_it(base: Path) -> None:
    """Somebody clears the state directory: what was there is lost, and what comes is spooled again."""
    spool = opened(base)
    spool.append(part(0, 10))
    subprocess.run(["rm", "-rf", str(base)], check=True)
    spool._retire(spool._active)  # type: ignore[arg-type]
    assert not spool.append(part(10, 10))
    assert spool.append(part(20, 10))
    spool.close()
    assert recovered(base)[0] == [*range(20, 30)]


@pytest.mark.parametrize("kind", ["link", "file", "foreign", "open"])
def test_directories_that_are_not_ours(base: Path, tmp_path: Path, kind: str) -> None:
    base.mkdir(parents=True, mode=0o700)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (base / SINK).symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        (base / SINK).write_text("")
    else:
        (base / SINK).mkdir(mode=0o700)
        if kind == "open":
            (base / SINK).chmod(0o755)
        elif os.geteuid() == 0:
            os.chown(base / SINK, 12345, 12345)
        else:
            pytest.skip("only root can give a directory away")
    spool = opened(base)
    assert not spool.append(part(0, 1))
    assert spool.trouble.startswith("spool: ")
    spool.close()
    assert not list((tmp_path / "elsewhere").glob("*"))


# --- dead letters, and looking at what is there -------------------------------------------------------------


def test_dead_letters(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = DeadLetters(str(base), SINK)
    whole = {**record(1), "start_ns": 0, "end_ns": 0, "status_code": 0}
    letters.write(whole, "http 422")
    letters.write({"kind": "step", "run_id": "r", "step_id": "2", "prompt": object()}, "cannot be encoded")
    path = base / SINK / NAME
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["reason"], first["record"]["prompt"]) == ("http 422", "p" * 10)
    assert second["record"] == {"kind": "step", "run_id": "r", "step_id": "2"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    monkeypatch.setattr("picostep.exporter.dead_letters.MOST_BYTES", 2000)
    for _ in range(50):
        letters.write(whole, "http 422")
    letters.close()
    assert path.stat().st_size <= 2000
    assert (base / SINK / OLDER).stat().st_size <= 2000
    assert len(list(spools.dead_letters(str(base), SINK))) > 5


def test_looking_changes_nothing(base: Path) -> None:
    spool = opened(base)
    spool.append(part(0, 10))
    spool.append(part(10, 10))
    spool.mark_settled(3)
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    (seen,) = spools.waiting(str(base))
    assert (seen.sink, seen.records, seen.exporters, seen.damaged) == (SINK, 17, 1, 0)
    assert [int(each["step_id"]) for each in islice(spools.records(str(base), SINK), 100)] == [*range(3, 20)]
    assert before == {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    spool.close()
    assert recovered(base)[0] == [*range(3, 20)]

"""The key and the content of texts appear where they must, and nowhere else; files are this user's alone."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from picostep.errors import ConfigError
from picostep.exporter.ledger import Ledger
from picostep.exporter.rings import DirectoryRings
from picostep.record import Record
from picostep.ringdir import RingDirError, base, open_dir
from picostep.settings.destination import Destination, resolve_destination
from picostep.settings.table import Settings
from picostep.sinks import RetryLater, open_sink, open_sinks
from support import Ingest, Reply, Request, clean_environment, exporters, free_port, run_python, wait_until

KEY = "KEYcanary-7f3a91"
TEXT = "TEXTcanary-5be2c0"


def step(**fields: Any) -> Record:
    times = {"start_ns": 1, "end_ns": 2, "status_code": 0, "seq": 0}
    return {"kind": "step", "run_id": "r", "step_id": "s", **times, **fields}


# --- canaries -----------------------------------------------------------------------------------------------

# Everything that a program may do with us, right and wrong; what may be logged or shown goes to stderr.
HOST = f"""
import faulthandler, json, logging, os, pickle, sys, time, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
import picostep

key, text = os.environ.pop("CANARY_KEY"), {TEXT!r}
mode = json.loads(sys.argv[1])
picostep.configure(**({{"api_key": key}} if mode.pop("in_code") else {{}}), **mode)
os.write(2, repr(picostep.runtime.settings()).encode())


def everything():
    run = picostep.run(session_id="s")
    run.prompt(text, system_prompt=text, full_input=text).response(text, full_output=text)
    run.metadata({{"a": text}}, b=[text])
    step = run.step()
    step.prompt([{{"content": text}}]).response(text).tool_definitions(text).status(2, text)
    call = run.tool_call("name")
    call.args({{"q": text}}).result(text)
    for ended in (step, call, run):
        os.write(2, repr((ended, str(ended))).encode())
        ended.end()
    run.feedback("thumbs_up", text)
    for own_key in (key + "-own", key + "\\n"):
        attempt(lambda: picostep.step("r", api_key=own_key).error(text))
    attempt(lambda: step.prompt(text))
    attempt(lambda: picostep.run().prompt(text.encode()))
    attempt(lambda: picostep.run().metadata({{1: text}}))
    attempt(lambda: picostep.submit_feedback(run.run_id, text))
    attempt(lambda: picostep.step("r").prompt(text).end())
    attempt(lambda: picostep.step("r", tcc_url="http://u:" + key + "@h/"))
    attempt(lambda: picostep.get_url("/", key))
    with open(os.devnull, "w") as nowhere:
        attempt(lambda: pickle.dump(run, nowhere))


def attempt(call):
    try:
        call()
    except Exception as error:
        # No locals of this program, which holds the canaries itself; ours are in the frames below it.
        frames = traceback.TracebackException.from_exception(error, capture_locals=True)
        frames.stack[:] = [frame for frame in frames.stack if "picostep" in frame.filename]
        os.write(2, "".join(frames.format()).encode())


everything()
if sys.argv[2] == "delivered":
    assert picostep.flush(20)
deadline = time.monotonic() + 20
while sys.argv[2] == "failed" and not picostep.stats()["last_error"]:
    assert time.monotonic() < deadline
    time.sleep(0.005)
print(json.dumps(picostep.stats()))
sys.stdout.flush()
faulthandler.dump_traceback(all_threads=True)
os.write(2, b"waits")
sys.stdin.readline()
"""


@contextmanager
def host(
    mode: dict[str, Any], env: dict[str, str], until: str, out: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """
    A host that has recorded, and lives until the block ends; its output goes to files in `out`.

    `until` is what it waits for first: that its records are "delivered", that this "failed", or "nothing".
    """
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", HOST, json.dumps(mode), until],
            env=clean_environment(CANARY_KEY=KEY, PICOSTEP_EXIT_TIMEOUT="0", **env),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            wait_until(
                lambda: process.poll() is not None or b"waits" in (out / "stderr").read_bytes(),
                30,
                "the host",
            )
            assert process.poll() is None, (out / "stderr").read_text()
            yield process
        finally:
            assert process.stdin
            process.stdin.close()
            try:
                process.wait(100)
            finally:
                process.kill()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def without(places: dict[str, bytes], *canaries: str) -> None:
    """Fail if a canary is in a place, as text of one, two or four bytes a character."""
    for name, content in places.items():
        for canary in canaries:
            for encoding in ("utf-8", "utf-16-le", "utf-32-le"):
                assert canary.encode(encoding) not in content, f"{canary} in {name}"


def told(base: Path, out: Path) -> dict[str, bytes]:
    """Where no content may be: what was printed and logged, counters, and what the command line shows."""
    environment = {"PICOSTEP_DIR": str(base), "XDG_STATE_HOME": str(out / "state")}
    status = subprocess.run(
        [sys.executable, "-m", "picostep", "status", "--json"],
        env=clean_environment(**environment),
        capture_output=True,
        timeout=100,
        check=False,
    )
    places = {"status": status.stdout + status.stderr}
    places |= {str(path): path.read_bytes() for path in (out / "stdout", out / "stderr")}
    places |= {name: data for name, data in contents(base).items() if not name.endswith(".ring")}
    return places


def processes(base: Path) -> dict[str, bytes]:
    """What others may see of the exporters of a directory."""
    found = {}
    for pid in wait_until(lambda: exporters(base)):
        for name in ("cmdline", "environ", "comm"):
            found[f"{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("exporter", "reply", "in_code"),
    [
        ("process", 200, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("process", 503, False), ("thread", 401, True), ("external", 200, False))
        ),
    ],
)
def test_canaries(
    exporter: str, reply: int, in_code: bool, ring_base: Path, ingest: Ingest, tmp_path: Path
) -> None:
    """The server repeats what it gets, headers and body, wherever it can put it."""

    def echo(request: Request) -> Reply:
        key = request.headers["authorization"]
        return Reply(reply, key.encode() + request.body, {"X-Echo": key})

    ingest.default = echo
    out = tmp_path / "out"
    out.mkdir()
    to = [
        "tcc",
        f"jsonl:{tmp_path / 'records.jsonl'}",
        f"store:{tmp_path / 'store.db'}",
        f"otlp:{ingest.url}",
    ]
    variable = "OTEL_EXPORTER_OTLP_HEADERS" if in_code else "PICOSTEP_OTLP_HEADERS"
    env = {variable: f"Authorization=Bearer%20{KEY}"}
    env |= {"TCC_BASE_URL": ingest.url, "TCC_DEBUG": "1", "PICOSTEP_DIR": str(ring_base)}
    env |= {"TCC_URL": f"{ingest.url}/v1/custom?token={KEY}"}
    if not in_code:
        env |= {"TCC_API_KEY": KEY}
    mode = {"to": to, "exporter": exporter, "misuse": "raise" if in_code else "log", "in_code": in_code}
    until = "nothing" if exporter == "external" else "delivered" if reply == 200 else "failed"

    with host(mode, env, until, out):
        if exporter == "process":
            without(processes(ring_base), KEY, TEXT)
        if exporter == "external":
            done = subprocess.run(
                [sys.executable, "-m", "picostep", "export", "--once"],
                env=clean_environment(**(env | {"TCC_API_KEY": KEY, "PICOSTEP_TO": ",".join(to)})),
                capture_output=True,
                timeout=100,
                check=False,
            )
            assert ingest.items(), done.stderr
            without({"export": done.stdout + done.stderr}, KEY, TEXT)
        without(told(ring_base, out), KEY, TEXT)
        without(contents(ring_base) | contents(tmp_path), KEY)
        requests = ingest.requests

    # The canaries were there to be found.
    keys = {request.headers["authorization"] for request in requests}
    assert keys <= {f"Bearer {KEY}", f"Bearer {KEY}-own"}
    for path in ("/v1/custom", "/v1/traces"):
        assert any(TEXT.encode() in request.body for request in requests if request.path.startswith(path))
    assert TEXT.encode() in (tmp_path / "records.jsonl").read_bytes()
    if reply != 200:
        assert f"http {reply}".encode() in (out / "stdout").read_bytes()
    without({name: (out / name).read_bytes() for name in ("stdout", "stderr")}, KEY, TEXT)


@pytest.mark.slow
def test_a_dead_backend_tells_nothing(ring_base: Path, tmp_path: Path) -> None:
    """Also with the log of urllib3 at DEBUG, and through a proxy with a password that is not there either."""
    env = {"PICOSTEP_DIR": str(ring_base), "http_proxy": f"http://user:{KEY}@127.0.0.1:{free_port()}"}
    env |= {"TCC_API_KEY": KEY, "TCC_DEBUG": "1", "TCC_BASE_URL": "http://collector.invalid"}
    env |= {"TCC_ALLOW_UNSAFE_BASE_URL": "1"}
    with host({"exporter": "thread", "in_code": False, "to": "tcc"}, env, "failed", tmp_path):
        pass
    places = {name: (tmp_path / name).read_bytes() for name in ("stdout", "stderr")}
    without(places, KEY, TEXT, "collector.invalid")
    assert b"proxy failed" in places["stdout"]


def views(value: Any) -> Iterator[str]:
    yield from (repr(value), str(value), f"{value}", ascii(value))
    yield repr(dir(value))
    yield from (repr(copy.copy(value)), repr(copy.deepcopy(value)))


def test_no_view_of_an_object_shows_the_key(clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("TCC_API_KEY", KEY)
    settings = Settings.resolve(api_key=KEY, to=["tcc"])
    target = resolve_destination(settings)
    assert target.api_key == settings.api_key == KEY
    sinks = open_sinks(target)
    for value in (settings, target, *sinks, pickle.loads(pickle.dumps(target))):
        assert all(KEY not in view for view in views(value))
    assert KEY not in json.dumps(settings.as_dict())
    assert KEY not in target.fingerprint
    with pytest.raises(AttributeError) as refused:
        target.api_key = "other"
    assert KEY not in "".join(traceback.format_exception(refused.value))
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda: resolve_destination(Settings.resolve(), api_key=f"{KEY}\r\nX: y"),
        lambda: Settings.resolve(api_key=f"{KEY}\0"),
        lambda: Settings.resolve(tcc_url=f"http://user:{KEY}@host/"),
        lambda: Settings.resolve(tcc_url=f"http://user:{KEY}@host:x/"),
        lambda: Settings.resolve(to=f"tcc:{KEY}@x"),
        lambda: resolve_destination(Settings.resolve(to="tcc", tcc_url=f"ftp://h/?key={KEY}"), api_key=KEY),
        lambda: open_sink("tcc", Destination(("tcc",), KEY, "x", "y")),
        lambda: open_sink("tcc", Destination(("tcc",), f"{KEY}\n", "http://h", "http://h")),
    ],
)
def test_no_message_shows_the_key(call: Callable[[], object], clean_env: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        call()
    assert KEY not in "".join(traceback.format_exception(refused.value))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_exporter_leaves_no_core(ring_base: Path, ingest: Ingest, tmp_path: Path) -> None:
    """A limit of one byte: the kernel then writes no core file, and starts no program that would."""
    import resource

    env = {"PICOSTEP_DIR": str(ring_base), "TCC_BASE_URL": ingest.url}
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with host({"exporter": "process", "in_code": True, "to": "tcc"}, env, "delivered", tmp_path):
        pids = wait_until(lambda: exporters(ring_base))
        for pid in pids:
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == ((1, 1) if hard else (0, 0))
            os.kill(pid, signal.SIGABRT)
        wait_until(lambda: not set(pids) & set(exporters(ring_base)), what="exporters gone")


# --- files --------------------------------------------------------------------------------------------------


def test_everything_made_is_this_users_alone(ring_base: Path, tmp_path: Path) -> None:
    code = """
import os, sys
os.umask(0)
import picostep
picostep.step("r").error("x")
assert picostep.flush(20)
"""
    places = [ring_base / "a" / "b", tmp_path / "state" / "c", tmp_path / "records.jsonl"]
    env = {"PICOSTEP_DIR": str(places[0]), "PICOSTEP_TO": f"store:{places[1]}/store.db,jsonl:{places[2]}"}
    for exporter in ("process", "thread"):
        run_python(code, {**env, "PICOSTEP_EXPORTER": exporter})
        made = [path for place in (ring_base / "a", tmp_path) for path in (place, *place.rglob("*"))]
        assert {path.name for path in made} >= {"store.db", "records.jsonl", "lock", "b", "c"}
        for path in made[1:] if made[0] == tmp_path else made:
            assert path == tmp_path or stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "victim")


def directory(path: Path) -> None:
    path.mkdir(0o700)


KINDS: list[Callable[[Path], None]] = [fifo, link, directory]
if os.access("/dev/shm", os.W_OK) and hasattr(os, "geteuid") and os.geteuid() == 0:

    def device(path: Path) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # /dev/full

    KINDS.append(device)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "exporter.log",
        "totals.json",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("totals.json.new", "1-a.ring")),
    ],
)
def test_other_things_in_place_of_our_files(
    make: Callable[[Path], None], name: str, ring_base: Path, tmp_path: Path
) -> None:
    """Nobody waits for them or writes through them, and records arrive all the same."""
    code = """
import sys, picostep
picostep.step("r", "s").model("no such model").tokens(1, 1, 1).error("x")  # which is logged
sys.exit(not picostep.flush(20))
"""
    env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"jsonl:{tmp_path / 'records.jsonl'}"}
    target = Destination((env["PICOSTEP_TO"],))
    place = open_dir(base(str(ring_base)), target.fingerprint, create=True)
    victim = Path(place.path).parent / "victim"
    victim.write_text("untouched")
    make(Path(place.path, name))
    place.close()

    run_python(code, env)

    (line,) = (tmp_path / "records.jsonl").read_text().splitlines()
    assert json.loads(line)["step_id"] == "s"
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("sink", ["jsonl", "store"])
def test_other_things_in_place_of_a_sinks_file(
    make: Callable[[Path], None], sink: str, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "file"
    make(path)
    before = path.lstat()
    with pytest.raises((ConfigError, RetryLater)):
        open_sink(f"{sink}:{path}", Destination((f"{sink}:{path}",))).deliver([step()])
    assert (tmp_path / "victim").read_text() == "untouched"
    assert path.lstat().st_mode == before.st_mode


@pytest.mark.parametrize("make", KINDS)
def test_other_things_in_place_of_the_journal(make: Callable[[Path], None], tmp_path: Path) -> None:
    """SQLite opens it by itself."""
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "store.db"
    make(tmp_path / "d" / "store.db-journal")
    code = f"""
from picostep.sinks import open_sink, RetryLater
from picostep.settings.destination import Destination
try:
    open_sink("store:{path}", Destination(())).deliver([{step()!r}])
except RetryLater:
    print("refused")
"""
    run_python(code)
    assert (tmp_path / "victim").read_text() == "untouched"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
def test_files_of_another_user_are_refused(tmp_path: Path, ring_base: Path) -> None:
    for name in ("records.jsonl", "store.db"):
        (tmp_path / name).touch(0o666)
        os.chown(tmp_path / name, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        open_sink(f"jsonl:{tmp_path / 'records.jsonl'}", Destination(()))
    with pytest.raises(RetryLater, match="belongs to user 12345"):
        open_sink(f"store:{tmp_path / 'store.db'}", Destination(())).deliver([step()])
    Path(base(str(ring_base))).mkdir(0o777)
    os.chown(base(str(ring_base)), 12345, 12345)
    with pytest.raises(RingDirError, match="belongs to user 12345"):
        open_dir(base(str(ring_base)), "x", create=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
def test_another_user_reads_nothing(ring_base: Path, tmp_path: Path) -> None:
    """With everything open that is not ours, and without a umask."""
    code = "import os; os.umask(0); import picostep; picostep.step('r').error('x'); assert picostep.flush(20)"
    state = ring_base / "state"
    ring_base.chmod(0o755)
    env = {"PICOSTEP_DIR": str(ring_base / "rings"), "PICOSTEP_TO": f"store:{state}/store.db"}
    run_python(code, env)
    looks = """
import os, sys
os.setgid(12345); os.setuid(12345)
for top in sys.argv[1:]:
    for path, names, files in os.walk(top):
        for name in files:
            try:
                open(os.path.join(path, name)).close()
            except PermissionError:
                continue
            print("read", name)
    assert not os.access(top, os.R_OK)
"""
    done = run_python(looks, args=(str(ring_base / "rings"), str(state)))
    assert done.stdout == ""


def test_a_directory_swapped_after_it_was_opened(ring_base: Path) -> None:
    """What is done goes to the directory that was checked, not to what has its name now."""
    opened = open_dir(base(str(ring_base)), "x", create=True)
    path = Path(opened.path)
    path.rename(path.with_name("moved"))
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    path.symlink_to(elsewhere)
    ring = opened.make_ring(256 * 1024)
    rings = DirectoryRings(opened, Ledger(()))
    rings.refresh()
    assert len(rings) == 1
    rings.close()
    ring.close()
    opened.close()
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(RingDirError):
        open_dir(base(str(ring_base)), "x", create=True)

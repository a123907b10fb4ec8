"""
A server and its exporter in two containers, as docs/deploy has them.

Each is in namespaces of its own (mounts, processes, IPC) and process 1 there, as a user without privileges,
with a root that is read-only and 64 MB of /dev/shm; what they share is a file system of 64 MB in memory.
Where that user may not enter the directory that has interpreter, package or tests, as below the home of root,
another one is put in its place, with no more than these in it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from oracle import Host, Oracle, check_totals, environment, times, wait_for_no_rings
from proxy import Proxy, passing, refuse
from receiver import Receiver
from support import clean_environment, wait_until

Start = Callable[..., Host]

USER = "1000"
STEPS = times(300, 20_000)
RING = 4 << 20  # less than the eighth of 64 MB that a ring may take, so that none is shed
NAMESPACES = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--mount-proc"]
ENTER = f"""
mount -t tmpfs -o size=64m tmpfs /dev/shm
while [ "$1" != -- ]; do mount --bind "$1" "$1"; shift; done
shift
eval "$1"; shift
mount -o remount,bind,ro /
cd /
exec setpriv --reuid {USER} --regid {USER} --clear-groups \\
    --no-new-privs --bounding-set -all --inh-caps -all "$@"
"""


def closed(path: Path) -> Path | None:
    """The first directory on the way to a path, or that itself, that not everybody may enter and read."""
    for each in [*reversed(path.parents), path]:
        if each.is_dir() and each.stat().st_mode & 0o005 != 0o005:
            return each
    return None


def opened(place: Path) -> str:
    """Commands after which what is needed below closed directories can be read; `place` gets mount points."""
    directories = (sys.prefix, sys.base_prefix, *filter(None, sys.path), os.path.dirname(__file__))
    needed: dict[Path, Path] = {}
    for path in map(Path, dict.fromkeys(directories)):
        above = closed(path) if path.is_dir() else None
        if above is not None and path != above and not any(each in needed for each in path.parents):
            needed[path] = above
    held = {path: place / f"held-{number}" for number, path in enumerate(needed)}
    for each in held.values():
        each.mkdir()
    commands = [["mount", "--bind", str(path), str(hold)] for path, hold in held.items()]
    covers = sorted(set(needed.values()))
    commands += [["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(above)] for above in covers]
    for path, hold in held.items():
        commands += [["mkdir", "-p", str(path)], ["mount", "--bind", str(hold), str(path)]]
    return "\n".join(map(shlex.join, commands))


class Container:
    """
    What runs a command in a container, which can write to its volumes only.

    Args:
        place: A directory of its own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._opened = opened(place)

    def command(self, *volumes: Path) -> list[str]:
        """What comes before the command."""
        return [*NAMESPACES, "sh", "-ec", ENTER, "container", *map(str, volumes), "--", self._opened, "--"]


@pytest.fixture
def container() -> Iterator[Container]:
    """One with a directory that has the volumes `rings` and `spool`."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path = Path(tempfile.mkdtemp(prefix="picostep-sidecar-"))
    path.chmod(0o755)
    shared, spool = path / "rings", path / "spool"
    for volume in (shared, spool):
        volume.mkdir(mode=0o700)
        os.chown(volume, int(USER), int(USER))
    size = f"size=64m,uid={USER},gid={USER},mode=0700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", shared], capture_output=True).returncode:
        pytest.skip("cannot mount")
    try:
        made = Container(path)
        unprivileged = f'test "$(id -u)" = {USER} && ! touch {path}/x && touch {shared}/x && rm {shared}/x'
        shell = [sys.executable, "-c", "import os, sys; os.execvp('sh', sys.argv[1:])"]
        command = [*made.command(shared), *shell]
        tried = subprocess.run([*command, "sh", "-c", unprivileged], capture_output=True)
        if tried.returncode:
            pytest.skip(f"no namespaces, or no interpreter in them: {tried.stderr.decode()}")
        yield made
    finally:
        subprocess.run(["umount", shared], check=True)
        shutil.rmtree(path)


@contextmanager
def exporting(container: Container, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The exporter's container; killed in the end."""
    place = container.place
    inside = container.command(place / "rings", place / "spool")
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "picostep", "export", "--json"],
        env=clean_environment(**env, PICOSTEP_SPOOL=str(place / "spool")),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(100)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_server_and_exporter_in_containers(container: Container, start_host: Start) -> None:
    """Either is killed; the other one, or the next, delivers what was accepted. And told to end, it ends."""
    place = container.place
    inside = container.command(place / "rings")
    with Receiver() as receiver, Proxy(receiver.port) as proxy:
        oracle = Oracle(receiver)
        env = environment(place / "rings", proxy.url, PYTHONPATH=os.pathsep.join(sys.path[1:]))
        recording = {**env, "PICOSTEP_EXPORTER": "external", "PICOSTEP_RING_BYTES": str(RING)}

        with exporting(container, env):
            host = start_host(recording, "endless", 1, "mixed", 2, inside=inside)
            host.wait_for_promise(STEPS, 60.0)
            os.killpg(host.process.pid, signal.SIGKILL)
            oracle.expect(host.kill())
            oracle.check_nothing_lost()
            proxy.set(refuse)
            host = start_host(recording, "some", 2, "mixed", STEPS, inside=inside)
            wait_until(lambda: [*(place / "spool").rglob("*.seg*")], 30.0, "records in the spool")
        proxy.set(passing)
        with exporting(container, env) as exporter:
            oracle.expect(host.finish(120.0))
            oracle.check_nothing_lost()
            wait_for_no_rings(place / "rings")
            children = Path(f"/proc/{exporter.pid}/task/{exporter.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)  # to process 1 of it
            assert exporter.wait(100) == 0
        counted = check_totals(place / "rings")
        assert counted["accepted"] == len(oracle.digests), counted
        print(f"\n{len(oracle.promised)} steps, 0 lost, {oracle.repeated()} came twice")

"""Settings, URL rules and destinations: as in the reference where it has them, clear messages elsewhere."""

from __future__ import annotations

import marshal
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import contextcompany
import numpy as np
import pytest
from contextcompany import config as reference
from hypothesis import example, given
from hypothesis import strategies as st

import picostep
from picostep.errors import ConfigError, PicostepError
from picostep.settings.destination import Destination, resolve_destination
from picostep.settings.table import Limits, Settings
from picostep.settings.urls import default_store, get_api_key, get_url
from support import Ingest, run_python

INGEST = "https://api.thecontext.company/v1/custom"
FEEDBACK = "https://api.thecontext.company/v1/feedback"


@contextmanager
def environment(**variables: str | None) -> Iterator[None]:
    """Set these variables and no others of TCC_* and PICOSTEP_*; Hypothesis bears no monkeypatch."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("TCC_", "PICOSTEP_")):
            del os.environ[name]
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _clean_environment() -> Iterator[None]:
    with environment():
        yield


# --- differential: get_api_key and get_url ----------------------------------------------------------------

# os.environ takes neither NUL nor lone surrogates other than those of undecodable bytes.
env_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
keys = st.one_of(
    st.none(), st.just(""), st.sampled_from(["dev_1", "dev", "DEV_1", "prod", " dev_1"]), env_text
)

schemes = st.sampled_from(["http", "https", "HTTP", "hTTps", "ftp", "", "file", "http+unix", "javascript"])
hosts = st.one_of(
    st.sampled_from(
        [
            "api.thecontext.company",
            "API.TheContext.Company",
            "dev.thecontext.company",
            "thecontext.company",
            "api.thecontext.company.evil.example",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "127.0.0.1",
            "127.0.0.2",
            "127.1",
            "[::1]",
            "[::2]",
            "[0:0:0:0:0:0:0:1]",
            "[::FFFF]",
            "[::1",
            "::1",
            "[fe80::1%25eth0]",
            "[v1.x]",
            "[]",
            "",
            "evil.example",
            "localhost\\@evil.example",
            "bücher.example",
            "ⓛocalhost",
            "a b",
            "localhost%00",
        ]
    ),
    env_text,
)
ports = st.one_of(
    st.sampled_from(
        ["", ":", ":80", ":443", ":0", ":00443", ":8080", ":65535", ":65536", ":-1", ":x", ":٣", ":4_3"]
    ),
    st.integers(0, 70_000).map(lambda port: f":{port}"),
)
userinfos = st.sampled_from(["", "user@", "user:pw@", "a@b@", ":@", "localhost@", "localhost:80@"])
paths = st.one_of(
    st.sampled_from(
        ["", "/", "//", "/x", "/x/", "/x//", "/x;y", "/;/", "/a b", "?q", "/?q#f", "#f", "/x/?", "/%2f/"]
    ),
    env_text,
)
urls = st.one_of(
    st.builds("{}://{}{}{}{}".format, schemes, userinfos, hosts, ports, paths),
    st.builds("{}:{}{}{}".format, schemes, hosts, ports, paths),
    st.builds(
        "{}{}{}".format,
        st.sampled_from([" ", "\t", "\n", "\x01", "\x1f"]),
        st.just("http://localhost"),
        paths,
    ),
    env_text,
)


def outcome(function: object, *arguments: object) -> tuple[str, object]:
    try:
        return "returned", function(*arguments)  # type: ignore[operator]
    except Exception as error:
        builtin = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        return "raised", builtin


@given(
    base=st.one_of(st.none(), urls),
    env_key=keys,
    key=keys,
    unsafe=st.sampled_from([None, "1", "0", "true", "", " 1"]),
    path=st.sampled_from(["/v1/custom", "/v1/feedback", "", "x"]),
)
@example(base="https://api.thecontext.company:443/", env_key=None, key="k", unsafe=None, path="/v1/custom")
@example(base="http://api.thecontext.company/", env_key=None, key="k", unsafe=None, path="/v1/custom")
@example(base="http://user:pw@[::1]:80//a//", env_key=None, key="k", unsafe=None, path="/v1/custom")
@example(base="http://[::1%A]", env_key=None, key="k", unsafe="1", path="")
@example(base="http://localhost:443", env_key=None, key=None, unsafe=None, path="")
def test_same_as_the_reference(
    base: str | None, env_key: str | None, key: str | None, unsafe: str | None, path: str
) -> None:
    with environment(TCC_BASE_URL=base, TCC_API_KEY=env_key, TCC_ALLOW_UNSAFE_BASE_URL=unsafe):
        assert outcome(reference.get_api_key, key) == outcome(get_api_key, key)
        assert outcome(reference.get_url, path, key) == outcome(get_url, path, key)


@given(base=urls)
def test_a_refused_base_raises_our_own_error(base: str) -> None:
    with environment(TCC_BASE_URL=base):
        kind, found = outcome(get_url, "/v1/custom")
        if kind == "raised":
            with pytest.raises(ConfigError, match=r"^TCC_BASE_URL"):
                get_url("/v1/custom")
        else:
            assert str(found).endswith("/v1/custom")


@pytest.mark.parametrize(
    "base",
    [
        "http://user:hunter2@evil.example",
        "ftp://user:hunter2@localhost",
        "http://user:hunter2@[::1",
        "http://user:hunter2@localhost:x",
        "http://user:hun?ter2/hunter2#hunter2@localhost:x",
        "user:hunter2@localhost//x",
        "http:/user:hunter2@localhost",
        "ftp://localhost/?token=hunter2",
    ],
)
def test_messages_hide_the_password(base: str) -> None:
    with environment(TCC_BASE_URL=base), pytest.raises(ConfigError, match=r"^TCC_BASE_URL") as caught:
        get_url("/v1/custom")

    assert "hunter2" not in str(caught.value)
    assert "user" not in str(caught.value)


@pytest.mark.parametrize(
    ("base", "origin"),
    [
        *(
            (base, None)
            for base in ("file:///etc/passwd", "ftp://localhost", "gopher://localhost", "data:,x")
        ),
        *((base, None) for base in ("//localhost", "http:localhost", "http:///localhost", "localhost")),
        ("http://user:pw@localhost", "http://localhost"),
        ("http://localhost@evil.example", None),
        ("http://127.0.0.1:80@evil.example", None),
        ("https://api.thecontext.company@evil.example", None),
        ("http://localhost#@evil.example", "http://localhost"),  # the rest is dropped
        ("http://localhost?@evil.example", "http://localhost"),
        ("http://localhost\\@evil.example", None),
        ("http://evil.example\\@localhost", "http://localhost"),
        ("http://local\thost", "http://localhost"),  # as the parser of URLs has it
        ("http://localhost\r\nHost: evil", None),
        *(
            (base, None)
            for base in ("http://[fe80::1%25eth0]", "http://[::1%25lo]", "http://[::ffff:127.0.0.1]")
        ),
        *(
            (f"http://{host}", None)
            for host in ("2130706433", "0x7f.1", "017700000001", "127.1", "0", "0.0.0.0")
        ),
        *(
            (f"http://{host}", None)
            for host in ("169.254.169.254", "localhost.", "localhost%00", "local%68ost")
        ),
        ("http://LOCALHOST", "http://localhost"),
        ("https://API.TheContext.Company:443", "https://api.thecontext.company"),
        *((f"https://api.thecontext.company{end}", None) for end in (".", ".evil.example", ":8443")),
        ("http://api.thecontext.company", None),
        *(
            (f"https://{host}", None)
            for host in ("\u0430pi.thecontext.company", "api\u3002thecontext.company")
        ),
        *((f"http://localhost:{port}", None) for port in ("65536", "-1", "x")),
        ("http://localhost:80", "http://localhost"),
        ("https://localhost:443", "https://localhost"),
        ("http://localhost:443", "http://localhost:443"),
    ],
)
def test_a_key_goes_to_no_hostile_base(base: str, origin: str | None) -> None:
    """Said here and not only taken from the reference, which agrees."""
    with environment(TCC_BASE_URL=base):
        expected = ("raised", ValueError) if origin is None else ("returned", f"{origin}/v1/custom")
        assert outcome(get_url, "/v1/custom", "k") == expected
        assert outcome(reference.get_url, "/v1/custom", "k") == expected


def test_an_unsafe_base_names_the_way_out() -> None:
    with environment(TCC_BASE_URL="http://collector:8080/x"), pytest.raises(ConfigError) as caught:
        get_url("/v1/custom")

    for part in ("http://collector:8080", "https://api.thecontext.company", "TCC_ALLOW_UNSAFE_BASE_URL=1"):
        assert part in str(caught.value)


def test_no_key_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="TCC_API_KEY"):
        get_api_key()


# --- the local store --------------------------------------------------------------------------------------


def test_default_store_below_xdg_state_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert str(tmp_path / "picostep" / "store.db") == default_store()


@pytest.mark.parametrize("state", [None, "", "relative/state"])
def test_default_store_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    if state is not None:
        monkeypatch.setenv("XDG_STATE_HOME", state)

    assert str(tmp_path / ".local" / "state" / "picostep" / "store.db") == default_store()


def test_default_store_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    with pytest.raises(ConfigError, match="HOME"):
        default_store()


# In a process of its own: each way for a key to come in, and for one that no header carries to be refused.
KEYS = """
import os
import picostep as tcc

def refused(call):
    for bad in ("cl\u2026", "cl\u00e9\\n", "cl\\x85"):
        try:
            call(bad)
        except tcc.ConfigError as error:
            assert "character at position" in str(error) and "cl" not in str(error).split(":")[1], error
        else:
            raise AssertionError(ascii(bad))

def by_variable(key):
    before, os.environ["TCC_API_KEY"] = os.environ["TCC_API_KEY"], key
    try:
        tcc.configure()
    finally:
        os.environ["TCC_API_KEY"] = before

refused(by_variable)
refused(lambda key: tcc.configure(api_key=key))
ways = {
    "run": lambda key: tcc.run(api_key=key).prompt("p").response("r").end(),
    "step": lambda key: tcc.step("r", api_key=key).prompt("p").response("r").end(),
    "call": lambda key: tcc.tool_call("r", tool_name="t", api_key=key).end(),
    "sent": lambda key: tcc.send_step("r", prompt="p", response="r", api_key=key),
    "feedback": lambda key: tcc.submit_feedback("r", "thumbs_up", api_key=key),
}
tcc.send_step("r", prompt="p", response="r")
for name, way in ways.items():
    refused(way)
    way(f"cl\u00e9-{name}")
tcc.configure(api_key="cl\u00e9-configured")
tcc.send_step("r", prompt="p", response="r")
assert tcc.flush(20), tcc.stats()
"""


# --- destinations -----------------------------------------------------------------------------------------


class TestDestination:
    def test_without_key_and_choice_everything_is_local(self) -> None:
        found = resolve_destination(Settings.resolve())

        assert Destination((f"store:{default_store()}",)) == found
        assert (found.api_key, found.url, found.feedback_url) == (None, None, None)

    def test_with_a_key(self) -> None:
        with environment(TCC_API_KEY="k1"):
            found = resolve_destination(Settings.resolve())

        assert Destination(("tcc",), "k1", INGEST, FEEDBACK) == found

    def test_development_key(self) -> None:
        with environment(TCC_API_KEY="dev_1"):
            found = resolve_destination(Settings.resolve())

        assert found.url == "https://dev.thecontext.company/v1/custom"
        assert found.feedback_url == "https://dev.thecontext.company/v1/feedback"

    def test_a_sink_that_is_not_tcc_gets_no_key(self) -> None:
        with environment(TCC_API_KEY="k1", PICOSTEP_TO="stdout"):
            assert Destination(("stdout",)) == resolve_destination(Settings.resolve())

    def test_several_sinks(self) -> None:
        with environment(TCC_API_KEY="k1", PICOSTEP_TO="stdout,tcc"):
            assert Destination(("stdout", "tcc"), "k1", INGEST, FEEDBACK) == resolve_destination(
                Settings.resolve()
            )

    def test_configured_key_and_url_keep_the_sinks(self) -> None:
        settings = Settings.resolve(api_key="k2", tcc_url="http://collector/x", to=["tcc", "stdout"])

        assert Destination(("tcc", "stdout"), "k2", "http://collector/x", FEEDBACK) == resolve_destination(
            settings
        )

    def test_configured_key_alone_means_tcc(self) -> None:
        assert Destination(("tcc",), "k2", INGEST, FEEDBACK) == resolve_destination(
            Settings.resolve(api_key="k2")
        )

    @pytest.mark.parametrize("to", [None, "stdout"])
    def test_an_own_key_means_tcc_and_nothing_else(self, to: str | None) -> None:
        with environment(TCC_API_KEY="k1", PICOSTEP_TO=to):
            settings = Settings.resolve(api_key="k2")

            assert Destination(("tcc",), "own", INGEST, FEEDBACK) == resolve_destination(
                settings, api_key="own"
            )

    def test_an_own_url_uses_the_key_at_hand(self) -> None:
        with environment(TCC_API_KEY="k1", PICOSTEP_TO="stdout"):
            found = resolve_destination(Settings.resolve(), tcc_url="http://collector/x")

        assert Destination(("tcc",), "k1", "http://collector/x", FEEDBACK) == found

    def test_an_own_feedback_url(self) -> None:
        found = resolve_destination(Settings.resolve(api_key="k"), feedback_url="http://collector/f")

        assert Destination(("tcc",), "k", INGEST, "http://collector/f") == found

    def test_empty_counts_as_not_given(self) -> None:
        with environment(TCC_API_KEY="k1", TCC_URL="", TCC_FEEDBACK_URL="", TCC_BASE_URL=""):
            found = resolve_destination(Settings.resolve(api_key="", tcc_url=""), "", "", "")

        assert Destination(("tcc",), "k1", INGEST, FEEDBACK) == found

    def test_whole_endpoints_from_the_environment_may_be_anywhere(self) -> None:
        with environment(
            TCC_API_KEY="k1", TCC_URL="https://any.example/a?b=c", TCC_FEEDBACK_URL="http://[fe80::2]:9/f"
        ):
            found = resolve_destination(Settings.resolve())

        assert Destination(("tcc",), "k1", "https://any.example/a?b=c", "http://[fe80::2]:9/f") == found

    def test_own_url_before_configured_before_environment_before_base(self) -> None:
        with environment(TCC_API_KEY="k1", TCC_BASE_URL="http://localhost:1", TCC_URL="http://env/x"):
            assert resolve_destination(Settings.resolve()).feedback_url == "http://localhost:1/v1/feedback"
            assert resolve_destination(Settings.resolve()).url == "http://env/x"
            configured = Settings.resolve(tcc_url="http://code/x")
            assert resolve_destination(configured).url == "http://code/x"
            assert resolve_destination(configured, tcc_url="http://own/x").url == "http://own/x"
        with environment(TCC_API_KEY="k1", TCC_BASE_URL="http://localhost:1/"):
            assert resolve_destination(Settings.resolve()).url == "http://localhost:1/v1/custom"

    @pytest.mark.parametrize("variables", [{"PICOSTEP_TO": "tcc"}, {"PICOSTEP_TO": "stdout,tcc"}])
    def test_tcc_without_a_key(self, variables: dict[str, str]) -> None:
        with environment(**variables), pytest.raises(ConfigError, match="TCC_API_KEY"):
            resolve_destination(Settings.resolve())

    def test_own_url_without_a_key(self) -> None:
        with pytest.raises(ConfigError, match="TCC_API_KEY"):
            resolve_destination(Settings.resolve(), tcc_url="http://collector/x")

    @pytest.mark.parametrize(
        "key", ["secret\n", "se\rcret", "secret\x00", "secret\x7f", "secret\x85", "secret…", "秘secret"]
    )
    def test_a_key_that_cannot_be_a_header(self, key: str) -> None:
        for name, resolve in {
            "api_key": lambda: resolve_destination(Settings.resolve(), api_key=key),
            "TCC_API_KEY": lambda: resolve_destination(Settings.resolve()),
        }.items():
            variables = {} if name == "api_key" or "\x00" in key else {"TCC_API_KEY": key}
            if name == "TCC_API_KEY" and not variables:
                continue
            with (
                environment(**variables),
                pytest.raises(ConfigError, match=f"^{name}: .*character at") as caught,
            ):
                resolve()
            assert "secret" not in str(caught.value)

    def test_a_latin_1_key_is_fine(self) -> None:
        assert resolve_destination(Settings.resolve(), api_key="schlüssel").api_key == "schlüssel"

    @pytest.mark.parametrize("exporter", ["process", "thread"])
    def test_one_rule_for_keys_wherever_they_come_from(
        self, exporter: str, ring_base: Path, ingest: Ingest
    ) -> None:
        """What no header carries is refused where it is given, and all else arrives as it is."""
        env = {"PICOSTEP_DIR": str(ring_base), "TCC_BASE_URL": ingest.url, "PICOSTEP_EXPORTER": exporter}
        run_python(KEYS, {**env, "TCC_API_KEY": "clé-variable"})

        arrived = {request.headers["authorization"] for request in ingest.requests}
        names = ("variable", "configured", "run", "step", "call", "sent", "feedback")
        assert arrived == {f"Bearer clé-{name}" for name in names}

    def test_the_reference_sends_latin_1_and_nothing_else(
        self, ingest: Ingest, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with environment(TCC_BASE_URL=ingest.url):
            for key in ("clé", "cl…"):
                run = contextcompany.run(api_key=key)
                run.prompt("p").response("r")
                run.end()

        assert [request.headers["authorization"] for request in ingest.requests] == ["Bearer clé"]
        assert "latin-1" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://collector/x",
            "collector/x",
            "//collector/x",
            "http:///x",
            "http://",
            "http://collector/x\r\nHost: evil",
            "http://collector/\n",
            "http://coll\tector/",
            "\x00http://collector/",
            "http://user:hunter2@collector/x",
            "http://user@collector/x",
            "http://@collector/x",
            "http://collector:x/",
            "http://collector:65536/",
            "http://collector:0/",
            "http://[::1/",
            "http://bücher.example/",
            "http://a b/",
            "http://a%2fb/",
            "http://a\\b/",
            "file:///etc/passwd",
            "http://coll,ector/",
            "http://[::1]evil/",
            "http://[::1].evil.example/",
        ],
    )
    def test_an_endpoint_that_is_none(self, url: str) -> None:
        calls = {
            "tcc_url": lambda: resolve_destination(Settings.resolve(api_key="k"), tcc_url=url),
            r"tcc_url ": lambda: Settings.resolve(tcc_url=url),
            "TCC_URL": lambda: resolve_destination(Settings.resolve(api_key="k")),
            "TCC_FEEDBACK_URL": lambda: resolve_destination(Settings.resolve(api_key="k")),
        }
        for name, call in calls.items():
            variables = {name: url} if name.startswith("TCC_") else {}
            if variables and "\0" in url:
                continue
            with (
                environment(**variables),
                pytest.raises(ConfigError, match=f"^{name}.*must be http://") as caught,
            ):
                call()
            assert "hunter2" not in str(caught.value)

    def test_a_base_with_userinfo_is_dropped_as_in_the_reference(self) -> None:
        with environment(TCC_API_KEY="k", TCC_BASE_URL="http://user:hunter2@localhost:8080/x/"):
            assert resolve_destination(Settings.resolve()).url == "http://localhost:8080/x/v1/custom"

    def test_immutable(self) -> None:
        here = Destination(("tcc",), "k", INGEST, FEEDBACK)

        with pytest.raises(AttributeError, match="immutable"):
            here.api_key = "other"
        with pytest.raises(AttributeError, match="immutable"):
            del here.api_key

    def test_repr_hides_secrets(self) -> None:
        text = repr(Destination(("tcc",), "secret", "http://user:secret@h/x?token=secret", FEEDBACK))

        assert "secret" not in text
        assert "http://h/x" in text

    def test_equality_and_hash(self) -> None:
        one, two = Destination(["tcc"], "k", INGEST, FEEDBACK), Destination(("tcc",), "k", INGEST, FEEDBACK)

        assert one == two
        assert {one} == {two}
        assert one != Destination(("tcc",), "k2", INGEST, FEEDBACK)
        assert one != ("tcc",)

    def test_travels_through_marshal_and_pickle(self) -> None:
        here = Destination(("tcc", "stdout"), "k", INGEST, FEEDBACK)

        assert here == Destination.from_dict(marshal.loads(marshal.dumps(here.as_dict())))
        assert here == pickle.loads(pickle.dumps(here))

    def test_fingerprint_is_stable(self) -> None:
        """Processes of different versions of Python share a directory, so these digits must never change."""
        text = ascii((("tcc",), "k", INGEST, FEEDBACK, (), False, ())).encode()
        expected = blake2b(text, digest_size=8, key=b"picostep destination, version 1").hexdigest()
        assert expected == Destination(("tcc",), "k", INGEST, FEEDBACK).fingerprint

    @given(
        st.lists(
            st.builds(
                Destination,
                st.lists(st.text(max_size=3), max_size=2).map(tuple),
                *[st.one_of(st.none(), st.text(max_size=3))] * 3,
                st.sampled_from([(), (("", "m", 1),), (("p", "m", 1),), (("", "m", 2),)]),
                st.booleans(),
            ),
            min_size=2,
            max_size=2,
        )
    )
    def test_fingerprints_differ_when_destinations_do(self, pair: list[Destination]) -> None:
        one, two = pair

        assert (one == two) == (one.fingerprint == two.fingerprint)
        assert len(one.fingerprint) == 16
        assert int(one.fingerprint, 16) >= 0

    def test_fingerprint_of_an_undecodable_environment(self) -> None:
        assert len(Destination(("store:/\udcff",)).fingerprint) == 16


# --- settings ---------------------------------------------------------------------------------------------


class TestSettings:
    def test_defaults(self) -> None:
        found = Settings.resolve()

        assert found.to == ()
        assert found.dir is None
        assert found.exporter == "process"
        assert found.disabled is False
        assert found.ring_bytes == 16 * 1024 * 1024
        assert found.batch_records == 512
        assert found.batch_bytes == 1024 * 1024
        assert found.exit_timeout == 2.0
        assert found.misuse == "raise"
        assert found.otlp_content is True
        assert found.debug is False
        assert found.api_key is None
        assert found.tcc_url is None

    @pytest.mark.parametrize(
        ("variable", "text", "name", "expected"),
        [
            ("PICOSTEP_TO", "tcc", "to", ("tcc",)),
            ("PICOSTEP_TO", " tcc , stdout,tcc", "to", ("tcc", "stdout")),
            ("PICOSTEP_TO", "jsonl:/a/../b.jsonl,store:/c.db", "to", ("jsonl:/b.jsonl", "store:/c.db")),
            ("PICOSTEP_DIR", "/a/../b", "dir", "/b"),
            ("PICOSTEP_EXPORTER", "thread", "exporter", "thread"),
            ("PICOSTEP_EXPORTER", "external", "exporter", "external"),
            ("PICOSTEP_EXPORTER", "off", "exporter", "off"),
            ("PICOSTEP_DISABLED", "1", "disabled", True),
            ("PICOSTEP_DISABLED", " Yes ", "disabled", True),
            ("PICOSTEP_DISABLED", "on", "disabled", True),
            ("PICOSTEP_DISABLED", "TRUE", "disabled", True),
            ("PICOSTEP_DISABLED", "0", "disabled", False),
            ("PICOSTEP_DISABLED", "No", "disabled", False),
            ("PICOSTEP_DISABLED", "off", "disabled", False),
            ("PICOSTEP_DISABLED", "false", "disabled", False),
            ("PICOSTEP_DISABLED", "", "disabled", False),
            ("PICOSTEP_RING_BYTES", "262144", "ring_bytes", 2**18),
            ("PICOSTEP_RING_BYTES", "524287", "ring_bytes", 2**18),
            ("PICOSTEP_RING_BYTES", "1073741824", "ring_bytes", 2**30),
            ("PICOSTEP_BATCH_RECORDS", "1", "batch_records", 1),
            ("PICOSTEP_BATCH_BYTES", "1024", "batch_bytes", 1024),
            ("PICOSTEP_SPOOL", "/var/spool/steps", "spool", "/var/spool/steps"),
            ("PICOSTEP_SPOOL", "off", "spool", ""),
            ("PICOSTEP_SPOOL_BYTES", "1048576", "spool_bytes", 2**20),
            ("PICOSTEP_SPOOL_AGE", "3600", "spool_age", 3600.0),
            ("PICOSTEP_SPOOL_AGE", "0.5", "spool_age", 0.5),
            ("PICOSTEP_SPOOL_AGE", "31622400", "spool_age", 366 * 86400.0),
            ("PICOSTEP_EXIT_TIMEOUT", "0", "exit_timeout", 0.0),
            ("PICOSTEP_EXIT_TIMEOUT", "1.5", "exit_timeout", 1.5),
            ("PICOSTEP_MISUSE", "log", "misuse", "log"),
            ("PICOSTEP_OTLP_CONTENT", "off", "otlp_content", False),
            ("PICOSTEP_OTLP_CONTENT", "1", "otlp_content", True),
            ("TCC_DEBUG", "1", "debug", True),
            ("TCC_DEBUG", "True", "debug", True),
            ("TCC_DEBUG", "yes", "debug", False),
        ],
    )
    def test_environment(self, variable: str, text: str, name: str, expected: object) -> None:
        with environment(**{variable: text}):
            found = getattr(Settings.resolve(), name)

        assert expected == found
        assert type(expected) is type(found)

    @pytest.mark.parametrize(
        "variable",
        sorted(
            {
                "PICOSTEP_TO",
                "PICOSTEP_DIR",
                "PICOSTEP_EXPORTER",
                "PICOSTEP_DISABLED",
                "PICOSTEP_RING_BYTES",
                "PICOSTEP_BATCH_RECORDS",
                "PICOSTEP_BATCH_BYTES",
                "PICOSTEP_EXIT_TIMEOUT",
                "PICOSTEP_SPOOL",
                "PICOSTEP_SPOOL_BYTES",
                "PICOSTEP_SPOOL_AGE",
                "PICOSTEP_MISUSE",
                "PICOSTEP_OTLP_CONTENT",
                "TCC_DEBUG",
            }
        ),
    )
    def test_an_empty_variable_is_not_set(self, variable: str) -> None:
        with environment(**{variable: ""}):
            found = Settings.resolve()
        assert Settings.resolve().as_dict() == found.as_dict()

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("PICOSTEP_TO", "tcp"),
            ("PICOSTEP_TO", "tcc,"),
            ("PICOSTEP_TO", "tcc:x"),
            ("PICOSTEP_TO", "stdout:x"),
            ("PICOSTEP_TO", "jsonl"),
            ("PICOSTEP_TO", "jsonl:"),
            ("PICOSTEP_TO", "store:"),
            ("PICOSTEP_TO", "unknown:x"),
            ("PICOSTEP_EXPORTER", "Thread"),
            ("PICOSTEP_DISABLED", "2"),
            ("PICOSTEP_DISABLED", "disabled"),
            ("PICOSTEP_RING_BYTES", "262143"),
            ("PICOSTEP_RING_BYTES", "1073741825"),
            ("PICOSTEP_RING_BYTES", "16M"),
            ("PICOSTEP_RING_BYTES", "-1"),
            ("PICOSTEP_RING_BYTES", "1e9"),
            ("PICOSTEP_RING_BYTES", "٣٠٠٠٠٠"),
            ("PICOSTEP_RING_BYTES", "9" * 5000),
            ("PICOSTEP_BATCH_RECORDS", "0"),
            ("PICOSTEP_BATCH_RECORDS", "65537"),
            ("PICOSTEP_BATCH_BYTES", "1023"),
            ("PICOSTEP_BATCH_BYTES", "67108865"),
            ("PICOSTEP_SPOOL_BYTES", "1048575"),
            ("PICOSTEP_SPOOL_AGE", "0"),
            ("PICOSTEP_SPOOL_AGE", "-0.0"),
            ("PICOSTEP_SPOOL_AGE", "1e-400"),
            ("PICOSTEP_SPOOL_AGE", "-1"),
            ("PICOSTEP_SPOOL_AGE", "31622401"),
            ("PICOSTEP_EXIT_TIMEOUT", "-1"),
            ("PICOSTEP_EXIT_TIMEOUT", "nan"),
            ("PICOSTEP_EXIT_TIMEOUT", "inf"),
            ("PICOSTEP_EXIT_TIMEOUT", "3601"),
            ("PICOSTEP_EXIT_TIMEOUT", "2s"),
            ("PICOSTEP_MISUSE", "ignore"),
            ("PICOSTEP_OTLP_CONTENT", "none"),
            ("PICOSTEP_TO", "otlp"),
            ("PICOSTEP_TO", "otlp:localhost:4318"),
        ],
    )
    def test_a_bad_variable_is_named(self, variable: str, text: str) -> None:
        with environment(**{variable: text}), pytest.raises(ConfigError, match=f"^{variable}") as caught:
            Settings.resolve()

        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("to", ""),
            ("to", []),
            ("to", 5),
            ("to", [5]),
            ("to", ["tcc", None]),
            ("to", "jsonl:a\0b"),
            ("to", b"tcc"),
            ("dir", ""),
            ("dir", 5),
            ("dir", b"/x"),
            ("dir", "a\0b"),
            ("exporter", "fork"),
            ("exporter", ""),
            ("exporter", 1),
            ("disabled", 1),
            ("disabled", "maybe"),
            ("ring_bytes", True),
            ("ring_bytes", 2.0**20),
            ("ring_bytes", 0),
            ("ring_bytes", 2**31),
            ("batch_records", 0),
            ("batch_bytes", -1),
            ("exit_timeout", True),
            ("exit_timeout", float("nan")),
            ("exit_timeout", 10**400),
            ("exit_timeout", None.__class__),
            ("misuse", "warn"),
            ("otlp_content", 1),
            ("spool_age", 0),
            ("spool_age", False),
            ("api_key", 7),
            ("tcc_url", 7),
        ],
    )
    def test_a_bad_argument_is_named(self, name: str, value: object) -> None:
        with pytest.raises(ConfigError, match=f"^{name}"):
            Settings.resolve(**{name: value})  # type: ignore[arg-type]

    def test_an_argument_wins_over_a_bad_variable(self) -> None:
        with environment(PICOSTEP_RING_BYTES="x", PICOSTEP_DISABLED="x", PICOSTEP_TO="x"):
            found = Settings.resolve(ring_bytes=2**20, disabled=False, to="stdout")

        assert (found.ring_bytes, found.disabled, found.to) == (2**20, False, ("stdout",))

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("ring_size", "ring_bytes"),
            ("Spool_Age", "spool_age"),
            ("apikey", "api_key"),
            ("url", "tcc_url"),
            ("PICOSTEP_TO", "to"),
            ("batch_record", "batch_records"),
        ],
    )
    def test_an_unknown_setting_is_answered_with_the_nearest(self, name: str, nearest: str) -> None:
        """A program may have caught the TypeError that Python raises for this."""
        for expected in (ConfigError, TypeError):
            with pytest.raises(expected, match=rf"^{name}: .*nearest is {nearest}$") as caught:
                picostep.configure(**{name: "".join(["sec", "ret"])})  # type: ignore[arg-type]
            shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
            assert "secret" not in "".join(shown.format())

    def test_an_unknown_setting_that_is_near_none(self) -> None:
        with pytest.raises(ConfigError, match=r"^xyzzy: .*there are api_key, batch_bytes, .*, to$"):
            picostep.configure(xyzzy=1, to="stdout")  # type: ignore[arg-type]

    def test_what_is_a_variable_alone_is_no_argument(self) -> None:
        with pytest.raises(ConfigError, match=r"^debug: there is no such setting"):
            picostep.configure(debug=True)  # type: ignore[arg-type]

    def test_a_sink_given_twice_is_one(self) -> None:
        assert Settings.resolve(to=["stdout", "tcc", "stdout"]).to == ("stdout", "tcc")
        assert Settings.resolve(to=["jsonl:/a/b", "jsonl:/a/./b"]).to == ("jsonl:/a/b",)

    @pytest.mark.parametrize("setting", ["prices", "redact"])
    def test_a_key_twice_in_a_file_is_named(self, setting: str, tmp_path: Path) -> None:
        texts = {"twice.json": '{"model": {}, "model": {}}'}
        if sys.version_info >= (3, 11):
            texts["twice.toml"] = "model = 1\nmodel = 2\n"
        for name, text in texts.items():
            path = tmp_path / name
            path.write_text(text)
            for give in ({setting: path}, {}):
                with environment(**{} if give else {f"PICOSTEP_{setting.upper()}": str(path)}):
                    with pytest.raises(ConfigError) as caught:
                        Settings.resolve(**give)
                    assert str(path) in str(caught.value)
                    assert "twice" in str(caught.value).replace(str(path), "") or "line 2" in str(
                        caught.value
                    )

    def test_what_the_exporter_is_told(self) -> None:
        """One value, which travels as plain values and cannot be changed."""
        given = {
            "spool": "/s",
            "spool_bytes": 2**20,
            "spool_age": 1.5,
            "batch_records": 7,
            "batch_bytes": 2048,
        }
        with environment(TCC_DEBUG="1"):
            settings = Settings.resolve(**given, api_key="secret", to="tcc")

        limits = Limits(marshal.loads(marshal.dumps(settings.limits.as_dict())))

        assert limits.as_dict().items() >= {**given, "debug": True}.items()
        assert not limits.as_dict().keys() & {"to", "api_key", "exporter", "ring_bytes"}
        assert (limits.spool_bytes, limits.debug) == (2**20, True)
        for value in (limits, settings):
            with pytest.raises(AttributeError, match="immutable"):
                value.spool_bytes = 1  # type: ignore[misc]
            with pytest.raises(AttributeError, match="immutable"):
                del value.spool_bytes

    def test_numpy_sizes_and_path_objects(self, tmp_path: Path) -> None:
        found = Settings.resolve(ring_bytes=np.int64(2**20), dir=tmp_path)  # type: ignore[arg-type]

        assert (2**20, str(tmp_path)) == (found.ring_bytes, found.dir)
        assert (int, str) == (type(found.ring_bytes), type(found.dir))

    def test_paths_become_absolute_and_home_is_filled_in(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/someone")

        found = Settings.resolve(to=["jsonl:a.jsonl", "store:~/b.db"], dir="rings")

        assert (f"jsonl:{tmp_path}/a.jsonl", "store:/home/someone/b.db") == found.to
        assert str(tmp_path / "rings") == found.dir

    def test_store_without_a_path_is_the_default_store(self) -> None:
        assert (f"store:{default_store()}",) == Settings.resolve(to="store").to

    def test_a_path_given_in_code_may_hold_a_comma(self) -> None:
        assert Settings.resolve(to="jsonl:/a,b").to == ("jsonl:/a,b",)

    def test_unknown_sinks_are_answered_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"no sink 'kafka'; there are .*jsonl.*stdout.*store.*tcc"):
            Settings.resolve(to="kafka:host")

    def test_an_installed_sink_is_taken_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        info = tmp_path / "thirdparty-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[picostep.sinks]\nkafka = thirdparty:open\n")
        monkeypatch.syspath_prepend(tmp_path)

        assert Settings.resolve(to="kafka:host:9092").to == ("kafka:host:9092",)

    def test_repr_and_dict_hold_no_key(self) -> None:
        found = Settings.resolve(api_key="secret", tcc_url="http://collector/?secret")

        assert "secret" not in repr(found)
        assert "secret" not in str(found.as_dict())

    def test_errors_are_value_errors(self) -> None:
        assert issubclass(ConfigError, (PicostepError, ValueError))
        assert issubclass(ConfigError, ValueError)

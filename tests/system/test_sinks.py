"""Sinks against what they talk to: a real HTTP server, proxy and TLS; real files, pipes and full disks."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import resource
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picostep.errors import ConfigError
from picostep.payload import encode, local, wire
from picostep.record import Record
from picostep.settings.destination import Destination
from picostep.sinks import Rejected, RetryLater, Sink, Undelivered, http, jsonl, open_sink, open_sinks
from picostep.sinks.otlp import OtlpSink
from picostep.sinks.tcc import TccSink
from support import Ingest, Reply, Request, free_port, run_python, talkative

KEY = "dev_secret-key"
CERTIFICATE = Path(__file__).parents[1] / "data" / "self_signed.pem"
CERTIFICATE_HASH = "ce275665.0"  # `openssl x509 -hash`, as a directory of certificates names it
TRUST = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def step(name: str = "s", **fields: Any) -> Record:
    times = {"start_ns": 0, "end_ns": 1, "status_code": 0}
    return {"kind": "step", "run_id": "r", "step_id": name, "seq": 0, **times, **fields}


def feedback(**fields: Any) -> Record:
    times = {"start_ns": 0, "end_ns": 1, "status_code": 0}
    return {"kind": "feedback", "run_id": "r", "feedback_id": "f", "seq": 0, **times, **fields}


BAD: Record = {"kind": "step"}


def tcc(url: str, key: str = KEY) -> TccSink:
    return TccSink(Destination(("tcc",), key, f"{url}/v1/custom", f"{url}/v1/feedback"))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TRUST, *PROXIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def sink(ingest: Ingest) -> Iterator[TccSink]:
    sink = tcc(ingest.url)
    yield sink
    sink.close()


# --- tcc ----------------------------------------------------------------------------------------------------


def test_one_record_goes_alone(ingest: Ingest, sink: TccSink) -> None:
    assert sink.deliver([step()]) == {}
    (request,) = ingest.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/custom", encode(step()))
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept-encoding"] == "identity"


def test_several_go_as_a_batch_over_one_connection(ingest: Ingest, sink: TccSink) -> None:
    for _ in range(3):
        assert sink.deliver([step("a"), step("b")]) == {}
    assert ingest.requests[0].json() == {"type": "batch", "items": [wire(step("a")), wire(step("b"))]}
    assert {request.connection for request in ingest.requests} == {0}


def test_feedback_goes_alone_and_in_its_place(ingest: Ingest, sink: TccSink) -> None:
    sink.deliver([step("a"), feedback(score="thumbs_up"), feedback(text="x"), step("b"), step("c")])
    assert [request.path for request in ingest.requests] == [
        "/v1/custom",
        "/v1/feedback",
        "/v1/feedback",
        "/v1/custom",
    ]
    bodies = [request.json() for request in ingest.requests]
    assert bodies[1:3] == [{"runId": "r", "score": "thumbs_up"}, {"runId": "r", "text": "x"}]


def test_unencodable_records_are_named(ingest: Ingest, sink: TccSink) -> None:
    assert sink.deliver([BAD, step(), BAD]) == {0: "KeyError", 2: "KeyError"}
    assert ingest.items() == [wire(step())]
    assert sink.deliver([BAD]) == {0: "KeyError"}
    assert len(ingest.requests) == 1


def test_what_is_delivered_is_said_when_a_later_request_fails(ingest: Ingest, sink: TccSink) -> None:
    ingest.script(Reply(), Reply(status=503))
    with pytest.raises(RetryLater) as raised:
        sink.deliver([step(), BAD, step(), feedback(score="thumbs_up"), BAD])
    assert (raised.value.delivered, raised.value.unencodable) == (3, {1: "KeyError"})
    ingest.script(Reply(), Reply(status=400))
    with pytest.raises(Rejected) as rejected:
        sink.deliver([step(), feedback(score="thumbs_up")])
    assert rejected.value.delivered == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_success(ingest: Ingest, sink: TccSink, status: int) -> None:
    ingest.default = Reply(status=status, body=b"")
    assert sink.deliver([step()]) == {}


@pytest.mark.parametrize(
    "status", [300, 304, 401, 402, 403, 404, 405, 408, 409, 418, 429, 500, 502, 503, 504]
)
def test_retry_later(ingest: Ingest, sink: TccSink, status: int) -> None:
    ingest.default = Reply(status=status)
    with pytest.raises(RetryLater, match=rf"^http {status}$") as raised:
        sink.deliver([step()])
    assert raised.value.after is None


@pytest.mark.parametrize("status", [400, 413, 422])
def test_rejected(ingest: Ingest, sink: TccSink, status: int) -> None:
    ingest.default = Reply(status=status)
    with pytest.raises(Rejected, match=rf"^http {status}$"):
        sink.deliver([step()])


@pytest.mark.parametrize("status", [404, 405, 410])
def test_receiver_without_feedback_holds_up_nothing(ingest: Ingest, sink: TccSink, status: int) -> None:
    ingest.script(Reply(), Reply(status=status))
    with pytest.raises(Rejected) as raised:
        sink.deliver([step(), feedback(text="x"), step()])
    assert raised.value.delivered == 1
    assert sink.deliver([step()]) == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(ingest: Ingest, sink: TccSink, status: int) -> None:
    ingest.default = Reply(status=status, headers={"Location": f"{ingest.url}/elsewhere"})
    with pytest.raises(RetryLater, match=rf"^http {status}$"):
        sink.deliver([step()])
    assert [request.path for request in ingest.requests] == ["/v1/custom"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        (" 7 ", 7.0),
        ("301", 300.0),
        ("9" * 5000, 300.0),
        ("-1", None),
        ("1.5", None),
        ("inf", None),
        ("nan", None),
        ("\u0663", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 300.0),
        ("Sat, 01 Jan 0001 00:00:00 +2359", 0.0),
        ("Sat, 01 Jan 0001 00:00:00 GMT", 0.0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 99:99:99 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", None),
        ("Wed, 21 Oct 2015 07:28:00 +2400", None),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 0.0),
        ("Wed Oct 21 07:28:00 2015", 0.0),
        ("7, 9", 9.0),
        ("soon, 7", 7.0),
        (", ,", None),
    ],
)
@pytest.mark.parametrize("status", [408, 429, 503])
def test_retry_after(ingest: Ingest, sink: TccSink, text: str, seconds: float | None, status: int) -> None:
    header = text.encode().decode("latin-1")
    ingest.default = Reply(status=status, headers={"Retry-After": header})
    with pytest.raises(RetryLater) as raised:
        sink.deliver([step()])
    assert raised.value.after == seconds


def test_several_retry_after() -> None:
    """The one that asks for more counts."""
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nRetry-After: 9\r\nRetry-After: soon\r\n"
    with talkative(head + b"Content-Length: 0\r\n\r\n") as url, pytest.raises(RetryLater) as raised:
        tcc(url).deliver([step()])
    assert raised.value.after == 9.0


@given(
    st.tuples(
        *(
            st.sampled_from(parts)
            for parts in (
                ("Wed, ", "", "Foo, "),
                ("21 ", "0 ", "99 ", "-1 ", "9" * 30 + " "),
                ("Oct ", "Xxx ", "10 ", ""),
                ("2015 ", "9999 ", "0001 ", "0 ", "10000 ", "-1 ", "9" * 30 + " "),
                ("07:28:00 ", "23:59:59 ", "99:99:99 ", ":: ", "-1:0:0 "),
                ("GMT", "-2359", "+2359", "+9999", "+" + "9" * 30, "", "EST"),
            )
        )
    ).map("".join)
    | st.text(max_size=40)
)
@example("Wed, 21 Oct 99999999999999999999 07:28:00 GMT")
@settings(max_examples=60)
def test_no_retry_after_is_an_error(text: str) -> None:
    found = http._retry_after([text])
    assert found is None or 0.0 <= found <= 300.0


@pytest.mark.parametrize("zone", ["GMT", "-0000", "+0000"])
def test_retry_after_a_date(ingest: Ingest, sink: TccSink, zone: str) -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60)).replace("+0000", zone)
    ingest.default = Reply(status=429, headers={"Retry-After": date})
    with pytest.raises(RetryLater) as raised:
        sink.deliver([step()])
    assert raised.value.after is not None
    assert 50 < raised.value.after <= 60


def test_large_answer_is_not_read_to_its_end(ingest: Ingest, sink: TccSink) -> None:
    ingest.script(Reply(body=b"x" * 60_000), Reply(body=b"x" * 50_000_000))
    for _ in range(3):
        assert sink.deliver([step()]) == {}
    assert [request.connection for request in ingest.requests] == [0, 0, 1]


def test_chunked_answer(ingest: Ingest, sink: TccSink) -> None:
    with talkative(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as url:
        assert tcc(url).deliver([step()]) == {}


def test_answer_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picostep.sinks.http._READ_TIMEOUT", 0.3)
    start = time.monotonic()
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", drip=b"x") as url:
        assert tcc(url).deliver([step()]) == {}
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("drip", [b"x", b"X-Name: value\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_head_that_never_ends(monkeypatch: pytest.MonkeyPatch, drip: bytes, tls: bool) -> None:
    """Its bytes come sooner than any single read would time out."""
    monkeypatch.setattr("picostep.sinks.http._READ_TIMEOUT", 0.3)
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
    start = time.monotonic()
    with talkative(b"HTTP/1.1 ", drip=drip, context=context) as url:
        sink = tcc(url.replace("http://", "https://") if tls else url)
        with pytest.raises(RetryLater):
            sink.deliver([step()])
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "answer", [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 20", b"HTTP/1.1 abc OK\r\n\r\n", b"\0" * 100_000]
)
def test_no_answer(answer: bytes) -> None:
    with talkative(answer) as url, pytest.raises(RetryLater, match="connection lost"):
        tcc(url).deliver([step()])


def test_connection_closed_while_idle(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = Reply(headers={"Connection": "close"})
    for _ in range(2):
        assert sink.deliver([step()]) == {}
    assert [request.connection for request in ingest.requests] == [0, 1]


def test_nobody_listens() -> None:
    with pytest.raises(RetryLater, match=r"^connect failed: ECONNREFUSED$"):
        tcc(f"http://127.0.0.1:{free_port()}").deliver([step()])


def test_server_that_hangs(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picostep.sinks.http._READ_TIMEOUT", 0.2)
    sink = tcc(ingest.url)
    ingest.script(Reply(hang=threading.Event()))
    with pytest.raises(RetryLater, match=r"^read timeout$"):
        sink.deliver([step()])
    assert sink.deliver([step()]) == {}
    assert [request.connection for request in ingest.requests] == [0, 1]


def test_untrusted_certificate() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context=context) as url:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(RetryLater, match=r"^tls failed: CERTIFICATE_VERIFY_FAILED$"):
                tcc(url.replace("http://127.0.0.1", f"https://{host}")).deliver([step()])


def test_trusted_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context=context) as url:
        assert tcc(url.replace("http://", "https://")).deliver([step()]) == {}


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_certificates_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, kind: str
) -> None:
    (tmp_path / CERTIFICATE_HASH).write_bytes(CERTIFICATE.read_bytes())
    monkeypatch.setenv(variable, str(CERTIFICATE if kind == "file" else tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context=context) as url:
        secure = url.replace("http://", "https://")
        if (variable, kind) == ("SSL_CERT_DIR", "file"):
            with pytest.raises(RetryLater, match="CERTIFICATE_VERIFY_FAILED"):
                tcc(secure).deliver([step()])
        else:
            assert tcc(secure).deliver([step()]) == {}


def test_which_certificates_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(CERTIFICATE))
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with talkative(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", context=context) as url:
        secure = url.replace("http://", "https://")
        with pytest.raises(RetryLater, match=r"^tls failed: ENOENT$"):
            tcc(secure).deliver([step()])
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")
        assert tcc(secure).deliver([step()]) == {}
        monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path))  # nobody is trusted there
        with pytest.raises(RetryLater, match="CERTIFICATE_VERIFY_FAILED"):
            tcc(secure).deliver([step()])
        assert (
            OtlpSink(secure, Destination((), otlp=[("certificate", str(CERTIFICATE))])).deliver([step()])
            == {}
        )


def test_certificates_are_no_matter_without_tls(
    ingest: Ingest, sink: TccSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    assert sink.deliver([step()]) == {}


def test_not_even_tls() -> None:
    with talkative(b"HTTP/1.1 200 OK\r\n\r\n") as url, pytest.raises(RetryLater, match=r"^tls failed"):
        tcc(url.replace("http://", "https://")).deliver([step()])


def test_proxy_from_the_environment(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", ingest.url.replace("http://", "http://user:p%40ss@"))
    monkeypatch.setenv("NO_PROXY", "direct.invalid")
    assert tcc("http://collector.invalid").deliver([step()]) == {}
    (request,) = ingest.take()
    assert request.path == "http://collector.invalid/v1/custom"
    assert request.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    with pytest.raises(RetryLater, match=r"^host not found"):
        tcc("http://direct.invalid").deliver([step()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "http://10.1.2.3",
        "http://10.1.2.3:8080",
        "http://10.1.2",
        "http://192.0.2.1:4318",
        "https://a.example",
        "http://A.EXAMPLE:8080",
        "http://deep.a.example:81",
        "http://nota.example",
        "http://[fd00::1]",
        "http://[fd00::1]:8080",
    ],
)
@pytest.mark.parametrize(
    "names",
    [
        "10.0.0.0/8",
        "10.1.2.3/32",
        "10.1.2.4/31,192.0.2.0/24",
        "10.1.2.4/32",
        "10.0.0.0/0",
        "10.0.0.0/33",
        "10.0.0.0/x",
        "x/8",
        "10.0.0.0/8/8",
        "10.1.2.3",
        "10.1.2.3:8080",
        "a.example",
        ".a.example",
        "..a.example",
        "*.a.example",
        "A.Example",
        "a.example:8080",
        "A.EXAMPLE:8080",
        " b.example , a.example:81 ",
        "*",
        "*,b.example",
        "example",
        ".",
        ",",
        "",
        "[fd00::1]",
        "fd00::1",
        "fd00::1:8080",
        "FD00::1",
        "fd00::/8",
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_is_read_as_requests_does(
    monkeypatch: pytest.MonkeyPatch, url: str, names: str, variable: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.invalid:2")
    monkeypatch.setenv(variable, names)
    assert http._proxy_for(url) == requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))


@given(st.data())
@settings(max_examples=60)
def test_no_proxy_of_any_kind(data: st.DataObject) -> None:
    octet = st.sampled_from((0, 1, 10, 127, 128, 192, 255)).map(str)
    address = st.lists(octet, min_size=1, max_size=4).map(".".join)
    name = st.lists(st.sampled_from(("a", "B", "example", "", "*")), max_size=3).map(".".join)
    host = address | st.sampled_from(("a.example", "B.a.example", "[fd00::a]", "example"))
    port = st.sampled_from(("", ":80", ":8080", ":x"))
    bits = st.sampled_from(("", "/8", "/1", "/32", "/0", "/ 9", "/-1", "/+8"))
    entries = st.lists(st.tuples(address | name | host, port | bits).map("".join), max_size=3)
    url = f"http://{data.draw(host)}{data.draw(st.sampled_from(('', ':80', ':8080')))}/v1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", "http://proxy.invalid")
        patch.setenv("NO_PROXY", data.draw(st.sampled_from((",", " , "))).join(data.draw(entries)))
        found = http._proxy_for(url)
        theirs = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    this_machine = "://127." in url  # goes through no proxy, whatever is set
    assert found == (None if this_machine and found is None else theirs)


@pytest.mark.parametrize(
    "proxy", ["socks5://h:1", "http://[::1", "http://h:port", "ftp://h", "http://\u20ac:x@h"]
)
def test_a_proxy_that_is_none(ingest: Ingest, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """No record is at fault, and nothing goes past the proxy."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(RetryLater) as raised:
        tcc("http://collector.invalid").deliver([step()])
    assert raised.value.reason == "the proxy's URL cannot be used"
    assert raised.value.__context__ is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "127.1.2.3", "[::1]"])
def test_no_proxy_for_this_machine(ingest: Ingest, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", ingest.url)
    monkeypatch.setenv("ALL_PROXY", ingest.url)
    with pytest.raises(RetryLater, match=r"^connect failed"):
        tcc(f"http://{host}:{free_port()}").deliver([step()])
    assert ingest.requests == []


def test_https_goes_through_a_tunnel(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    with talkative(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") as url:
        monkeypatch.setenv("HTTPS_PROXY", url)
        with pytest.raises(RetryLater, match=r"^proxy failed"):
            tcc("https://collector.invalid").deliver([step()])


@pytest.mark.parametrize("key", ["a\nb", "a\r\nX-Other: 1", "a\0", "\x85", "\u2026", "", None])
def test_key_that_no_header_can_carry(key: str | None) -> None:
    url = "http://127.0.0.1/v1/custom"
    with pytest.raises(ConfigError) as raised:
        open_sink("tcc", Destination(("tcc",), key, url, url))
    assert key is None or key == "" or key not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("url", [None, "", "ftp://h/", "http://", "//h/p", "h", "http://[::1/"])
def test_url_that_is_none(url: str | None) -> None:
    good = "http://127.0.0.1/v1/custom"
    for urls in ((url, good), (good, url)):
        with pytest.raises(ConfigError):
            open_sink("tcc", Destination(("tcc",), KEY, *urls))


def test_nothing_tells_the_key_or_the_url(
    ingest: Ingest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HTTP_PROXY", "http://user:hunter2@proxy.invalid")
    ingest.default = Reply(status=401, headers={"Location": "/", "Bad header": "x"})
    seen = []
    for url in (ingest.url, f"http://127.0.0.1:{free_port()}", "http://collector.invalid"):
        sink = TccSink(Destination(("tcc",), KEY, f"{url}/token-in-path", f"{url}/f"))
        with pytest.raises(RetryLater) as raised:
            sink.deliver([step()])
        seen += [repr(sink), str(sink), *traceback.format_exception(raised.value)]
        assert raised.value.__context__ is None
    told = caplog.text + "".join(seen)
    assert not any(secret in told for secret in (KEY, "token-in-path", ".invalid", "hunter2"))


def test_other_users_of_urllib3_keep_their_log(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    import urllib3

    caplog.set_level(logging.DEBUG)
    sink = tcc(ingest.url)
    sink.deliver([step()])
    urllib3.PoolManager().request("GET", f"{ingest.url}/theirs")
    assert "/theirs" in caplog.text
    assert "/v1/custom" not in caplog.text


# --- too large ----------------------------------------------------------------------------------------------

LONG = 200_000
COUNTED = {"prompt_uncached_tokens": 7, "completion_tokens": 5, "real_total_cost": 0.25, "model_used": "m"}


def takes(limit: int) -> Callable[[Request], Reply]:
    return lambda request: Reply(status=413 if len(request.body) > limit else 200)


def test_a_record_that_is_too_large_goes_without_texts(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = takes(256 * 1024)
    large = step("a", prompt="p" * 2 * LONG, response="r", **COUNTED)
    with pytest.raises(Rejected, match=r"^http 413$"):  # the exporter comes again with each of them
        sink.deliver([large, step("b")])
    assert sink.deliver([large]) == {}
    taken = ingest.requests[-1].json()
    assert taken == wire(step("a", response="r", **COUNTED))


def test_what_was_too_large_is_not_tried_again(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = takes(256 * 1024)
    for _ in range(3):
        assert sink.deliver([step(prompt="p" * 2 * LONG, **COUNTED)]) == {}
    assert [len(each.body) > 256 * 1024 for each in ingest.requests] == [True, False, False, False]
    assert sink.deliver([step(prompt="p" * LONG)]) == {}  # what may be taken is tried
    assert ingest.requests[-1].json()["prompt"] == "p" * LONG


def test_requests_become_as_small_as_is_taken(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = takes(256 * 1024)
    records = [step(str(number), prompt="p" * 10_000) for number in range(50)]
    with pytest.raises(Rejected):
        sink.deliver(records)
    for start in (0, 25):
        sink.deliver(records[start : start + 25])
    ingest.take()
    assert sink.deliver(records) == {}
    assert [item["step_id"] for item in ingest.items()] == [str(number) for number in range(50)]
    assert all(len(each.body) <= 256 * 1024 for each in ingest.requests)


def test_413_for_another_reason_costs_others_no_texts(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = lambda request: Reply(status=413 if b'"bad"' in request.body else 200)
    with pytest.raises(Rejected, match=r"^http 413$"):
        sink.deliver([step("bad", prompt="p" * 2_000)])
    assert sink.deliver([step("good", prompt="p" * LONG)]) == {}
    assert ingest.requests[-1].json()["prompt"] == "p" * LONG


def test_a_limit_that_was_raised_is_found(
    ingest: Ingest, sink: TccSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest.default = takes(256 * 1024)
    sink.deliver([step(prompt="p" * 2 * LONG)])
    ingest.default = Reply()
    later = time.monotonic() + 601.0
    monkeypatch.setattr("picostep.sinks.sizes.time.monotonic", lambda: later)
    sink.deliver([step(prompt="p" * 2 * LONG)])
    assert ingest.requests[-1].json()["prompt"] == "p" * 2 * LONG


def test_counts_of_a_host_arrive_where_little_is_taken(
    ring_base: Path, ingest: Ingest, tmp_path: Path
) -> None:
    ingest.default = takes(256 * 1024)
    code = """
import json, picostep
run = picostep.run("r")
for number in range(20):
    step = run.step(str(number)).prompt("p" * 40_000 * number).response("r")
    step.tokens(prompt_uncached=number, completion=1).end()
run.prompt("q").response("a").end()
assert picostep.flush(30)
print(json.dumps(picostep.stats()))
"""
    environment = {
        "TCC_API_KEY": KEY,
        "TCC_URL": f"{ingest.url}/v1/custom",
        "PICOSTEP_DIR": str(ring_base),
        "XDG_STATE_HOME": str(tmp_path),
    }
    stats = json.loads(run_python(code, environment, timeout=60).stdout)
    assert (stats["delivered"], sum(stats["dropped"].values())) == (21, 0)
    taken = [item for each in ingest.requests if len(each.body) <= 256 * 1024 for item in each.items()]
    counts = {item["step_id"]: item["prompt_uncached_tokens"] for item in taken if item["type"] == "step"}
    assert counts == {str(number): number for number in range(20)}


def test_feedback_that_is_too_large_keeps_its_score(ingest: Ingest, sink: TccSink) -> None:
    ingest.default = takes(256 * 1024)
    assert sink.deliver([feedback(score="thumbs_up", text="t" * 2 * LONG)]) == {}
    assert ingest.requests[-1].json() == {"runId": "r", "score": "thumbs_up"}
    with pytest.raises(Rejected):
        sink.deliver([feedback(text="t" * 2 * LONG)])


# --- jsonl --------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.jsonl"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def open_jsonl(path: Path) -> Sink:
    return open_sink(f"jsonl:{path}", Destination((f"jsonl:{path}",)))


def test_lines_are_appended(path: Path) -> None:
    for _ in range(2):
        sink = open_jsonl(path)
        assert sink.deliver([step("a", prompt="x\ny"), BAD, feedback(text="t")]) == {1: "KeyError"}
        sink.close()
    assert lines(path) == 2 * [local(step("a", prompt="x\ny")), local(feedback(text="t"))]
    assert path.stat().st_mode & 0o777 == 0o600


def test_part_of_a_line_is_ended(path: Path) -> None:
    path.write_bytes(b'{"a":1}\n{"b":')
    open_jsonl(path).deliver([step()])
    assert path.read_bytes().split(b"\n")[:2] == [b'{"a":1}', b'{"b":']
    assert json.loads(path.read_bytes().split(b"\n")[2]) == local(step())


def test_full_disk_leaves_whole_lines(path: Path) -> None:
    sink = open_jsonl(path)
    sink.deliver([step("first")])
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, hard))
    try:
        with pytest.raises(RetryLater, match=r"^jsonl: EFBIG$"):
            sink.deliver([step("second", prompt="x" * 5000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.stat().st_size == size
    sink.deliver([step("third")])
    assert lines(path) == [local(step("first")), local(step("third"))]


def test_waits_for_another_writer(path: Path) -> None:
    sink = open_jsonl(path)
    with path.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RetryLater, match=r"^jsonl: EAGAIN$"):
            sink.deliver([step()])
        timer = threading.Timer(0.1, fcntl.flock, (other, fcntl.LOCK_UN))
        timer.start()
        assert sink.deliver([step()]) == {}
        timer.join()
    assert lines(path) == [local(step())]


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "link", tmp_path / "fifo", tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(ConfigError, match="jsonl"):
            open_jsonl(path)
    assert not (tmp_path / "target").exists()


# --- stdout -------------------------------------------------------------------------------------------------


def test_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sink = open_sink("stdout", Destination(("stdout",)))
    assert sink.deliver([step("a"), BAD, step("b")]) == {1: "KeyError"}
    sink.close()
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [
        local(step("a")),
        local(step("b")),
    ]


def test_nobody_reads_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    monkeypatch.setattr(jsonl, "_STDOUT", writer)
    sink = jsonl.StdoutSink()
    large = step("large", prompt="x" * 1_000_000)
    with pytest.raises(RetryLater, match=r"^stdout: EAGAIN$") as raised:
        sink.deliver([step("a"), BAD, large, step("b")])
    assert (raised.value.delivered, raised.value.unencodable) == (2, {1: "KeyError"})
    first, rest = os.read(reader, 10_000_000).split(b"\n", 1)
    assert json.loads(first) == local(step("a"))
    assert b"\n" not in rest
    sink.deliver([step("c")])
    assert os.read(reader, 10_000).split(b"\n")[0] == b""  # ends the part of a line
    os.close(reader)
    with pytest.raises(RetryLater, match=r"^stdout: EPIPE$") as raised:
        sink.deliver([step("c")])
    assert raised.value.delivered == 0
    os.close(writer)


# --- the registry -------------------------------------------------------------------------------------------


def test_unknown_scheme() -> None:
    with pytest.raises(ConfigError, match="unknown sink 'nosuch'"):
        open_sink("nosuch:x", Destination(("nosuch:x",)))


def test_third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "def make(rest, destination):\n    return [rest, destination]\n\nbad = 1\n"
    (tmp_path / "theirs.py").write_text(module)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[picostep.sinks]\ntheirs = theirs:make\nbroken = theirs:bad\n")
    monkeypatch.syspath_prepend(tmp_path)
    destination = Destination(("theirs:a:b",))
    assert open_sink("theirs:a:b", destination) == ["a:b", destination]
    with pytest.raises(ConfigError, match="'broken' cannot be opened: TypeError"):
        open_sink("broken", destination)


def test_all_or_none(path: Path) -> None:
    gc.collect()  # what earlier tests left open closes now, not in between
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        open_sinks(Destination((f"jsonl:{path}", "nosuch")))
    assert set(os.listdir("/proc/self/fd")) == before
    assert len(open_sinks(Destination((f"jsonl:{path}", "stdout")))) == 2


@pytest.mark.parametrize(
    ("given", "honoured"),
    [(None, None), (0, 0), (1.5, 1.5), (301, 300), (-1, None), (float("inf"), None), (float("nan"), None)],
)
def test_after(given: float | None, honoured: float | None) -> None:
    answer: Undelivered = RetryLater("busy", given)
    assert isinstance(answer, RetryLater)
    assert answer.after == honoured

"""Redaction gives what the reference gives, for any text, in time that grows with its length only."""

from __future__ import annotations

import time

import pytest
from contextcompany.redaction import redact_status_message
from hypothesis import given
from hypothesis import strategies as st

from picostep.exporter.redact import redact

NAMES = [
    "api_key",
    "apikey",
    "API-Key",
    "access_token",
    "refreshToken",
    "id-token",
    "client_secret",
    "secret",
]
NAMES += ["password", "passwd", "pwd", "Authorization", "bearer", "Bearer", "Basic", "pass", "mysecret"]
NAMES += [
    "sk-",
    "sk-proj-",
    "xoxb-",
    "xoxz-",
    "ghp_",
    "ghx_",
    "service_",
    "http://",
    "HTTPS://",
    "user:",
    "x@h/",
]
MARKS = [
    "=",
    ":",
    " ",
    "\n",
    "\u00a0",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    '"',
    "'",
    ",",
    ";",
    "@",
    "/",
    "-",
    "_",
    "é",
]
MARKS += [
    "\u017f",
    "\u212a",
    "\ud800",
    "\U0001f600",
]  # the first two are s and k to a pattern that ignores case

secrets = st.text("abcXYZ019-_+/=", min_size=1, max_size=40)
secret_like = st.lists(st.sampled_from(NAMES + MARKS) | secrets, max_size=12).map("".join)


@given(secret_like | st.text(max_size=200))
def test_same_as_reference(text: str) -> None:
    assert redact(text) == redact_status_message(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("401: Authorization: Bearer abc.def", "401: Authorization=[REDACTED]"),
        ("got Basic dXNlcjpwYXNzd29yZA==", "got Basic [REDACTED]"),
        ("api_key=12345, retry", "api_key=[REDACTED], retry"),
        ("at https://bob:hunter2@db/x", "at https://bob:[REDACTED]@db/x"),
        ("key sk-proj-0123456789abcdef.", "key [REDACTED]."),
        ("tokens used: 12", "tokens used: 12"),
    ],
)
def test_known_forms(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "sk-",
        "sk-proj-",
        "xoxb-a_",
        "xoxb-" + "a" * 30 + "_",
        "ghp_",
        "service_-",
        "Authorization:",
        "Authorization: Bearer ",
        "Authorization   ",
        "Basic AAAA",
        "secret = = ",
        "password\t",
        "http://a:",
        "http://",
        "a",
        "-",
        " ",
        "é",
    ],
)
def test_time_is_linear(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        start = time.process_time()
        redact(text)
        return time.process_time() - start

    # Quadratic time would be minutes for the longer one.
    assert seconds(1_000_000) < 100 * seconds(50_000) + 1.0

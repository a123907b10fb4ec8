"""The redactor: no shape hides a secret from it, and what it cannot redact goes nowhere."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import picostep
from picostep._ring import JSONText
from picostep.errors import ConfigError
from picostep.exporter.redact import WITHHELD, Redactor
from picostep.payload import encode_local, merged_metadata
from picostep.record import Record
from picostep.settings.destination import Destination
from picostep.settings.table import Settings
from support import Ingest, run_python, wait_until

TEXTS = ("prompt", "response", "tool_definitions", "status_message")
RUN_TEXTS = ("user_prompt", "system_prompt", "full_input", "full_output", "response", "status_message")


def step(**fields: Any) -> Record:
    times = {"start_ns": 1, "end_ns": 2, "status_code": 0, "seq": 0}
    return {"kind": "step", "run_id": "r", "step_id": "s", **times, **fields}


def redactor(value: Any) -> Redactor:
    return Redactor(Destination((), redact=Settings.resolve(redact=value).redact))


def redacted(value: Any, text: str) -> Any:
    record = step(prompt=text)
    redactor(value).redact([record])
    assert "withheld" not in record
    return record["prompt"]


# --- the preset -------------------------------------------------------------------------------------------

CORE = "Zq7Xw3Rt9Kp2Lm5Nv8Bc4Df6Gh1Jk0Ys"  # 32 letters and digits
HEX = "0123456789abcdef" * 4
KNOWN = [
    *(
        f"{prefix}{CORE}"
        for prefix in ("sk-", "sk-proj-", "sk-ant-api03-", "sk-or-v1-", "sk_live_", "sk_test_")
    ),
    *(
        f"{prefix}{CORE}"
        for prefix in ("rk_live_", "whsec_", "service_", "xoxb-", "xoxp-", "xapp-1-", "ghp_")
    ),
    *(f"{prefix}{CORE}" for prefix in ("gho_", "ghs_", "github_pat_", "glpat-", "ya29.", "GOCSPX-", "hf_")),
    *(
        f"{prefix}{CORE}"
        for prefix in ("npm_", "pypi-", "gsk_", "xai-", "pplx-", "nvapi-", "r8_", "lsv2_pt_")
    ),
    *(f"{prefix}{CORE}" for prefix in ("tvly-", "dckr_pat_", "sntrys_", "lin_api_", "ntn_", "figd_", "hvs.")),
    *("AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE", f"AIza{CORE}abc", f"SG.{CORE}.{CORE}"),
    *(f"dop_v1_{HEX}", f"shpat_{HEX[:32]}", f"dapi{HEX[:32]}", f"AGE-SECRET-KEY-1{CORE.upper() * 2}"),
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi{CORE}.{CORE}",
]
NAMES = [
    *(
        "password",
        "DB_PASSWORD",
        "dbPassword",
        "api_key",
        "apiKey",
        "X-API-Key",
        "access_token",
        "refreshToken",
    ),
    *("client_secret", "aws_secret_access_key", "private_key", "passphrase", "token", "Authorization"),
]


def nested(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"x": value}
    return value


def spelled_out(text: str) -> str:
    """Write a JSON text with escapes for what needs none."""
    return "".join(f"\\u{ord(char):04x}" if char.isalpha() else char for char in text)


SHAPES: dict[str, Callable[[str], str]] = {
    "alone": lambda s: s,
    "in prose": lambda s: f"The tool said: {s}, and stopped.",
    "value": lambda s: json.dumps({"a": s}),
    "key": lambda s: json.dumps({s: 1}),
    "in a list": lambda s: json.dumps([1, [s, None]]),
    "deep": lambda s: json.dumps(nested(s, 200)),
    "too deep": lambda s: "[" * 2_000 + json.dumps(s) + "]" * 2_000,
    "JSON in a string": lambda s: json.dumps({"a": json.dumps({"b": s})}),
    "JSON in a string twice": lambda s: json.dumps([json.dumps({"a": json.dumps([s])})]),
    "escaped": lambda s: '{"a": "' + spelled_out(s) + '"}',
    "cut": lambda s: '{"b": 1, "a": "' + s,
    "cut and escaped": lambda s: '{"b": 1, "a": "' + spelled_out(s),
    "repr": lambda s: repr({"a": (s, s)}),
    "after a line end": lambda s: json.dumps({"a": f"first\n{s}\tlast"}),
    "twice the same key": lambda s: f'{{"a": "{s}", "a": 1}}',
    "quoted": lambda s: json.dumps(s),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_hides_a_known_secret(shape: str) -> None:
    assert len(KNOWN) >= 40
    for secret in KNOWN:
        text = SHAPES[shape](secret)
        for given_text in (text, JSONText(text)):
            found = redacted("secrets", given_text)
            plain = found.encode().decode("unicode_escape") if "escaped" in shape else found
            assert secret[-12:] not in plain, secret
            assert "[REDACTED]" in found, secret


@pytest.mark.parametrize("name", NAMES)
def test_no_shape_hides_what_a_name_says_is_secret(name: str) -> None:
    texts = [
        *(f"{name}=hunter2", f"{name}: hunter2", f"{name} = 'hunter2 and more hunter2'", f'{name}="hunter2"'),
        *(f"export {name}=hunter2;", f"cut {{'{name}': 'hunter2", f"('{name}' => 'hunter2')"),
        *(json.dumps({name: "hunter2"}), json.dumps({"a": {name: ["hunter2", "hunter2"]}}, indent=1)),
        *(json.dumps({"a": json.dumps({name: "hunter2"})}), spelled_out(json.dumps({name: "hunter2"}))),
        *(json.dumps([json.dumps(json.dumps({name: "hunter2"}))]), json.dumps({"a": f"{name}: hunter2"})),
        f'ping [1] {{"a": "{{\\"{name}\\": \\"hunter2\\"',
    ]
    for text in texts:
        found = redacted("secrets", text)
        assert "hunter2" not in found, text
        assert "hunter2" not in found.encode().decode("unicode_escape"), text


def test_numbers_under_a_secret_name() -> None:
    text = '{"pwd": 123456, "n": 123456, "pwd": [1, {"n": 2}, 3], "token": -1.5e3}'
    gone = '"[REDACTED]"'
    expected = f'{{"pwd": {gone}, "n": 123456, "pwd": [{gone}, {{"n": 2}}, {gone}], "token": {gone}}}'
    assert redacted("secrets", text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "postgres://bob:hunter2@db/x",
        "amqp+ssl://:hunter2@q",
        "Basic Ym9iOmh1bnRlcjI=hunter2",
        "Authorization: Bearer hunter2",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2-hunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 cut",
        "https://hooks.slack.com/services/T00000000/B00000000/hunter2hunter2",
    ],
)
def test_other_secrets(text: str) -> None:
    for shape in ("alone", "in prose", "value", "JSON in a string twice", "escaped"):
        found = redacted("secrets", SHAPES[shape](text))
        assert "hunter2" not in found.encode().decode("unicode_escape"), (shape, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        '"',
        '{"a": "x',
        '[{"role": "user", "content": "How do I reset my password? The secret is a token."}]',
        '{"type": "object", "properties": {"password": {"type": "string", "minLength": 8}, "token": {}}}',
        '{"a": 12345678901234567890123, "a": 1.50, "b": -0.0, "c": [1e400, NaN], "\\u0061": "\\u00e9\\/"}',
        "def max_tokens(n): return n if tokens else secrets.choice(n)",
        "Basic facts; bearers of news. https://example.org:8080/a@b sk-learn ghp_short \\u0041",
        "\ud800 \u212a \u0130 \u017f 日本語 \0",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted("secrets", text) == text


def test_few_false_positives() -> None:
    """In code and prose: what is replaced is at most half a percent of it."""
    library = Path(json.__file__).parents[1]
    text = "".join(path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py")))[:1_000_000]
    found = redacted("secrets", text)
    kept = sum(map(len, found.split("[REDACTED]")))
    assert 0 <= len(text) - kept <= len(text) // 200


NAMES = st.text(max_size=5).filter(lambda name: not re.search("token|pwd", name.casefold()))  # of no secret
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@given(json_values, st.sampled_from(KNOWN), st.booleans(), st.integers(0, 3))
def test_json_stays_json(value: Any, secret: str, ascii_only: bool, wraps: int) -> None:
    value = {"v": value, "s": f"<{secret}>"}
    text = json.dumps(value, ensure_ascii=ascii_only)
    expected: Any = {**value, "s": "<[REDACTED]>"}
    for _ in range(wraps):
        text, expected = json.dumps([text]), [json.dumps(expected, ensure_ascii=ascii_only)]
    found = redacted("secrets", JSONText(text))
    assert type(found) is JSONText
    got: Any = json.loads(found)
    for _ in range(wraps):
        got, expected = json.loads(got[0]), json.loads(expected[0])
    assert repr(got) == repr(expected)  # NaN is not equal to itself


@given(st.text(st.sampled_from("[]{}\",:\\'\n=-_.@/ u0pasworke1"), max_size=60))
def test_any_text_can_be_redacted(text: str) -> None:
    for given_text in (text, JSONText(text)):
        record = step(prompt=given_text)
        redactor({"secrets": True, "patterns": ["a."]}).redact([record])
        assert "withheld" not in record


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "password",
            "key",
            "token=",
            "secret: ",
            '"secret":',
            "eyJaaaaaaaa",
            "eyJaaaaaaaa-",
            "eyJaaaaaaaa.",
        ),
        *(
            "://",
            "://a:",
            "-----BEGIN PRIVATE KEY-----",
            "-----BEGIN",
            "sk-",
            "ghp_",
            "SG.",
            "SG." + "a" * 20,
        ),
        *('"', '\\"', "\\", '["', '{"a":', "[", "1", "\\u0070", '"\\', "'", "=> ", "\\\\'", "xoxb-", "hvs."),
    ],
)
def test_time_is_linear(piece: str) -> None:
    def seconds(length: int, kind: type[str]) -> float:
        text = kind(piece * (length // len(piece)))
        start = time.process_time()
        redacted("secrets", text)
        return time.process_time() - start

    # Quadratic time would be minutes for the longer one.
    for kind in (str, JSONText):
        assert seconds(200_000, kind) < 100 * seconds(10_000, kind) + 1.0


# --- patterns and functions -------------------------------------------------------------------------------


def test_patterns() -> None:
    ssn = [r"\d{3}-\d{2}-\d{4}", r"\b\d{9}\b"]
    assert redacted(ssn, "is 123-45-6789.") == "is [REDACTED]."
    assert redacted(ssn, JSONText('{"ssn": 123456789, "n": 12}')) == '{"ssn": "[REDACTED]", "n": 12}'
    assert redacted(ssn, json.dumps({"a": json.dumps({"123-45-6789": 1})})) == r'{"a": "{\"[REDACTED]\": 1}"}'
    assert redacted(ssn, r'{"a": "\u0031\u0032\u0033-45-6789"}') == '{"a": "[REDACTED]"}'
    assert redacted(ssn, "password=hunter2") == "password=hunter2"


def test_a_pattern_may_match_across_json() -> None:
    """It is plain text then, if that breaks it: the ingest and the files get a string."""
    found = redacted([r'"pin":\s*\d+'], JSONText('{"a": {"pin": 1234}}'))
    assert (type(found), found) == (str, '{"a": {[REDACTED]}}')
    assert json.loads(encode_local(step(prompt=found)))["prompt"] == found
    found = redacted([r'"\d+"'], JSONText('{"a": ["x", "12"]}'))
    assert (type(found), found) == (str, '{"a": ["x", [REDACTED]]}')


def scrub(text: str) -> str:
    return text.replace("Alice", "<name>")


CALLS: list[str] = []


def remember(text: str) -> str:
    assert type(text) is str
    CALLS.append(text)
    return text


def test_function_sees_each_text_alone() -> None:
    function = {"function": f"{__name__}:scrub"}
    assert redacted(function, "Alice and Alice") == "<name> and <name>"
    found = redacted(function, JSONText(r'{"Alice": ["\u0041lice", 1, "{\"x\": \"Alice\"}"]}'))
    assert json.loads(found) == {"<name>": ["<name>", 1, '{"x": "<name>"}']}
    assert type(found) is JSONText
    CALLS.clear()
    redacted({"function": f"{__name__}:remember", "secrets": True}, JSONText('{"a": "pwd=x", "": [true, 5]}'))
    assert CALLS == ["a", "pwd=[REDACTED]", "5"]


def test_every_text_with_content_and_no_other() -> None:
    secret = KNOWN[0]
    records: list[Record] = [
        step(**dict.fromkeys((*TEXTS, "model_used", "model_requested", "finish_reason", "provider"), secret)),
        {
            "kind": "run",
            "run_id": secret,
            "session_id": secret,
            **dict.fromkeys(RUN_TEXTS, secret),
            "metadata": json.dumps({"a": {"b": secret}, secret: "x", "api_key": "abc"}) + "\n" + '{"c": "d"}',
        },
        {
            "kind": "tool_call",
            "run_id": "r",
            "tool_name": secret,
            "args": secret,
            "result": JSONText(f'["{secret}"]'),
        },
        {"kind": "feedback", "run_id": "r", "score": "thumbs_up", "text": secret},
    ]
    redactor("secrets").redact(records)
    a_step, a_run, a_call, a_feedback = records
    assert {key for key, value in a_step.items() if value == secret} == {
        *("model_used", "model_requested", "finish_reason", "provider")
    }
    assert {key for key, value in a_run.items() if value == secret} == {"run_id", "session_id"}
    assert merged_metadata(a_run) == {
        "a": {"b": "[REDACTED]"},
        "[REDACTED]": "x",
        "api_key": "[REDACTED]",
        "c": "d",
    }
    assert (a_call["tool_name"], a_call["args"], a_call["result"]) == (secret, "[REDACTED]", '["[REDACTED]"]')
    assert a_feedback["text"] == "[REDACTED]"


def test_metadata_stays_objects() -> None:
    record: Record = {"kind": "run", "run_id": "r", "metadata": '{"a": 1}\n{"b": 2}'}
    redactor([r'"a": 1\}']).redact([record])
    assert merged_metadata(record) == {"metadata": "{[REDACTED]", "b": 2}


def test_without_the_setting_only_status_messages() -> None:
    record = step(**dict.fromkeys(TEXTS, "password=hunter2"))
    Redactor(Destination(())).redact([record])
    assert [record[name] for name in TEXTS] == [*["password=hunter2"] * 3, "password=[REDACTED]"]


# --- failing closed ---------------------------------------------------------------------------------------


def fails(text: str) -> str:
    if "bad" in text:
        raise LookupError(text)
    return text


def exits(text: str) -> str:
    raise SystemExit(text)


def forgets(text: str) -> Any:
    return None


NOT_CALLABLE = 7


@pytest.mark.parametrize(
    ("rule", "logged"),
    [
        (("function", f"{__name__}:fails"), "LookupError"),
        (("function", f"{__name__}:exits"), "SystemExit"),
        (("function", f"{__name__}:forgets"), "the function returned NoneType"),
        (("function", "picostep_no_such_module:f"), "ModuleNotFoundError at its preparation"),
        (("function", f"{__name__}:missing.f"), "AttributeError at its preparation"),
        (("function", f"{__name__}:NOT_CALLABLE"), "TypeError at its preparation"),
        (("pattern", "("), "at its preparation"),
        (("a rule of the future", ""), "ValueError at its preparation"),
    ],
)
def test_what_cannot_be_redacted_is_withheld(
    rule: tuple[str, str], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Redactor(Destination((), redact=[("secrets", ""), rule]))
    records: list[Record] = [
        step(**dict.fromkeys(TEXTS, "bad canary"), model_used="m"),
        {
            "kind": "run",
            "run_id": "r",
            "metadata": '{"bad canary": 1}',
            "user_prompt": JSONText('["bad canary"]'),
        },
        {"kind": "feedback", "run_id": "r", "text": "bad canary"},
    ]
    with caplog.at_level(logging.DEBUG):
        stage.redact(records)
        stage.redact([step(prompt="bad canary")])
    assert "canary" not in repr(records)
    assert all(record["withheld"] is True for record in records)
    assert records[0]["prompt"] == records[0]["status_message"] == records[1]["user_prompt"] == WITHHELD
    assert merged_metadata(records[1]) == {"metadata": WITHHELD}
    assert records[0]["model_used"] == "m"
    (message,) = caplog.messages
    assert logged in message
    assert "canary" not in message


def test_one_withheld_text_leaves_the_others() -> None:
    record = step(prompt="bad", response="good")
    redactor({"function": f"{__name__}:fails"}).redact([record])
    assert (record["prompt"], record["response"], record["withheld"]) == (WITHHELD, "good", True)
    assert json.loads(encode_local(record))["withheld"] is True


# --- the setting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("secrets", (("secrets", ""),)),
        (["a", "b+"], (("pattern", "a"), ("pattern", "b+"))),
        (("a",), (("pattern", "a"),)),
        (
            {"function": "a.b:c.d", "patterns": ["x"], "secrets": True},
            (("secrets", ""), ("pattern", "x"), ("function", "a.b:c.d")),
        ),
    ],
)
def test_setting(value: Any, expected: Any) -> None:
    assert Settings.resolve(redact=value).redact == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "must be 'secrets', a list .* not int"),
        ([], "names nothing"),
        ({}, "names nothing"),
        ({"secrets": False}, "names nothing"),
        ({"secrets": "yes"}, "secrets must be true or false, not str"),
        ({"pattern": ["a"]}, "'pattern' is not known; there are secrets, patterns, function"),
        ({"patterns": "a"}, "patterns must be a list, not str"),
        ([b"a"], r"patterns\[0\] must be str, not bytes"),
        (["a", "(b"], r"patterns\[1\] is no regular expression: .*'\(b'"),
        (["x*"], r"patterns\[0\] matches the empty text"),
        ({"function": scrub}, "package.module:name"),
        ({"function": "a.b"}, "package.module:name"),
        ({"function": "a b:c"}, "package.module:name"),
        ({"function": "__main__:c"}, "package.module:name"),
        ("no/such/file.json", "file.json.*No such file"),
        ("secret", r"\.toml or \.json file, not 'secret'"),
    ],
)
def test_setting_that_cannot_be_used(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^redact: .*{message}"):
        Settings.resolve(redact=value)


def test_setting_from_a_file(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rules.json"
    path.write_text('{"secrets": true, "patterns": ["a"]}')
    clean_env.setenv("PICOSTEP_REDACT", str(path))
    assert Settings.resolve().redact == (("secrets", ""), ("pattern", "a"))
    assert Settings.resolve(redact=path).redact == Settings.resolve().redact
    path.write_text('{"patterns": ["("]}')
    with pytest.raises(ConfigError, match=r"^PICOSTEP_REDACT: .*rules\.json: patterns\[0\]"):
        Settings.resolve()
    clean_env.setenv("PICOSTEP_REDACT", "secrets")
    assert Settings.resolve().redact == (("secrets", ""),)
    if sys.version_info >= (3, 11):
        toml = tmp_path / "rules.toml"
        toml.write_text("patterns = ['\\d{9}']\nfunction = 'a:b'\n")
        assert Settings.resolve(redact=toml).redact == (("pattern", r"\d{9}"), ("function", "a:b"))


def test_hosts_with_other_rules_have_another_exporter() -> None:
    plain = Destination(("stdout",))
    ruled = Destination(("stdout",), redact=[("secrets", "")])
    assert (
        plain.fingerprint
        != ruled.fingerprint
        != Destination(("stdout",), redact=[("pattern", "a")]).fingerprint
    )
    assert Destination.from_dict(ruled.as_dict()) == ruled


# --- in real exporters ------------------------------------------------------------------------------------

HOST = """
import picostep, sys
picostep.configure(exporter=sys.argv[1], redact={"secrets": True, "function": sys.argv[2]})
run = picostep.run("r")
run.prompt("my password: hunter2, says Alice")
with run.step("s") as step:
    step.prompt([{"content": "Alice has sk-proj-0123456789abcdefgh"}]).response("bad")
with run.tool_call("t", "c") as call:
    call.args({"api_key": "hunter2"}).result("Alice")
run.end()
assert picostep.flush(20)
"""
MODULE = """
def scrub(text):
    if text == "bad":
        raise ValueError(text)
    return text.replace("Alice", "<name>")
"""


@pytest.mark.parametrize("exporter", ["process", pytest.param("thread", marks=pytest.mark.slow)])
def test_end_to_end(exporter: str, ring_base: Path, ingest: Ingest, tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "my_rules.py").write_text(MODULE)
    env = {
        "PYTHONPATH": str(modules),
        "PICOSTEP_DIR": str(ring_base),
        "PICOSTEP_TO": f"tcc,jsonl:{tmp_path / 'out.jsonl'},store:{tmp_path / 'store.db'}",
        "TCC_API_KEY": "key",
        "TCC_BASE_URL": ingest.url,
    }
    run_python(HOST, env, args=(exporter, "my_rules:scrub"))

    items = {item["type"]: item for item in ingest.wait_for_items(3)}
    assert items["run"]["prompt"]["user_prompt"] == "my password: [REDACTED], says <name>"
    assert items["step"]["prompt"] == [{"content": "<name> has [REDACTED]"}]
    assert items["step"]["response"] == WITHHELD
    assert json.loads(items["tool_call"]["args"]) == {"api_key": "[REDACTED]"}
    lines = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [line["type"] for line in lines if line.get("withheld")] == ["step"]
    everything = (tmp_path / "out.jsonl").read_bytes() + (tmp_path / "store.db").read_bytes()
    everything += b"".join(request.body for request in ingest.requests)
    for secret in (b"hunter2", b"Alice", b"0123456789abcdefgh", b'"bad"'):
        assert secret not in everything
    logs = wait_until(lambda: list(ring_base.rglob("exporter.log"))) if exporter == "process" else []
    for log in logs:
        assert "texts are withheld: ValueError" in log.read_text()
        assert "bad" not in log.read_text()


def test_function_that_the_exporter_cannot_import(ring_base: Path, ingest: Ingest) -> None:
    env = {"PICOSTEP_DIR": str(ring_base), "TCC_API_KEY": "key", "TCC_BASE_URL": ingest.url}
    run_python(HOST, env, args=("process", "not_there:scrub"))

    items = {item["type"]: item for item in ingest.wait_for_items(3)}
    assert (
        items["step"]["prompt"]
        == items["step"]["response"]
        == items["run"]["prompt"]["user_prompt"]
        == WITHHELD
    )
    assert items["step"]["step_id"] == "s"


def test_configure_takes_it(ring_base: Path) -> None:
    with pytest.raises(ConfigError, match="redact"):
        picostep.configure(redact=["("])

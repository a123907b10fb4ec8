"""
Redaction: what happens to the texts of a record right after it has left the ring.

Status messages lose the secrets that error texts are known to carry. What the setting `redact` names is
applied to every text that carries content. A text that cannot be redacted is withheld: nothing of it goes on.
"""

from __future__ import annotations

import json
import logging
import re
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from picostep._ring import JSONText
from picostep.record import content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from picostep.payload import Record
    from picostep.settings.destination import Destination

__all__ = ["WITHHELD", "Redactor", "redact"]

REDACTED = "[REDACTED]"
WITHHELD = "[withheld: redaction failed]"

_CONTENT = content()
_MOST_KINDS = 100  # of failures that are remembered as logged

log = logging.getLogger(__name__)


# --- built-in rules ---------------------------------------------------------------------------------------


class _Rule(NamedTuple):
    """
    A pattern and what takes the place of its matches.

    `starts` are the texts, in lower case, with which a match may begin. To search for those and try the
    pattern there takes a tenth of the time of searching for the pattern.
    """

    starts: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: tuple[str | int, ...]
    """Texts, and the numbers of groups."""

    def apply(self, text: str, lower: str) -> str:
        """Return the text without the matches; `lower` is the text in lower case, character by character."""
        pieces: list[str] = []
        end = 0
        for start in self._candidates(lower):
            match = self.pattern.match(text, start) if start >= end else None
            if match is not None:
                pieces += text[end:start], self.instead(match)
                end = match.end()
        return "".join((*pieces, text[end:])) if pieces else text

    def instead(self, match: re.Match[str]) -> str:
        return "".join(match[part] if isinstance(part, int) else part for part in self.replacement)

    def _candidates(self, lower: str) -> list[int]:
        found = []
        for start in self.starts:
            at = lower.find(start)
            while at >= 0:
                found.append(at)
                at = lower.find(start, at + 1)
        return sorted(found)


def _spelled(firsts: str, seconds: str) -> tuple[str, ...]:
    """Return all names of two words, such as api_key, api-key and apikey."""
    return tuple(map("".join, product(firsts.split(), ("", "_", "-"), seconds.split())))


# A secret ends at white space, a quote or closing punctuation; one bracket after it goes too ("[key=abc]").
_TOKEN = r"""[^\s"',;})\]]+\]?"""
_BASE64 = r"[A-Za-z0-9+/=]{12,}\]?"
_HEADER = r"\bAuthorization\s*[:=]\s*"
_NAMES = "|".join(
    (
        r"api[_-]?key",
        r"(?:access|refresh|id)[_-]?token",
        r"(?:client[_-]?)?secret",
        "password",
        "passwd",
        "pwd",
        "authorization",
        "bearer",
    )
)
_NAMES_START = (
    *_spelled("api", "key"),
    *_spelled("access refresh id", "token"),
    *_spelled("client", "secret"),
    *("secret", "password", "passwd", "pwd", "authorization", "bearer"),
)

# Applied in this order, each to the result of the one before: a header must be seen whole before its scheme
# alone, and both before the assignments. Time is linear: where a pattern fails or ends, no later match can
# begin inside what it has looked at, but for a bounded number.
_HEADERS = tuple(
    _Rule(starts, re.compile(pattern, re.IGNORECASE), (kept, REDACTED))
    for starts, pattern, kept in (
        (("authorization",), rf"{_HEADER}Bearer\s+{_TOKEN}", "Authorization="),
        (("authorization",), rf"{_HEADER}Basic\s+{_BASE64}", "Authorization="),
        (("bearer",), rf"\bBearer\s+{_TOKEN}", "Bearer "),
        (("basic",), rf"\bBasic\s+{_BASE64}", "Basic "),
    )
)
_STATUS = (
    *_HEADERS,
    _Rule(_NAMES_START, re.compile(rf"\b({_NAMES})\b\s*[:=]\s*{_TOKEN}", re.IGNORECASE), (1, "=", REDACTED)),
    # The scheme becomes https whatever it was: what the ingest's own SDK sends.
    _Rule(
        ("http://", "https://"),
        re.compile(r"https?://([^/\s:@]+):[^@\s/]+@", re.IGNORECASE),
        ("https://", 1, ":", REDACTED, "@"),
    ),
    # Keys of known shape, wherever they stand.
    _Rule(("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{16,}\b"), (REDACTED,)),
    _Rule(("xox",), re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{16,}\b"), (REDACTED,)),
    _Rule(
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), re.compile(r"\bgh[pousr]_[A-Za-z0-9_]{16,}\b"), (REDACTED,)
    ),
    _Rule(("service_",), re.compile(r"\bservice_[A-Za-z0-9_-]{16,}\b"), (REDACTED,)),
)


# The preset "secrets": the same, less sparing, for texts that are not ours to keep readable.

# Also in longer names, such as DB_PASSWORD and dbPassword. Each begins with its rarest word.
_MORE_START = (
    *("key", "token", "secret", "passw", "passphrase", "pwd", "credential", "authorization", "bearer"),
)
_MORE_NAMES = "|".join(
    (
        *("secret", "passw(?:or)?d", "passphrase", "pwd", "credentials?", "authorization", "bearer"),
        *(
            rf"(?:{'|'.join(rf'(?<={word})|(?<={word}[_-])' for word in words.split())}){last}"
            for words, last in (
                ("api access account private secret signing encryption", "key"),
                ("access refresh id auth session bot csrf", "token"),
            )
        ),
        r"\btoken",
    )
)
# Of an object in JSON. Not where the value is an object: that may be a schema which describes a password.
_SECRET_KEY = re.compile(rf"(?:{_MORE_NAMES}|^cookie|^set-cookie)\s*$", re.IGNORECASE)

_KNOWN = (
    ("sk-", r"sk-[A-Za-z0-9_-]{16,}"),  # OpenAI, Anthropic, DeepSeek, OpenRouter …
    ("sk_live_ sk_test_", r"sk_(?:live|test)_[A-Za-z0-9]{10,}"),  # Stripe
    ("rk_live_ rk_test_", r"rk_(?:live|test)_[A-Za-z0-9]{10,}"),
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{16,}"),
    ("service_", r"service_[A-Za-z0-9_-]{16,}"),
    ("xoxa- xoxb- xoxe- xoxp- xoxr- xoxs-", r"xox[abeprs]-[A-Za-z0-9-]{16,}"),  # Slack
    ("xapp-", r"xapp-[A-Za-z0-9-]{16,}"),
    ("hooks.slack.com/", r"hooks\.slack\.com/services/[A-Za-z0-9_/]{16,}"),
    ("ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9_]{16,}"),  # GitHub
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,}"),
    ("glpat- gldt- glrt- glcbt- glptt-", r"gl(?:pat|dt|rt|cbt|ptt)-[A-Za-z0-9_.-]{16,}"),  # GitLab
    ("akia", r"AKIA[A-Z0-9]{16}"),  # Amazon
    ("asia", r"ASIA[A-Z0-9]{16}"),
    ("aiza", r"AIza[A-Za-z0-9_-]{35}"),  # Google
    ("ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),
    ("gocspx-", r"GOCSPX-[A-Za-z0-9_-]{20,}"),
    ("hf_", r"hf_[A-Za-z0-9]{20,}"),  # Hugging Face
    ("npm_", r"npm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"pypi-[A-Za-z0-9_-]{30,}"),
    ("sg.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),  # SendGrid
    ("dop_v1_ doo_v1_ dor_v1_", r"do[por]_v1_[a-f0-9]{32,}"),  # DigitalOcean
    ("shpat_ shpss_ shpca_ shppa_", r"shp(?:at|ss|ca|pa)_[A-Fa-f0-9]{32}"),  # Shopify
    ("gsk_", r"gsk_[A-Za-z0-9]{20,}"),  # Groq
    ("xai-", r"xai-[A-Za-z0-9]{20,}"),
    ("pplx-", r"pplx-[A-Za-z0-9]{20,}"),
    ("nvapi-", r"nvapi-[A-Za-z0-9_-]{20,}"),
    ("r8_", r"r8_[A-Za-z0-9]{30,}"),  # Replicate
    ("lsv2_pt_ lsv2_sk_", r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{20,}"),  # LangSmith
    ("tvly-", r"tvly-[A-Za-z0-9-]{16,}"),
    ("dckr_pat_", r"dckr_pat_[A-Za-z0-9_-]{20,}"),
    ("sntrys_ sntryu_", r"sntry[su]_[A-Za-z0-9+/=_]{20,}"),
    ("lin_api_", r"lin_api_[A-Za-z0-9]{20,}"),
    ("ntn_", r"ntn_[A-Za-z0-9]{20,}"),  # Notion
    ("figd_", r"figd_[A-Za-z0-9_-]{20,}"),
    ("dapi", r"dapi[a-f0-9]{32}"),  # Databricks
    ("hvs.", r"hvs\.[A-Za-z0-9_-]{20,}"),  # Vault
    ("age-secret-key-", r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"),
    ("eyj", r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,3}"),  # JWT
)
_SECRETS = (
    _Rule(
        ("-----begin",),  # one that is cut hides everything after it
        re.compile(
            r"-----BEGIN[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"[^-]*(?:-(?!----END)[^-]*)*(?:-----END[A-Z0-9 ]{0,60}-----)?"
        ),
        (REDACTED,),
    ),
    _Rule(("://",), re.compile(r"://([^/\s:@\"']*):[^@\s/]+@"), ("://", 1, ":", REDACTED, "@")),
    *_HEADERS,
    # Also DB_PASSWORD=, "dbPassword": "…" and \"password\": \"…\".
    _Rule(
        _MORE_START,
        re.compile(
            rf"({_MORE_NAMES})(\\*[\"']?\]?\s*(?:=>|[:=]=?)\s*)"
            rf"(?:\\*\"[^\"]*\"?|\\*'[^']*'?|{_TOKEN})",
            re.IGNORECASE,
        ),
        (1, 2, REDACTED),
    ),
    _Rule(
        tuple(start for starts, _ in _KNOWN for start in starts.split()),
        re.compile(rf"\b(?:{'|'.join(pattern for _, pattern in _KNOWN)})"),
        (REDACTED,),
    ),
)
# Too short for a key of known shape, and nothing is assigned: most of what JSON consists of.
_HARMLESS = re.compile(r"[^\s:=]{0,17}")


def redact(text: str) -> str:
    """Return the text with `[REDACTED]` for auth headers, assigned keys, URL passwords and known keys."""
    return _apply(_STATUS, text)


def _apply(rules: Iterable[_Rule], text: str) -> str:
    # Two characters are the same as others to a pattern that ignores case and not in lower case, or longer.
    if not text.isascii() and ("\u017f" in text or "\u0130" in text):
        for rule in rules:
            text = rule.pattern.sub(rule.instead, text)
        return text
    lower = text.lower()
    for rule in rules:
        result = rule.apply(text, lower)
        if result is not text:
            text, lower = result, result.lower()
    return text


# --- the stage --------------------------------------------------------------------------------------------


class Redactor:
    """
    Redacts the texts of records in place. Never raises.

    A text that is JSON is taken apart: each key and each text and number in it is redacted alone, whatever
    escapes it is written with, and taken apart again if it is JSON itself. Then the user's patterns see the
    whole. It stays JSON unless one of those breaks it, and is a plain text then.

    Args:
        destination: Its `redact` says what is applied besides the rules for status messages.
    """

    def __init__(self, destination: Destination) -> None:
        self._logged: set[str] = set()
        self._failure = ""  # why no text can be redacted
        self._secrets = False
        self._patterns: list[re.Pattern[str]] = []
        self._function: Callable[[str], object] | None = None
        self._active = bool(destination.redact)
        try:
            for kind, text in destination.redact:
                self._add(kind, text)
        except (Exception, SystemExit) as error:  # the user's module may raise anything
            self._failure = f"{type(error).__name__} at its preparation"

    def _add(self, kind: str, text: str) -> None:
        if kind == "secrets":
            self._secrets = True
        elif kind == "pattern":
            self._patterns.append(re.compile(text))
        elif kind == "function":
            module, _, name = text.partition(":")
            found: object = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            if not callable(found):
                raise TypeError("not callable")
            self._function = found
        else:
            raise ValueError("a rule of a newer version")

    def redact(self, records: Sequence[Record]) -> None:
        """Redact all texts of the records that carry content; those that cannot be are withheld."""
        for record in records:
            if "status_message" in record:
                self._replace(record, "status_message", redact)
            if self._active:
                for key in _CONTENT:
                    if key in record:
                        self._replace(record, key, self._metadata if key == "metadata" else self._content)

    def _replace(self, record: Record, key: str, change: Callable[[str], str]) -> None:
        try:
            if self._failure:
                raise _FailedError(self._failure)
            record[key] = change(record[key])
        except (Exception, SystemExit) as error:  # its text may quote the record
            # Metadata is read as JSON again.
            record[key] = json.dumps({"metadata": WITHHELD}) if key == "metadata" else WITHHELD
            record["withheld"] = True
            self._log(str(error) if isinstance(error, _FailedError) else type(error).__name__)

    def _log(self, kind: str) -> None:
        if kind not in self._logged and len(self._logged) < _MOST_KINDS:
            self._logged.add(kind)
            log.error("redaction failed, so texts are withheld: %s", kind)

    # --- one text ---

    def _content(self, text: str) -> str:
        result = self._text(text)
        if isinstance(text, JSONText):
            # A pattern that has seen the whole may have broken it, and a damaged ring may say anything.
            return JSONText(result) if _is_json(result) else result
        return result

    def _metadata(self, lines: str) -> str:
        """Redact the JSON objects of a run's metadata, one on each line; each stays one."""
        return "\n".join(map(self._metadata_line, lines.split("\n")))

    def _metadata_line(self, line: str) -> str:
        result = self._text(line)
        if result != line and _is_json(line) and not (_is_json(result) and result.lstrip()[:1] == "{"):
            return json.dumps({"metadata": result})
        return result.replace("\n", " ")

    def _text(self, text: str) -> str:
        if not text:
            return text
        if not _is_json(text):
            return self._plain(str(text))
        text = self._json(str(text))
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        return text

    def _plain(self, text: str) -> str:
        if "\\u00" in text:  # JSON that was cut may still be written with escapes
            spelled_out = _ESCAPE.sub(_unescaped, text)
            if self._masked(spelled_out) != spelled_out:
                text = spelled_out
        text = self._masked(text)
        if self._function is not None:
            result = self._function(text)
            if not isinstance(result, str):
                raise _FailedError(f"the function returned {type(result).__name__}")
            text = str.__str__(result)
        return text

    def _masked(self, text: str) -> str:
        if self._secrets and not _HARMLESS.fullmatch(text):
            text = _apply(_SECRETS, text)
        for pattern in self._patterns:
            text = pattern.sub(REDACTED, text)
        return text

    def _json(self, text: str) -> str:
        """
        Redact what is in a JSON text, which stays as it is otherwise.

        By its tokens and not by its values: nothing nests too deep, numbers keep their digits, and a key that
        is there twice is redacted twice.
        """
        pieces: list[str] = []
        end = 0
        secret = False  # whether the next value is that of a key which names a secret
        within: list[bool] = []  # for each open bracket, whether it is such a value
        for match in _JSON_TOKEN.finditer(text):
            token = match[0]
            if token in _MARKS:
                if token == "[":
                    within.append(secret)
                elif token == "{":
                    within.append(False)
                elif token != "," and within:
                    within.pop()
                secret = False
                continue
            value = _value(token)
            if token[0] == '"' and _COLON.match(text, match.end()):
                secret = self._secrets and _SECRET_KEY.search(value) is not None
                result = self._text(value)
            elif secret or (within and within[-1]):
                result = REDACTED
            else:
                result = self._text(value)
            if result != value:
                pieces += text[end : match.start()], json.dumps(result)
                end = match.end()
        return "".join((*pieces, text[end:])) if pieces else text


class _FailedError(Exception):
    """A failure that may be logged in these words."""


# A text that is not closed ends with the whole, so that none is looked at twice.
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]|-?[0-9][0-9.eE+-]*', re.DOTALL)
_MARKS = frozenset("[]{},")
_COLON = re.compile(r"\s*:")
_START = re.compile(r'\s*[\[{"]')
_ESCAPE = re.compile(r"\\+u00([2-7][0-9a-fA-F])")


def _is_json(text: str) -> bool:
    """Whether a text is JSON that may hide something: an object, an array or a quoted text."""
    if not _START.match(text):
        return False
    try:
        json.loads(text)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _value(token: str) -> str:
    """Return what a token stands for; for a number that is itself."""
    if token[0] != '"' or "\\" not in token:
        return token.strip('"')
    try:
        value: str = json.loads(token, strict=False)
    except ValueError:
        return token.strip('"')
    return value


def _unescaped(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return match[0] if char in '"\\\x7f' else char

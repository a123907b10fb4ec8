"""Where the records of a run go, and how they are prepared: one value, equal in every process."""

from __future__ import annotations

from os import environ

from picostep.errors import ConfigError
from picostep.settings.urls import checked_key, default_store, endpoint, get_url, safe_url

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn

    from picostep.settings.table import Settings

__all__ = ["Destination", "resolve_destination"]

INGEST_PATH = "/v1/custom"
FEEDBACK_PATH = "/v1/feedback"


class Destination:
    """
    Where records go; immutable, comparable and hashable.

    Args:
        to: Sink specs (`"tcc"`, `"jsonl:/path"`, `"stdout"`, `"store:/path"`, `"otlp:http://…"`), paths
            absolute.

        api_key: The key of sink `tcc`; None if it is not among `to`.

        url: POST target of steps, runs and tool calls; None likewise.

        feedback_url: POST target of feedback; None likewise.

        prices: The user's own, as `picostep.prices.Overrides.plain()` gives them.

        send_computed_cost: Whether sink `tcc` is told what picostep computed.

        redact: What texts lose besides secrets in status messages, as
            `picostep.settings.redact.rules_of()` gives it.

        otlp: How sink `otlp` sends, with its headers, as `picostep.settings.otel.rows_of()` gives it.
    """

    __slots__ = (
        "_fingerprint",
        "api_key",
        "feedback_url",
        "otlp",
        "prices",
        "redact",
        "send_computed_cost",
        "to",
        "url",
    )

    to: tuple[str, ...]
    api_key: str | None
    url: str | None
    feedback_url: str | None
    prices: tuple[tuple[str | int, ...], ...]
    send_computed_cost: bool
    redact: tuple[tuple[str, str], ...]
    otlp: tuple[tuple[str, ...], ...]
    _fingerprint: str

    def __init__(
        self,
        to: Iterable[str],
        api_key: str | None = None,
        url: str | None = None,
        feedback_url: str | None = None,
        prices: Iterable[Iterable[str | int]] = (),
        send_computed_cost: bool = False,
        redact: Iterable[Iterable[str]] = (),
        otlp: Iterable[Iterable[str]] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "to", tuple(to))
        put(self, "api_key", api_key)
        put(self, "url", url)
        put(self, "feedback_url", feedback_url)
        put(self, "prices", tuple(tuple(row) for row in prices))
        put(self, "send_computed_cost", send_computed_cost)
        put(self, "redact", tuple(tuple(rule) for rule in redact))
        put(self, "otlp", tuple(tuple(row) for row in otlp))
        state = self._state()
        # Without such rows the digits are those of before there were any: a host of an older build that died
        # with records in its ring left them in BASE/<digits>, where only equal digits find them.
        put(self, "_fingerprint", _fingerprint(state if self.otlp else state[:-1]))

    @property
    def fingerprint(self) -> str:
        """16 hex digits, equal in every process for equal destinations; no key or URL can be read back."""
        return self._fingerprint

    def sink_fingerprint(self, spec: str) -> str:
        """Return 16 hex digits for one of the sinks: for what it is, and where and by which key it sends."""
        scheme = spec.partition(":")[0]
        if scheme in ("stdout", "jsonl", "store"):
            return _fingerprint((spec,))
        if scheme == "otlp":
            from picostep.settings.otel import rows_for

            return _fingerprint((spec, *(row for row in rows_for(self.otlp, spec) if row[0] == "header")))
        return _fingerprint((spec, self.api_key, self.url, self.feedback_url))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields (with key and headers) as plain values for the pipe to the exporter."""
        return dict(zip(_FIELDS, self._state(), strict=True))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Destination:
        """Make the destination again that `as_dict()` described."""
        return cls(**fields)

    def _state(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _FIELDS)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Destination is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Destination is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._state() == other._state() if isinstance(other, Destination) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._state())

    def __reduce__(self) -> tuple[Any, ...]:
        return Destination, self._state()

    def __repr__(self) -> str:
        key = "None" if self.api_key is None else "'…'"
        url = "None" if self.url is None else repr(safe_url(self.url))
        return f"<Destination to={self.to!r} api_key={key} url={url}>"


_FIELDS = ("to", "api_key", "url", "feedback_url", "prices", "send_computed_cost", "redact", "otlp")


def _fingerprint(state: tuple[object, ...]) -> str:
    try:
        from _blake2 import blake2b  # hashlib would load OpenSSL into the host
    except ImportError:  # pragma: no cover - an interpreter built without it
        from hashlib import blake2b

    # ascii() of a tuple is unambiguous, and bears the lone surrogates that an undecodable environment
    # holds.
    text = ascii(state).encode("ascii")
    return str(blake2b(text, digest_size=8, key=b"picostep destination, version 1").hexdigest())


def resolve_destination(
    settings: Settings,
    api_key: str | None = None,
    tcc_url: str | None = None,
    feedback_url: str | None = None,
) -> Destination:
    """
    Work out where records go.

    The three arguments are those of one run, step, tool call or feedback: whichever is given (empty counts
    as not given), its records go to The Context Company alone. What `configure()` was given is in
    `settings` already.

    Args:
        settings: From `Settings.resolve()`.

        api_key: Key; else that of `settings`, else `TCC_API_KEY`.

        tcc_url: Whole endpoint of steps, runs and tool calls; else that of `settings`, else `TCC_URL`, else
            what `get_url()` says.

        feedback_url: Whole endpoint of feedback; else `TCC_FEEDBACK_URL`, else what `get_url()` says.

    Raises:
        ConfigError: A sink needs a key and there is none, or a key, a URL or a variable cannot be used.
    """
    to: tuple[str, ...]
    if api_key or tcc_url or feedback_url:
        to = ("tcc",)
    elif settings.to:
        to = settings.to
    elif settings.api_key or environ.get("TCC_API_KEY"):
        to = ("tcc",)
    else:
        to = (f"store:{default_store()}",)
    otlp = _otlp(settings, [spec for spec in to if spec.startswith("otlp:")])
    if "tcc" not in to:
        return Destination(to, prices=settings.prices, redact=settings.redact, otlp=otlp)

    key = _first(
        (api_key, "api_key"), (settings.api_key, "api_key"), (environ.get("TCC_API_KEY"), "TCC_API_KEY")
    )
    if key is None:
        raise ConfigError("no API key for sink 'tcc': set TCC_API_KEY, or pass api_key=")
    checked = checked_key(*key)
    url = _first((tcc_url, "tcc_url"), (settings.tcc_url, "tcc_url"), (environ.get("TCC_URL"), "TCC_URL"))
    feedback = _first((feedback_url, "tcc_url"), (environ.get("TCC_FEEDBACK_URL"), "TCC_FEEDBACK_URL"))
    return Destination(
        to,
        checked,
        endpoint(*(url or (get_url(INGEST_PATH, checked), "TCC_BASE_URL"))),
        endpoint(*(feedback or (get_url(FEEDBACK_PATH, checked), "TCC_BASE_URL"))),
        settings.prices,
        settings.send_computed_cost,
        settings.redact,
        otlp,
    )


def _otlp(settings: Settings, specs: list[str]) -> tuple[tuple[str, ...], ...]:
    if not specs:
        return ()
    from picostep.settings.otel import rows_of

    return rows_of(settings, environ, specs)


def _first(*candidates: tuple[Any, str]) -> tuple[Any, str] | None:
    """Return the first value that is given, with the name under which it was given."""
    return next((candidate for candidate in candidates if candidate[0]), None)

"""
Settings from code and environment, URL rules, and destinations.

Nothing is read when this module is imported, and nothing from files: an explicit argument wins over the
environment, the environment over the default. A setting that cannot be used raises `ConfigError`, which
names the variable or argument and says what is allowed.
"""

from __future__ import annotations

from os import PathLike, environ

from picostep.errors import ConfigError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, NoReturn
    from urllib.parse import ParseResult

__all__ = [
    "Destination",
    "Settings",
    "default_store",
    "destination",
    "get_api_key",
    "get_url",
    "otlp_endpoint",
    "refreshed_prices",
]

PRODUCTION = "https://api.thecontext.company"
DEVELOPMENT = "https://dev.thecontext.company"
_OFFICIAL = (PRODUCTION, DEVELOPMENT)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DEFAULT_PORTS = {"http": 80, "https": 443}

INGEST_PATH = "/v1/custom"
FEEDBACK_PATH = "/v1/feedback"

EXPORTERS = ("process", "thread", "external", "off")
MISUSES = ("raise", "log")
_BUILT_IN_SINKS = ("tcc", "jsonl", "otlp", "stdout", "store")
OTLP_PATH = "/v1/traces"

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


# --- where things go: key, URLs, local store --------------------------------------------------------------


def get_api_key(api_key: str | None = None) -> str:
    """
    Return the API key to use: the one given, else `TCC_API_KEY`.

    Args:
        api_key: The key; None or empty counts as not given.

    Raises:
        ConfigError: There is neither.
    """
    key = api_key or environ.get("TCC_API_KEY")
    if not key:
        raise ConfigError("no API key: set TCC_API_KEY, or pass api_key=")
    return key


def get_url(path: str, api_key: str | None = None) -> str:
    """
    Return the URL of a path of The Context Company's API.

    The base is `TCC_BASE_URL` if that is set. Otherwise keys that begin with `dev_` belong to the
    development service, and all others to production. User name, password, query and fragment of
    `TCC_BASE_URL` are dropped, and so are default ports and trailing slashes.

    Args:
        path: Appended to the base as it is, for example `"/v1/custom"`.

        api_key: The key that chooses the base; without it `TCC_API_KEY`.

    Raises:
        ConfigError: `TCC_BASE_URL` is not http(s) with a host, or its origin is neither one of the two
            official ones nor a loopback host, and `TCC_ALLOW_UNSAFE_BASE_URL` is not `1`.
    """
    given = environ.get("TCC_BASE_URL")
    if given:
        return f"{_base(given)}{path}"
    key = api_key or environ.get("TCC_API_KEY", "")
    return f"{DEVELOPMENT if key.startswith('dev_') else PRODUCTION}{path}"


def default_store() -> str:
    """
    Return the path of the local store used without account and settings:
    `$XDG_STATE_HOME/picostep/store.db`.

    `~/.local/state` stands in for an `XDG_STATE_HOME` that is unset or, as its specification demands, not
    absolute.

    Raises:
        ConfigError: There is no `XDG_STATE_HOME`, and the home directory of this user is not known.
    """
    return _state_file("store.db")


def default_spool() -> str:
    """Return the directory of spools: `$XDG_STATE_HOME/picostep/spool`; "" where there is no place for it."""
    try:
        return _state_file("spool")
    except ConfigError:
        return ""


def refreshed_prices() -> str:
    """Return the path of what `picostep prices refresh` makes; raises ConfigError likewise."""
    return _state_file("prices.bin")


def _state_file(name: str) -> str:
    from os import path

    state = environ.get("XDG_STATE_HOME", "")
    if not path.isabs(state):
        home = path.expanduser("~")
        if not path.isabs(home):
            raise ConfigError(
                f"no place for {name}: set HOME or XDG_STATE_HOME, or for the store "
                "PICOSTEP_TO=store:/path/to/file"
            )
        state = path.join(home, ".local", "state")
    return path.join(state, "picostep", name)


def _base(text: str) -> str:
    """Normalize `TCC_BASE_URL` to `scheme://host[:port][/path]`; refuse origins that must not get the key."""
    parts, port = _split(text, "TCC_BASE_URL")
    host = (parts.hostname or "").lower()  # the zone of an address keeps its case otherwise
    origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    if port and port != _DEFAULT_PORTS[parts.scheme]:
        origin = f"{origin}:{port}"
    if origin in _OFFICIAL or host in _LOOPBACK or environ.get("TCC_ALLOW_UNSAFE_BASE_URL") == "1":
        return origin + parts.path.rstrip("/")
    raise ConfigError(
        f"TCC_BASE_URL: the API key is not sent to {origin}. Allowed are {PRODUCTION}, {DEVELOPMENT}, "
        f"localhost, 127.0.0.1 and [::1]; TCC_ALLOW_UNSAFE_BASE_URL=1 allows any host"
    )


def _split(text: str, name: str) -> tuple[ParseResult, int | None]:
    """Parse an http(s) URL that has a host; return its parts and its port, if it names one."""
    from urllib.parse import urlparse

    try:
        parts = urlparse(text)
        port = parts.port
    except ValueError:  # unbalanced brackets, a port that is no number
        _bad_url(text, name)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        _bad_url(text, name)
    return parts, port


def _endpoint(text: object, name: str) -> str:
    """Check a whole endpoint, which may be on any host: who gives it, trusts it. Return it as it is."""
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be a URL as str, not {type(text).__name__}")
    if any(char < " " or char == "\x7f" for char in text):
        _bad_url(text, name, " without control characters such as line ends")
    parts, port = _split(text, name)
    if "@" in parts.netloc:
        _bad_url(text, name, " without user name and password: they would be sent and logged beside the key")
    if "]" in parts.netloc and parts.netloc.rpartition("]")[2].rstrip("0123456789") not in ("", ":"):
        _bad_url(text, name, " with nothing but a port after the address in brackets")
    host = parts.hostname or ""
    letters = host.replace(":", "") if parts.netloc.startswith("[") else host
    if not letters.isascii() or not letters.replace("-", "").replace(".", "").replace("_", "").isalnum():
        _bad_url(text, name, " whose host is ASCII (xn--… for international names)")
    if port == 0:
        _bad_url(text, name, " with a port from 1 to 65535")
    return text


def _bad_url(text: str, name: str, rule: str = "") -> NoReturn:
    # Without the error that led here: its text quotes the URL.
    raise ConfigError(
        f"{name} must be http://host… or https://host…{rule}, got {_safe_url(text)!r}"
    ) from None


def _safe_url(text: str) -> str:
    """Leave out of a URL what may be secret (userinfo, query, fragment), however broken the URL is."""
    scheme, slashes, rest = text.partition("://")
    if scheme.lower() not in _DEFAULT_PORTS:
        scheme, slashes, rest = "", "", text
    # A password may hold "/", "?" or "#" and break the URL, so everything up to the last "@" goes first.
    rest = rest.rpartition("@")[2]
    for mark in "?#":
        rest = rest.partition(mark)[0]
    return _cut(f"{scheme}{slashes}{rest}")


def _checked_key(key: str, name: str) -> str:
    """Refuse a key that cannot travel in a header, or would break out of it; the message never shows it."""
    if not isinstance(key, str):
        raise ConfigError(f"{name} must be str, not {type(key).__name__}")
    for position, char in enumerate(key):
        if char < " " or "\x7f" <= char < "\xa0":
            raise ConfigError(
                f"{name}: control character at position {position}, often a line end that was read too"
            )
        if char > "\xff":
            raise ConfigError(
                f"{name}: character at position {position} cannot be sent in a header (not Latin-1)"
            )
    return key


# --- destinations -----------------------------------------------------------------------------------------


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

        redact: What texts lose besides secrets in status messages, as `picostep.redaction.plain()` gives it.

        otlp: How sink `otlp` sends, with its headers, as `picostep.otelenv.plain()` gives it, and
            `("content", "off")` where it leaves out texts.
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
        # What has no such rows keeps the digits that it had before there were any.
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
            return _fingerprint((spec, *(row for row in self.otlp if row[0] == "header")))
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
        url = "None" if self.url is None else repr(_safe_url(self.url))
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


def destination(
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
    otlp = _otlp(settings) if any(spec.startswith("otlp:") for spec in to) else ()
    if "tcc" not in to:
        return Destination(to, prices=settings.prices, redact=settings.redact, otlp=otlp)

    key = _first(
        (api_key, "api_key"), (settings.api_key, "api_key"), (environ.get("TCC_API_KEY"), "TCC_API_KEY")
    )
    if key is None:
        raise ConfigError("no API key for sink 'tcc': set TCC_API_KEY, or pass api_key=")
    checked = _checked_key(*key)
    url = _first((tcc_url, "tcc_url"), (settings.tcc_url, "tcc_url"), (environ.get("TCC_URL"), "TCC_URL"))
    feedback = _first((feedback_url, "tcc_url"), (environ.get("TCC_FEEDBACK_URL"), "TCC_FEEDBACK_URL"))
    return Destination(
        to,
        checked,
        _endpoint(*(url or (get_url(INGEST_PATH, checked), "TCC_BASE_URL"))),
        _endpoint(*(feedback or (get_url(FEEDBACK_PATH, checked), "TCC_BASE_URL"))),
        settings.prices,
        settings.send_computed_cost,
        settings.redact,
        otlp,
    )


def _otlp(settings: Settings) -> tuple[tuple[str, ...], ...]:
    from picostep import otelenv

    rows = otelenv.plain(environ)
    return rows if settings.otlp_content else (*rows, ("content", "off"))


def _first(*candidates: tuple[Any, str]) -> tuple[Any, str] | None:
    """Return the first value that is given, with the name under which it was given."""
    return next((candidate for candidate in candidates if candidate[0]), None)


# --- settings ---------------------------------------------------------------------------------------------


class Settings:
    """
    The settings of this process; immutable by convention, made by `Settings.resolve()`.

    Attributes:
        to: Sink specs with absolute paths; empty if neither code nor environment chose (see
            `destination()`).

        dir: Absolute path under which the ring directories lie, or None for the platform's.

        exporter: `"process"`, `"thread"`, `"external"` or `"off"`.

        disabled: Whether recording is switched off.

        ring_bytes: Size of a ring, a power of two from 256 KiB to 1 GiB; other numbers are rounded down to
            one.

        spool: Absolute path of the directory of spools; "": there are none.

        spool_bytes: What the spool of one sink may hold, 1 MiB to 1 TiB.

        spool_age: Seconds after which spooled records are dropped, 1 to 366 days.

        batch_records: Most records in one batch, 1 to 65,536.

        batch_bytes: Size in bytes at which a batch is closed, 1 KiB to 64 MiB.

        exit_timeout: Longest wait at exit of the host, in seconds, 0 to 3600.

        misuse: `"raise"` or `"log"`: what a wrong call does.

        prices: The user's own prices, as plain rows; see `picostep.prices.Overrides`.

        send_computed_cost: Whether The Context Company is told costs that picostep computed.

        redact: What texts lose, as pairs of text; see `picostep.redaction.plain()`.

        otlp_content: Whether sink `otlp` sends texts.

        debug: Whether to log through `logging`.

        api_key: Key given to `configure()`, or None. Never shown.

        tcc_url: Whole endpoint given to `configure()`, or None.
    """

    __slots__ = (
        "api_key",
        "batch_bytes",
        "batch_records",
        "debug",
        "dir",
        "disabled",
        "exit_timeout",
        "exporter",
        "misuse",
        "otlp_content",
        "prices",
        "redact",
        "ring_bytes",
        "send_computed_cost",
        "spool",
        "spool_age",
        "spool_bytes",
        "tcc_url",
        "to",
    )

    to: tuple[str, ...]
    dir: str | None
    exporter: str
    disabled: bool
    ring_bytes: int
    spool: str
    spool_bytes: int
    spool_age: float
    batch_records: int
    batch_bytes: int
    exit_timeout: float
    misuse: str
    prices: tuple[tuple[str | int, ...], ...]
    send_computed_cost: bool
    redact: tuple[tuple[str, str], ...]
    otlp_content: bool
    debug: bool
    api_key: str | None
    tcc_url: str | None

    @classmethod
    def resolve(
        cls,
        *,
        to: str | Iterable[str] | None = None,
        dir: str | None = None,
        exporter: str | None = None,
        disabled: bool | None = None,
        ring_bytes: int | None = None,
        spool: str | None = None,
        spool_bytes: int | None = None,
        spool_age: float | None = None,
        batch_records: int | None = None,
        batch_bytes: int | None = None,
        exit_timeout: float | None = None,
        misuse: str | None = None,
        prices: Mapping[Any, Any] | str | PathLike[str] | None = None,
        send_computed_cost: bool | None = None,
        redact: str | list[str] | Mapping[str, Any] | PathLike[str] | None = None,
        otlp_content: bool | None = None,
        debug: bool | None = None,
        api_key: str | None = None,
        tcc_url: str | None = None,
    ) -> Settings:
        """
        Settle every setting: explicit argument, else environment, else default.

        Args:
            to: One sink spec or several; else `PICOSTEP_TO`, comma separated. A spec is `tcc`, `stdout`,
                `jsonl:PATH`, `store:PATH`, `store` (the default store), `otlp:URL` or the `name:rest` of an
                installed sink.

            dir: Else `PICOSTEP_DIR`.

            exporter: Else `PICOSTEP_EXPORTER`, else `"process"`.

            disabled: Else `PICOSTEP_DISABLED` (`1 true yes on`, `0 false no off`), else False.

            ring_bytes: Else `PICOSTEP_RING_BYTES`, else 16 MiB.

            spool: A directory or `"off"`; else `PICOSTEP_SPOOL`, else `default_spool()`.

            spool_bytes: Else `PICOSTEP_SPOOL_BYTES`, else 1 GiB.

            spool_age: Else `PICOSTEP_SPOOL_AGE`, else 7 days.

            batch_records: Else `PICOSTEP_BATCH_RECORDS`, else 512.

            batch_bytes: Else `PICOSTEP_BATCH_BYTES`, else 1 MiB.

            exit_timeout: Else `PICOSTEP_EXIT_TIMEOUT`, else 2.0.

            misuse: Else `PICOSTEP_MISUSE`, else `"raise"`.

            prices: A mapping or the name of a file, as `picostep.prices.Overrides` describes them; else the
                file named by `PICOSTEP_PRICES`.

            send_computed_cost: Else `PICOSTEP_SEND_COMPUTED_COST`, else False.

            redact: Rules as `picostep.redaction.plain()` takes them, or the name of a TOML or JSON file with
                such a mapping; else `PICOSTEP_REDACT`, which is `secrets` or the name of a file.

            otlp_content: Else `PICOSTEP_OTLP_CONTENT`, else True.

            debug: Else `TCC_DEBUG` (`1` or `true`), else False.

            api_key: Default key of `configure()`; `TCC_API_KEY` is looked up by `destination()`.

            tcc_url: Default endpoint of `configure()`; `TCC_URL` is looked up by `destination()`.

        Raises:
            ConfigError: A setting cannot be used.
        """
        self = cls()
        self.to = _sinks(*_given(to, "to", "PICOSTEP_TO"))
        self.dir = _directory(*_given(dir, "dir", "PICOSTEP_DIR"))
        self.exporter = _choice(*_given(exporter, "exporter", "PICOSTEP_EXPORTER"), EXPORTERS)
        self.disabled = _flag(*_given(disabled, "disabled", "PICOSTEP_DISABLED"))
        ring = _integer(*_given(ring_bytes, "ring_bytes", "PICOSTEP_RING_BYTES"), 2**18, 2**30, 2**24)
        self.ring_bytes = 1 << (ring.bit_length() - 1)
        self.spool = _spool(*_given(spool, "spool", "PICOSTEP_SPOOL"))
        self.spool_bytes = _integer(
            *_given(spool_bytes, "spool_bytes", "PICOSTEP_SPOOL_BYTES"), 2**20, 2**40, 2**30
        )
        self.spool_age = _seconds(
            *_given(spool_age, "spool_age", "PICOSTEP_SPOOL_AGE"), 366 * 86400, 7 * 86400.0
        )
        self.batch_records = _integer(
            *_given(batch_records, "batch_records", "PICOSTEP_BATCH_RECORDS"), 1, 2**16, 512
        )
        self.batch_bytes = _integer(
            *_given(batch_bytes, "batch_bytes", "PICOSTEP_BATCH_BYTES"), 2**10, 2**26, 2**20
        )
        self.exit_timeout = _seconds(
            *_given(exit_timeout, "exit_timeout", "PICOSTEP_EXIT_TIMEOUT"), 3600, 2.0
        )
        self.misuse = _choice(*_given(misuse, "misuse", "PICOSTEP_MISUSE"), MISUSES)
        self.prices = _prices(*_given(prices, "prices", "PICOSTEP_PRICES"))
        self.send_computed_cost = _flag(
            *_given(send_computed_cost, "send_computed_cost", "PICOSTEP_SEND_COMPUTED_COST")
        )
        self.redact = _redact(*_given(redact, "redact", "PICOSTEP_REDACT"))
        self.otlp_content = _flag(*_given(otlp_content, "otlp_content", "PICOSTEP_OTLP_CONTENT"), True)
        if debug is None:
            debug = environ.get("TCC_DEBUG", "").lower() in ("1", "true")
        self.debug = _flag(debug, "debug")
        self.api_key = _checked_key(api_key, "api_key") if api_key else None
        self.tcc_url = _endpoint(tcc_url, "tcc_url") if tcc_url else None
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, without key and endpoint: those travel in `Destination`."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("api_key", "tcc_url")}

    def __repr__(self) -> str:
        return f"<Settings {' '.join(f'{name}={value!r}' for name, value in self.as_dict().items())}>"


def _given(argument: object, name: str, variable: str) -> tuple[Any, str]:
    """Return the argument, else the variable (None if not set), and the name of it for messages."""
    if argument is not None:
        return argument, name
    return environ.get(variable) or None, variable


def _sinks(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        # Only the variable is a list: a path given in code may hold commas.
        specs: list[object] = list(value.split(",")) if name == "PICOSTEP_TO" else [value]
    else:
        try:
            specs = list(value)  # type: ignore[call-overload]
        except TypeError:
            raise ConfigError(f"{name} must be a sink or a sequence of sinks, got {_shown(value)}") from None
    settled = dict.fromkeys(_sink(spec, name) for spec in specs)
    if not settled:
        raise ConfigError(f"{name} names no sink; give at least one, or set exporter to 'off'")
    return tuple(settled)


def _sink(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name}: a sink is str, got {_shown(value)}")
    spec = value.strip()
    scheme, colon, rest = spec.partition(":")
    if scheme in ("tcc", "stdout"):
        if colon:
            raise ConfigError(
                f"{name}: sink {scheme!r} takes nothing after its name, got {_cut(_safe_url(spec))!r}"
            )
        return scheme
    if spec == "store":
        return f"store:{default_store()}"
    if scheme in ("jsonl", "store"):
        return f"{scheme}:{_path(rest, f'{name}: path of sink {scheme!r}')}"
    if scheme == "otlp":
        return f"otlp:{otlp_endpoint(rest, f'{name}: sink otlp', OTLP_PATH)}"
    if not colon or scheme not in _installed_sinks():
        known = ", ".join(sorted({*_BUILT_IN_SINKS, *_installed_sinks()}))
        raise ConfigError(
            f"{name}: no sink {_cut(scheme)!r}; there are {known}, as in tcc,jsonl:/var/log/steps.jsonl"
        )
    return spec


def otlp_endpoint(text: str, name: str, path: str) -> str:
    """
    Check where OTLP is sent; return it whole: a URL without a path is a base, as OTLP has it.

    Args:
        name: What the URL is for, for messages.

        path: Added to a base.

    Raises:
        ConfigError: It cannot be used.
    """
    parts, _ = _split(_endpoint(text, name), name)
    if "?" in text or "#" in text:
        _bad_url(
            text, name, " without query and fragment; what is secret belongs in OTEL_EXPORTER_OTLP_HEADERS"
        )
    return text if parts.path.strip("/") else f"{text.rstrip('/')}{path}"


def _installed_sinks() -> frozenset[str]:
    """Return the names that installed distributions added; looked up only for a sink that is not ours."""
    from importlib.metadata import entry_points

    return frozenset(point.name for point in entry_points(group="picostep.sinks"))


def _path(value: object, name: str) -> str:
    from os import fspath, path

    try:
        text = fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name} must be a path, got {_shown(value)}")
    return path.abspath(path.expanduser(text))


def _directory(value: object, name: str) -> str | None:
    return None if value is None else _path(value, name)


def _spool(value: object, name: str) -> str:
    if value is None:
        return default_spool()
    return "" if value == "off" else _path(value, name)


def _prices(value: object, name: str) -> tuple[tuple[str | int, ...], ...]:
    if value is None:
        return ()
    from picostep.prices.overrides import Overrides

    try:
        if isinstance(value, (str, PathLike)):
            return Overrides.from_file(_path(value, name)).plain()
        return Overrides(value).plain()  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _redact(value: object, name: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    from picostep import redaction

    try:
        if isinstance(value, PathLike) or str(value).lower().endswith((".json", ".toml")):
            return redaction.from_file(_path(value, name))
        return redaction.plain(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _choice(value: object, name: str, allowed: tuple[str, ...]) -> str:
    """Return one of the allowed words; the first is the default."""
    if value is None:
        return allowed[0]
    if isinstance(value, str) and value in allowed:
        return value
    raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {_shown(value)}")


def _flag(value: object, name: str, default: bool = False) -> bool:
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    raise ConfigError(f"{name} must be 1, true, yes or on, or 0, false, no or off, got {_shown(value)}")


def _integer(value: object, name: str, low: int, high: int, default: int) -> int:
    if value is None:
        return default
    number = None
    if isinstance(value, str):
        text = value.strip()
        if text.isascii() and text.isdigit() and len(text) < 20:
            number = int(text)
    elif not isinstance(value, bool) and hasattr(value, "__index__"):
        number = int(value.__index__())
    if number is None or not low <= number <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, got {_shown(value)}")
    return number


def _seconds(value: object, name: str, high: int, default: float) -> float:
    if value is None:
        return default
    number = None
    if not isinstance(value, bool) and isinstance(value, (str, int, float)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = None
    if number is None or not 0 <= number <= high:  # a NaN is not in the range either
        raise ConfigError(f"{name} must be a number of seconds from 0 to {high}, got {_shown(value)}")
    return number


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."

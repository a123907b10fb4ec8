"""Where things go: the key, URLs and what they may be, the files of this user."""

from __future__ import annotations

from os import environ

from picostep.errors import ConfigError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from typing import NoReturn
    from urllib.parse import ParseResult

__all__ = [
    "OTLP_PATH",
    "checked_key",
    "cut",
    "default_spool",
    "default_store",
    "endpoint",
    "get_api_key",
    "get_url",
    "header_carries",
    "otlp_endpoint",
    "refreshed_prices",
    "safe_url",
]

PRODUCTION = "https://api.thecontext.company"
DEVELOPMENT = "https://dev.thecontext.company"
_OFFICIAL = (PRODUCTION, DEVELOPMENT)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_DEFAULT_PORTS = {"http": 80, "https": 443}
OTLP_PATH = "/v1/traces"


def get_api_key(api_key: str | None = None) -> str:
    """
    Return the API key to use: the one given, else `TCC_API_KEY`; as it is, so whoever sends it checks it.

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


def endpoint(text: object, name: str) -> str:
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
    raise ConfigError(f"{name} must be http://host… or https://host…{rule}, got {safe_url(text)!r}") from None


def safe_url(text: str) -> str:
    """Leave out of a URL what may be secret (userinfo, query, fragment), however broken the URL is."""
    scheme, slashes, rest = text.partition("://")
    if scheme.lower() not in _DEFAULT_PORTS:
        scheme, slashes, rest = "", "", text
    # A password may hold "/", "?" or "#" and break the URL, so everything up to the last "@" goes first.
    rest = rest.rpartition("@")[2]
    for mark in "?#":
        rest = rest.partition(mark)[0]
    return cut(f"{scheme}{slashes}{rest}")


def checked_key(key: str, name: str) -> str:
    """
    Refuse a key that cannot travel in a header: the one rule for keys, wherever one comes from.

    A header carries Latin-1, and no control characters; `contextcompany` sends such keys, too.

    Args:
        key: Not empty.

        name: By which it was given, for messages.

    Raises:
        ConfigError: It cannot be sent. The message never shows it.
    """
    if not isinstance(key, str):
        raise ConfigError(f"{name} must be str, not {type(key).__name__}")
    for position, char in enumerate(key):
        if char > "\xff":
            raise ConfigError(
                f"{name}: character at position {position} cannot be sent in a header (not Latin-1)"
            )
        if not header_carries(char):
            raise ConfigError(
                f"{name}: control character at position {position}, often a line end that was read too"
            )
    return key


def header_carries(char: str) -> bool:
    """Return whether a header can carry a character: it is Latin-1, and no control character."""
    return " " <= char < "\x7f" or "\xa0" <= char <= "\xff"


def otlp_endpoint(text: str, name: str, path: str) -> str:
    """
    Check where OTLP is sent; return it whole: a URL without a path is a base, as OTLP has it.

    Args:
        name: What the URL is for, for messages.

        path: Added to a base.

    Raises:
        ConfigError: It cannot be used.
    """
    parts, _ = _split(endpoint(text, name), name)
    if "?" in text or "#" in text:
        _bad_url(
            text, name, " without query and fragment; what is secret belongs in OTEL_EXPORTER_OTLP_HEADERS"
        )
    return text if parts.path.strip("/") else f"{text.rstrip('/')}{path}"


def cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."

"""
The settings of a process, from code and environment.

Nothing is read when this module is imported, and nothing from files: an explicit argument wins over the
environment, the environment over the default. A setting that cannot be used raises `ConfigError`, which
names the variable or argument and says what is allowed.
"""

from __future__ import annotations

from os import PathLike, environ

from picostep.errors import ConfigError
from picostep.settings.urls import (
    OTLP_PATH,
    checked_key,
    cut,
    default_spool,
    default_store,
    endpoint,
    otlp_endpoint,
    safe_url,
)

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = ["Settings"]

EXPORTERS = ("process", "thread", "external", "off")
MISUSES = ("raise", "log")
_BUILT_IN_SINKS = ("tcc", "jsonl", "otlp", "stdout", "store")

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


class Settings:
    """
    The settings of this process; immutable by convention, made by `Settings.resolve()`.

    Attributes:
        to: Sink specs with absolute paths; empty if neither code nor environment chose (see
            `resolve_destination()`).

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

        redact: What texts lose, as pairs of text; see `picostep.settings.redact.plain()`.

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

            redact: Rules as `picostep.settings.redact.plain()` takes them, or the name of a TOML or JSON
                file with such a mapping; else `PICOSTEP_REDACT`, which is `secrets` or the name of a file.

            otlp_content: Else `PICOSTEP_OTLP_CONTENT`, else True.

            debug: Else `TCC_DEBUG` (`1` or `true`), else False.

            api_key: Default key of `configure()`; `TCC_API_KEY` is looked up by `resolve_destination()`.

            tcc_url: Default endpoint of `configure()`; `TCC_URL` is looked up by `resolve_destination()`.

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
        self.api_key = checked_key(api_key, "api_key") if api_key else None
        self.tcc_url = endpoint(tcc_url, "tcc_url") if tcc_url else None
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
                f"{name}: sink {scheme!r} takes nothing after its name, got {cut(safe_url(spec))!r}"
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
            f"{name}: no sink {cut(scheme)!r}; there are {known}, as in tcc,jsonl:/var/log/steps.jsonl"
        )
    return spec


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
    from picostep.settings import prices

    try:
        if isinstance(value, (str, PathLike)):
            return prices.from_file(_path(value, name))
        return prices.plain(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _redact(value: object, name: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    from picostep.settings import redact

    try:
        if isinstance(value, PathLike) or str(value).lower().endswith((".json", ".toml")):
            return redact.from_file(_path(value, name))
        return redact.plain(value)
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
    return cut(repr(value))

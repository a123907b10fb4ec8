"""
The settings of a process: one row each, from which everything that deals with them is derived.

Nothing is read when this module is imported. An explicit argument wins over the environment, the environment
over the default; a file is read only where a setting names one. A setting that cannot be used raises
`ConfigError`, which names the variable or argument and says what is allowed.
"""

from __future__ import annotations

from os import PathLike, environ

from picostep.errors import ConfigError, UnknownSettingError
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
    from collections.abc import Callable, Mapping
    from typing import Any, Generic, NoReturn, TypeVar

    T = TypeVar("T")
else:
    T, Generic = None, {None: object}  # so that Generic[T] is a plain class here

__all__ = [
    "COMPRESSIONS",
    "PROTOCOLS",
    "TABLE",
    "Choice",
    "ForEach",
    "Limits",
    "Seconds",
    "Setting",
    "Settings",
    "Size",
    "Whole",
    "numbered",
]

PROTOCOLS = ("http/json", "http/protobuf")  # of OTLP
COMPRESSIONS = ("none", "gzip")

_BUILT_IN_SINKS = ("tcc", "jsonl", "otlp", "stdout", "store")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off", "")


class Setting(Generic[T]):
    """
    One row of the table.

    Its name is that of the attribute that it is of a class, and of the argument of `configure()`.

    Args:
        variable: The environment variable that is read when no argument is given; an empty one is not set.

        check: Takes what was given, and the name by which it was given. Returns the value, or raises
            ConfigError.

        default: What holds when nothing is given; or a function that finds it out.

        words: What it is and in which unit, for people.

        otherwise: What the default is, for people, where the value does not say it.

        argument: Whether code can give it; else the variable alone can.

        of_destination: Whether it goes into the `Destination` and is shown nowhere else. The variable is then
            read by `resolve_destination()`, as a run with a key or URL of its own needs none.
    """

    __slots__ = ("argument", "check", "default", "name", "of_destination", "otherwise", "variable", "words")

    def __init__(
        self,
        variable: str,
        check: Callable[[Any, str], T],
        default: T | Callable[[], T],
        words: str,
        otherwise: str = "",
        *,
        argument: bool = True,
        of_destination: bool = False,
    ) -> None:
        self.name = ""
        self.variable = variable
        self.check = check
        self.default = default
        self.words = words
        self.otherwise = otherwise
        self.argument = argument
        self.of_destination = of_destination

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:  # at run time the values are in the instance, which comes first

        def __get__(self, owner: object, kind: type | None = None) -> T: ...

    def value(self, argument: object) -> T:
        """Return the argument, else what the variable says, else the default; raises ConfigError."""
        if argument is not None:
            return self.check(argument, self.name)
        text = "" if self.of_destination else environ.get(self.variable, "")
        if text:
            return self.check(text, self.variable)
        default: Any = self.default
        found: T = default() if callable(default) else default
        return found


# ---- checks ------------------------------------------------------------------------------------------------


class Whole:
    """Checks a whole number; `low` and `high` are allowed, too."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high

    def __call__(self, value: Any, name: str) -> int:
        number = None
        if isinstance(value, str):
            text = value.strip()
            if text.isascii() and text.isdigit() and len(text) < 20:
                number = int(text)
        elif not isinstance(value, bool) and hasattr(value, "__index__"):
            number = int(value.__index__())
        if number is None or not self.low <= number <= self.high:
            raise ConfigError(
                f"{name} must be an integer from {self.low} to {self.high}, got {_shown(value)}"
            )
        return number


class Size(Whole):
    """Checks a number of bytes."""

    __slots__ = ()


class RingSize(Size):
    """Checks the size of a ring, and rounds it down to a power of two."""

    __slots__ = ()

    def __call__(self, value: Any, name: str) -> int:
        return 1 << (super().__call__(value, name).bit_length() - 1)


class Seconds:
    """Checks a number of seconds from 0 to `high`; `more`: more than 0."""

    __slots__ = ("high", "more")

    def __init__(self, high: int, *, more: bool = False) -> None:
        self.high = high
        self.more = more

    def __call__(self, value: Any, name: str) -> float:
        number = None
        if not isinstance(value, bool) and isinstance(value, (str, int, float)):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = None
        # A NaN is not in the range either.
        if number is None or not 0 <= number <= self.high or (self.more and not number):
            low = "more than 0 and at most" if self.more else "from 0 to"
            raise ConfigError(f"{name} must be a number of seconds {low} {self.high}, got {_shown(value)}")
        return number


class Choice:
    """Checks for one of some words."""

    __slots__ = ("allowed",)

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def __call__(self, value: Any, name: str) -> str:
        if isinstance(value, str) and value in self.allowed:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(self.allowed)}, got {_shown(value)}")


class ForEach(Generic[T]):
    """Checks what holds for all sinks `otlp`, or for one: `VALUE`, `2:VALUE`, or several with commas."""

    __slots__ = ("check",)

    def __init__(self, check: Callable[[Any, str], T]) -> None:
        self.check = check

    def __call__(self, value: Any, name: str) -> tuple[tuple[int, T], ...]:
        items = map(numbered, value.split(",")) if isinstance(value, str) else [(0, value)]
        return tuple({number: self.check(each, name) for number, each in items}.items())


def numbered(text: str) -> tuple[int, str]:
    """Return the number of a sink and what is given for it, of `2:…`; 0 where it is given for all."""
    number, colon, rest = text.strip().partition(":")
    if colon and number.isascii() and number.isdigit() and len(number) < 4 and int(number):
        return int(number), rest.strip()
    return 0, text.strip()


def _flag(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
    raise ConfigError(f"{name} must be 1, true, yes or on, or 0, false, no or off, got {_shown(value)}")


def _debug(value: str, name: str) -> bool:
    return value.lower() in ("1", "true")  # nothing else counts, and nothing is refused, as in the reference


def _key(value: Any, name: str) -> str | None:
    return checked_key(value, name) if value else None


def _endpoint(value: Any, name: str) -> str | None:
    return endpoint(value, name) if value else None


def _sinks(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        # Only the variable is a list: a path given in code may hold commas.
        specs: list[object] = list(value.split(",")) if name == "PICOSTEP_TO" else [value]
    else:
        try:
            specs = list(value)
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


def _otlp_headers(value: Any, name: str) -> tuple[tuple[int | str, ...], ...]:
    from picostep.settings import otel

    if not isinstance(value, str):
        raise ConfigError(f"{name} must be str, not {type(value).__name__}")
    return otel.own_headers(value, name)


def _spool(value: Any, name: str) -> str:
    return "" if value == "off" else _path(value, name)


def _prices(value: Any, name: str) -> tuple[tuple[str | int, ...], ...]:
    from picostep.settings import prices

    try:
        if isinstance(value, (str, PathLike)):
            return prices.prices_in(_path(value, name))
        return prices.prices_of(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _redact(value: Any, name: str) -> tuple[tuple[str, str], ...]:
    from picostep.settings import redact

    try:
        if isinstance(value, PathLike) or str(value).lower().endswith((".json", ".toml")):
            return redact.rules_in(_path(value, name))
        return redact.rules_of(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _shown(value: object) -> str:
    return cut(repr(value))


# ---- the table ---------------------------------------------------------------------------------------------


class Limits:
    """
    What the exporter is told besides the destination; immutable.

    Args:
        values: By the names of the rows.
    """

    spool = Setting(
        "PICOSTEP_SPOOL",
        _spool,
        default_spool,
        'Directory in which the exporter keeps what a sink cannot take now, or `"off"`: it then waits in the '
        "rings",
        "`$XDG_STATE_HOME/picostep/spool`",
    )
    spool_bytes = Setting(
        "PICOSTEP_SPOOL_BYTES",
        Size(2**20, 2**40),
        2**30,
        "What the spool of one sink may hold; what finds no room waits in the rings",
    )
    spool_age = Setting(
        "PICOSTEP_SPOOL_AGE",
        Seconds(366 * 86400, more=True),
        7 * 86400.0,
        "Age at which spooled records are dropped and counted, in seconds",
    )
    batch_records = Setting("PICOSTEP_BATCH_RECORDS", Whole(1, 2**16), 512, "Most records in a batch")
    batch_bytes = Setting(
        "PICOSTEP_BATCH_BYTES", Size(2**10, 2**26), 2**20, "Bytes at which a batch is closed"
    )
    debug = Setting(
        "TCC_DEBUG",
        _debug,
        False,
        "Log more, through `logging` and in `exporter.log`: `1` or `true`",
        argument=False,
    )

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update((row.name, values[row.name]) for row in _rows(type(self)))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name; not the key and the endpoint, which travel in `Destination`."""
        return {row.name: vars(self)[row.name] for row in _rows(type(self)) if not row.of_destination}

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def __repr__(self) -> str:
        values = " ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"<{type(self).__name__} {values}>"


class Settings(Limits):
    """The settings of this process, made by `Settings.resolve()`; immutable."""

    to: Setting[tuple[str, ...]] = Setting(
        "PICOSTEP_TO",
        _sinks,
        (),
        'Where records go, one sink or several: `"tcc"`, `"stdout"`, `"jsonl:PATH"`, `"store:PATH"`, '
        '`"store"`, `"otlp:URL"`, or one that is installed; commas between them in the variable',
        "The Context Company when there is a key, the local store when there is none",
    )
    api_key = Setting(
        "TCC_API_KEY",
        _key,
        None,
        "Key of The Context Company, in Latin-1 without control characters; `dev_…` is a key of its "
        "development service",
        "none",
        of_destination=True,
    )
    tcc_url = Setting(
        "TCC_URL",
        _endpoint,
        None,
        "Whole endpoint for runs, steps and tool calls, on any host",
        "the service",
        of_destination=True,
    )
    dir = Setting(
        "PICOSTEP_DIR",
        _path,
        None,
        "Directory in which `picostep-<uid>` is made, mode 0700, for the rings",
        "`/dev/shm` on Linux, the directory for temporary files elsewhere",
    )
    exporter = Setting(
        "PICOSTEP_EXPORTER",
        Choice("process", "thread", "external", "off"),
        "process",
        'Who exports: a `"process"` that the host starts, a `"thread"` of the host, `"external"`: '
        '`picostep export` runs beside the host, or `"off"`: nobody',
    )
    disabled = Setting("PICOSTEP_DISABLED", _flag, False, "Check calls and record nothing")
    ring_bytes = Setting(
        "PICOSTEP_RING_BYTES",
        RingSize(2**18, 2**30),
        2**24,
        "Size of a ring, rounded down to a power of two; a process has one for each destination, and it is "
        "smaller when an eighth of what is free is less",
    )
    exit_timeout = Setting(
        "PICOSTEP_EXIT_TIMEOUT", Seconds(3600), 2.0, "Longest wait at the exit of the process, in seconds"
    )
    misuse = Setting(
        "PICOSTEP_MISUSE",
        Choice("raise", "log"),
        "raise",
        'What a wrong call does: `"raise"`, or `"log"`: it is counted, logged when it is the first of its '
        "kind, and otherwise ignored",
    )
    prices: Setting[tuple[tuple[str | int, ...], ...]] = Setting(
        "PICOSTEP_PRICES",
        _prices,
        (),
        "Prices of one's own, which win over the price table: the name of a TOML or JSON file; in code also "
        "a mapping from a model or `(provider, model)`. `picostep.prices.Overrides` describes both",
        "none",
    )
    send_computed_cost = Setting(
        "PICOSTEP_SEND_COMPUTED_COST",
        _flag,
        False,
        "Also send The Context Company the costs that picostep computed, where none was set; the service "
        "prices steps itself",
    )
    redact: Setting[tuple[tuple[str, str], ...]] = Setting(
        "PICOSTEP_REDACT",
        _redact,
        (),
        "What all texts lose (prompts, responses, tool definitions, arguments, results, metadata, feedback, "
        'status messages) before anything else is done with them: `"secrets"`, which finds credentials of '
        "known shape, or the name of a TOML or JSON file with a mapping of `secrets`, `patterns` and "
        '`function` (`"package.module:name"`, called in the exporter as `function(text: str) -> str`); in '
        "code also such a mapping, or a list of regular expressions, whose matches become `[REDACTED]`. A "
        "text for which this fails is withheld",
        "status messages alone lose secrets, as they do whatever this says",
    )
    otlp_content = Setting(
        "PICOSTEP_OTLP_CONTENT",
        _flag,
        True,
        "Whether sink `otlp` sends prompts, responses, tool definitions, arguments, results, metadata and "
        "session ids",
    )
    otlp_headers: Setting[tuple[tuple[int | str, ...], ...]] = Setting(
        "PICOSTEP_OTLP_HEADERS",
        _otlp_headers,
        (),
        "Headers of sink `otlp`, `name=value` with percent-encoded values, or `none`; commas between them. "
        "As in the four that follow, `2:` before one makes it hold for the second of these sinks alone. "
        "Secret like a key",
        "what OpenTelemetry's own variables say",
        of_destination=True,
    )
    otlp_protocol: Setting[tuple[tuple[int, str], ...]] = Setting(
        "PICOSTEP_OTLP_PROTOCOL",
        ForEach(Choice(*PROTOCOLS)),
        (),
        "What sink `otlp` sends: `http/json`, or `http/protobuf`, which needs `picostep[otlp]`",
        "likewise",
    )
    otlp_timeout: Setting[tuple[tuple[int, float], ...]] = Setting(
        "PICOSTEP_OTLP_TIMEOUT",
        ForEach(Seconds(300, more=True)),
        (),
        "Seconds that sink `otlp` waits for a connection, and then for the whole answer: more than 0, at "
        "most 300",
        "likewise",
    )
    otlp_certificate: Setting[tuple[tuple[int, str], ...]] = Setting(
        "PICOSTEP_OTLP_CERTIFICATE",
        ForEach(_path),
        (),
        "File of the authorities that sink `otlp` trusts, PEM",
        "likewise",
    )
    otlp_compression: Setting[tuple[tuple[int, str], ...]] = Setting(
        "PICOSTEP_OTLP_COMPRESSION",
        ForEach(Choice(*COMPRESSIONS)),
        (),
        "How sink `otlp` compresses what it sends: `none` or `gzip`",
        "likewise",
    )

    @classmethod
    def resolve(cls, **arguments: object) -> Settings:
        """
        Settle every setting: explicit argument, else environment, else default.

        Args:
            arguments: As of `configure()`; None counts as not given.

        Raises:
            UnknownSettingError: There is no setting of that name.

            ConfigError: A setting cannot be used.
        """
        if not arguments.keys() <= _ARGUMENTS:
            raise UnknownSettingError(_unknown(next(name for name in arguments if name not in _ARGUMENTS)))
        return cls({row.name: row.value(arguments.get(row.name)) for row in TABLE})

    @property
    def limits(self) -> Limits:
        """What of them the exporter is told."""
        return Limits(vars(self))


def _rows(kind: type) -> list[Setting[Any]]:
    """Return the rows of a class, then those that it inherits."""
    return [row for each in kind.__mro__ for row in vars(each).values() if isinstance(row, Setting)]


TABLE = tuple(_rows(Settings))
_ARGUMENTS = {row.name for row in TABLE if row.argument}


def _unknown(name: str) -> str:
    from difflib import get_close_matches

    bare = name.lower().removeprefix("picostep_").removeprefix("tcc_")
    near = get_close_matches(bare, sorted(_ARGUMENTS), 1)
    hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(sorted(_ARGUMENTS))}"
    return f"{cut(name)}: there is no such setting; {hint}"

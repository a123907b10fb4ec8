"""
The exceptions of picostep.

Each one is also the built-in exception that a program would expect at that place, so code that catches
`ValueError`, `TypeError` or `RuntimeError` needs no change, and `except PicostepError` catches everything
that picostep raises.
"""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "ConfigError",
    "EndedError",
    "MissingFieldError",
    "PicostepError",
    "UnknownSettingError",
]


class PicostepError(Exception):
    """
    Base class of every exception that picostep raises on purpose.

    After a correct call nothing is raised because of export: a backend that is down, slow or refusing shows
    in `stats()`, never as an exception.
    """


class ArgumentError(PicostepError, ValueError):
    """
    Raised when an argument has the right type and a value that cannot be recorded.

    Examples: a negative token count, a cost that is not finite, an empty `run_id`, a time without an
    offset. The message names the method, the argument and what was given. The object stays as it was.
    """


class ArgumentTypeError(PicostepError, TypeError):
    """
    Raised when an argument has a type that cannot be recorded.

    Examples: bytes as a prompt, a float or bool as a token count. The message names the method, the
    argument and the type that was given. The object stays as it was.
    """


class EndedError(PicostepError, RuntimeError):
    """
    Raised by every setter, `end()` and `error()` of a run, step or tool call that has already ended.

    An ended object was handed over and cannot be changed. Its properties stay readable.
    """


class MissingFieldError(PicostepError, ValueError):
    """
    Raised by `end()` when a required field was never set.

    A run needs a prompt, a step a prompt and a response, a tool call a name. The object stays open: set the
    field and call `end()` again, or call `error()`, which needs none of them.
    """


class ConfigError(PicostepError, ValueError):
    """
    Raised by `configure()`, or at the first recording call, when a setting cannot be used.

    The message names the environment variable or the argument, what was given and what is allowed. It never
    holds the API key, nor the user name or password of a URL.
    """


class UnknownSettingError(ConfigError, TypeError):
    """
    Raised by `configure()` for an argument that is no setting. The message names the nearest setting.

    Also a `TypeError`, as for any other function that gets an argument it does not know.
    """

"""What the setting `redact` may be: checked here, in the host; applied by `picostep.exporter.redact`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from picostep.errors import ConfigError
from picostep.settings.files import read

__all__ = ["PRESET", "rules_in", "rules_of"]

PRESET = "secrets"
_KEYS = ("secrets", "patterns", "function")

Plain = tuple[tuple[str, str], ...]


def rules_of(value: object) -> Plain:
    """
    Check rules of redaction.

    Args:
        value: `"secrets"`, the preset; a list of regular expressions (of the module `re`, as text); or a
            mapping with the keys `secrets` (whether to use the preset), `patterns` (such a list) and
            `function` (`"package.module:name"`).

    Returns:
        What is to be done, in order, as pairs of text: kind (`secrets`, `pattern`, `function`) and argument.

    Raises:
        ConfigError: Something cannot be used; the message says what.
    """
    if value == PRESET:
        value = {"secrets": True}
    elif isinstance(value, (list, tuple)):
        value = {"patterns": value}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"must be {PRESET!r}, a list of regular expressions, a mapping, or the name of a .toml or .json "
            f"file, not {repr(value)[:80] if isinstance(value, str) else type(value).__name__}"
        )
    for key in value:
        if key not in _KEYS:
            raise ConfigError(f"{key!r} is not known; there are {', '.join(_KEYS)}")
    rules: list[tuple[str, str]] = []
    secrets = value.get("secrets", False)
    if not isinstance(secrets, bool):
        raise ConfigError(f"secrets must be true or false, not {type(secrets).__name__}")
    if secrets:
        rules.append(("secrets", ""))
    patterns = value.get("patterns", ())
    if not isinstance(patterns, (list, tuple)):
        raise ConfigError(f"patterns must be a list, not {type(patterns).__name__}")
    rules += [("pattern", _pattern(pattern, number)) for number, pattern in enumerate(patterns)]
    if "function" in value:
        rules.append(("function", _function(value["function"])))
    if not rules:
        raise ConfigError("names nothing to be redacted; leave it out to redact status messages only")
    return tuple(rules)


def rules_in(path: str) -> Plain:
    """Return what the mapping in a TOML or JSON file asks for; raises ConfigError, which names the file."""
    try:
        return rules_of(read(path, "redact"))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(path) else f"{path}: {text}") from None


def _pattern(value: Any, number: int) -> str:
    name = f"patterns[{number}]"
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be str, not {type(value).__name__}")
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    try:
        matches_nothing = re.compile(value).search("") is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{name} is no regular expression: {error}: {shown!r}") from None
    if matches_nothing:
        raise ConfigError(f"{name} matches the empty text, which is everywhere: {shown!r}")
    return value


def _function(value: Any) -> str:
    if isinstance(value, str):
        module, colon, name = value.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if colon and module != "__main__" and all(part.isidentifier() for part in parts):
            return value
    # The exporter imports it: what is defined in the program itself is not there.
    raise ConfigError("function must be text such as 'package.module:name', of a module that can be imported")

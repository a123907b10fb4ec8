"""TOML and JSON files that settings name."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from picostep.errors import ConfigError

__all__ = ["read"]


def read(path: str, what: str) -> Mapping[str, Any]:
    """
    Parse a TOML file (Python 3.11 and later) or a JSON file, its numbers as Decimal.

    Args:
        path: Its name says which of the two it is.

        what: What it holds, which is also the argument of `configure()` that could hold it.

    Raises:
        ConfigError: It cannot be read or is not what its name says; the message names it.
    """
    import sys

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        if path.lower().endswith(".json"):
            import json

            def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
                return _unique(pairs, what)

            content = json.loads(text, parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=unique)
        elif not path.lower().endswith(".toml"):
            raise ConfigError(f"{what}: what is read is a .toml or a .json file")
        elif sys.version_info < (3, 11):
            raise ConfigError(f"a TOML file needs Python 3.11 or later: use JSON, or configure({what}={{…}})")
        else:
            import tomllib

            content = tomllib.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: {what} must be a mapping, not {type(content).__name__}")
    return content


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    """Refuse a key that is there twice: which of the two was meant?"""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"{what}: {key!r} is there twice")
        result[key] = value
    return result

"""The checks of the setting `redact`, by the name that `contextcompany` has for its module of redaction."""

from picostep.settings.redact import PRESET, from_file, plain

__all__ = ["PRESET", "from_file", "plain"]

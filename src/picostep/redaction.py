"""The checks of the setting `redact`, by the name that `contextcompany` has for its module of redaction."""

from picostep.settings.redact import PRESET, rules_in, rules_of

__all__ = ["PRESET", "rules_in", "rules_of"]

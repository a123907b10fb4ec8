"""Redaction of status messages: secrets that error texts are known to carry."""

from __future__ import annotations

import re

__all__ = ["redact"]

# A secret ends at white space, a quote or closing punctuation; one bracket after it goes too ("[key=abc]").
_TOKEN = r"""[^\s"',;})\]]+\]?"""
_BASE64 = r"[A-Za-z0-9+/=]{12,}\]?"
_HEADER = r"\bAuthorization\s*[:=]\s*"
_NAMES = "|".join(
    (
        r"api[_-]?key",
        r"(?:access|refresh|id)[_-]?token",
        r"(?:client[_-]?)?secret",
        "password",
        "passwd",
        "pwd",
        "authorization",
        "bearer",
    )
)

# Applied in this order, each to the result of the one before: a header must be seen whole before its scheme
# alone, and both before the assignments. Time is linear: where a pattern fails or ends, no later match can
# begin inside what it has looked at, but for a bounded number.
_RULES = [
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        (rf"{_HEADER}Bearer\s+{_TOKEN}", "Authorization=[REDACTED]", re.IGNORECASE),
        (rf"{_HEADER}Basic\s+{_BASE64}", "Authorization=[REDACTED]", re.IGNORECASE),
        (rf"\bBearer\s+{_TOKEN}", "Bearer [REDACTED]", re.IGNORECASE),
        (rf"\bBasic\s+{_BASE64}", "Basic [REDACTED]", re.IGNORECASE),
        (rf"\b({_NAMES})\b\s*[:=]\s*{_TOKEN}", r"\1=[REDACTED]", re.IGNORECASE),
        # The scheme becomes https whatever it was: what the ingest's own SDK sends.
        (r"https?://([^/\s:@]+):[^@\s/]+@", r"https://\1:[REDACTED]@", re.IGNORECASE),
        # Keys of known shape, wherever they stand.
        (r"\bsk-[A-Za-z0-9_-]{16,}\b", "[REDACTED]", 0),
        (r"\bxox[abprs]-[A-Za-z0-9-]{16,}\b", "[REDACTED]", 0),
        (r"\bgh[pousr]_[A-Za-z0-9_]{16,}\b", "[REDACTED]", 0),
        (r"\bservice_[A-Za-z0-9_-]{16,}\b", "[REDACTED]", 0),
    )
]


def redact(text: str) -> str:
    """Return the text with `[REDACTED]` for auth headers, assigned keys, URL passwords and known keys."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text

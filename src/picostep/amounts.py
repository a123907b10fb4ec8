"""Amounts of money as whole numbers, without a context's rounding."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from picostep.errors import ArgumentError, ArgumentTypeError

__all__ = ["in_pico", "pico_rounded", "usd"]

_PICO = 12  # decimals of a dollar
_MAX_DIGITS = 15  # before the point: more is a mistake, and keeps exponents small


def pico_rounded(amount: int | float | Decimal | str) -> int:
    """Convert US dollars to pico-dollars, rounded half to even; see `picostep.prices.user_cost_pico()`."""
    if isinstance(amount, float):
        amount = repr(float(amount))
    digits, exponent = _parts(amount, "the cost")
    if exponent >= -_PICO:
        return digits * _ten(exponent + _PICO)
    surplus = -_PICO - exponent
    if surplus > len(str(digits)):
        return 0
    quotient, rest = divmod(digits, _ten(surplus))
    half = 5 * _ten(surplus - 1)
    return quotient + (rest > half or (rest == half and quotient % 2 == 1))


def in_pico(amount: int | Decimal | str, per: int, where: str) -> int:
    """
    Convert a price to pico-dollars a unit.

    Args:
        amount: US dollars for `per` units.

        per: A power of ten.

        where: What the price is for, for messages.

    Raises:
        ArgumentTypeError: It is a float (which is rarely what it looks like), a bool, or no number at all.

        ArgumentError: It is not finite, negative, too large, or has more than 12 decimals a unit.
    """
    if isinstance(amount, float):
        raise ArgumentTypeError(f"{where} must be text, Decimal or int, not float: write {repr(amount)!r}")
    digits, exponent = _parts(amount, where)
    exponent += _PICO - (len(str(per)) - 1)
    while exponent < 0 and digits % 10 == 0 and digits:
        digits //= 10
        exponent += 1
    if digits == 0:
        return 0
    if exponent < 0:
        unit = "a request" if per == 1 else "a token"
        raise ArgumentError(
            f"{where} = {amount} has more than 12 decimals of a dollar for {unit}; round it yourself"
        )
    return digits * _ten(exponent)


def usd(pico: int) -> str:
    """Write pico-dollars as US dollars, exactly and without an exponent: 2500000000 is "0.0025"."""
    whole, rest = divmod(abs(pico), 10**_PICO)
    decimals = f"{rest:012d}".rstrip("0")
    return f"{'-' if pico < 0 else ''}{whole}{'.' if decimals else ''}{decimals}"


def _ten(power: int) -> int:
    return int("1" + "0" * power)


def _parts(amount: int | Decimal | str, where: str) -> tuple[int, int]:
    """Return the digits of a number >= 0 as an int, and its power of ten."""
    if isinstance(amount, bool) or not isinstance(amount, (int, Decimal, str)):
        raise ArgumentTypeError(f"{where} must be a number, not {type(amount).__name__}")
    if isinstance(amount, int) and abs(amount) >= 10**_MAX_DIGITS:
        raise ArgumentError(f"{where} must be less than 1e15 dollars")
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise ArgumentError(f"{where} must be a number, got {str(amount)[:40]!r}") from None
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ArgumentError(f"{where} must be finite, got {value}")
    if not any(digits):
        return 0, 0
    if sign:
        raise ArgumentError(f"{where} must not be negative, got {value}")
    if value.adjusted() >= _MAX_DIGITS:
        raise ArgumentError(f"{where} must be less than 1e15 dollars, got {value}")
    if len(digits) > 4000:
        raise ArgumentError(f"{where} has {len(digits)} digits, at most 4000 are read")
    return int("".join(map(str, digits))), exponent

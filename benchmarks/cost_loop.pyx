# cython: language_level=3
"""Loops in C over what `end()` does with a price. Compiled on demand by test_cost.py; not in the package."""
from libc.stdint cimport int64_t

from picostep._cost cimport Priced, PriceTable, Tokens, price


def arithmetic(PriceTable table, int index, int64_t start_ns, int n):
    """Price n steps of one model; return the sum."""
    cdef Tokens tokens = Tokens(1000, 200, 30, 10, 400, 50)
    cdef Priced found
    cdef int64_t total = 0
    cdef int i
    for i in range(n):
        tokens.uncached = 1000 + (i & 1023)
        price(&table.prices, index, start_ns, 0, &tokens, &found)
        total += found.pico
    return total


def look_up(PriceTable table, list models, str provider, int n):
    """Look n names up in the cache; return the sum of what was found."""
    cdef int64_t total = 0
    cdef Py_ssize_t count = len(models)
    cdef int i
    for i in range(n):
        total += table.cached(models[i % count], provider)
    return total


def both(PriceTable table, list models, str provider, int64_t start_ns, int n):
    """Look n names up and price a step of each; return the sum of the costs."""
    cdef Tokens tokens = Tokens(1000, 200, 30, 10, 400, 50)
    cdef Priced found
    cdef int64_t total = 0
    cdef Py_ssize_t count = len(models)
    cdef int i
    for i in range(n):
        price(&table.prices, table.cached(models[i % count], provider), start_ns, 0, &tokens, &found)
        total += found.pico
    return total

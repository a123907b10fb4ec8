# W3C Trace Context, levels 1 and 2: which text is a `traceparent`, https://www.w3.org/TR/trace-context-2/.
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef enum:
    TRACEPARENT_SIZE = 55
    KNOWN_FLAGS = 3         # sampled, random


cdef inline bint is_blank(uint8_t char) noexcept nogil:
    return char == c' ' or char == c'\t'


cdef inline bint is_hex(const uint8_t *text, int n) noexcept nogil:
    """Whether n characters are hex digits in lower case."""
    cdef int i
    for i in range(n):
        if not (c'0' <= text[i] <= c'9' or c'a' <= text[i] <= c'f'):
            return False
    return True


cdef inline bint is_id(const uint8_t *text, int n) noexcept nogil:
    """Whether n characters are the hex digits of an id: not only zeros."""
    cdef int i, zeros = 0
    for i in range(n):
        zeros += text[i] == c'0'
    return zeros < n and is_hex(text, n)


cdef inline bint parse_traceparent(const uint8_t *text, Py_ssize_t n, char *to) noexcept nogil:
    """Writes what a header says, as version 00 has it, TRACEPARENT_SIZE characters. False: it is not valid.

    Of a later version that is as much as version 00 knows."""
    cdef uint8_t flags
    while n and is_blank(text[n - 1]):
        n -= 1
    while n and is_blank(text[0]):
        text += 1
        n -= 1
    if n < TRACEPARENT_SIZE or text[2] != c'-' or text[35] != c'-' or text[52] != c'-':
        return False
    if not (is_hex(text, 2) and is_id(text + 3, 32) and is_id(text + 36, 16) and is_hex(text + 53, 2)):
        return False
    if text[0] == c'f' and text[1] == c'f':
        return False
    if n > TRACEPARENT_SIZE and (text[TRACEPARENT_SIZE] != c'-' or (text[0] == c'0' and text[1] == c'0')):
        return False
    memcpy(to, text, TRACEPARENT_SIZE)
    flags = text[54] - (c'0' if text[54] <= c'9' else c'a' - 10)
    to[0] = to[1] = to[53] = c'0'
    to[54] = <char>(c'0' + (flags & KNOWN_FLAGS))
    return True

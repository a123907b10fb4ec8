# Random ids: RFC 9562 version 4 UUIDs from a buffer of kernel randomness.
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from "_sys.h" nogil:
    int fill_random "ps_random"(void *to, size_t n) noexcept

cdef enum:
    ID_BYTES = 16
    ID_POOL = 4096

cdef struct IdPool:
    # ID_POOL: empty. A forked child starts with an empty pool, or both would hand out the same ids.
    uint32_t used
    uint8_t bytes[ID_POOL]


cdef inline int next_id(IdPool *pool, uint8_t *to) noexcept nogil:
    """Writes 16 bytes; -1 when the kernel gives no randomness."""
    if pool.used >= ID_POOL:
        if fill_random(pool.bytes, ID_POOL) != 0:
            return -1
        pool.used = 0
    memcpy(to, pool.bytes + pool.used, ID_BYTES)
    pool.used += ID_BYTES
    to[6] = (to[6] & 0x0F) | 0x40
    to[8] = (to[8] & 0x3F) | 0x80
    return 0


cdef inline void format_id(const uint8_t *id, char *to) noexcept nogil:
    """Writes the 36 characters of a UUID."""
    cdef const char *digits = "0123456789abcdef"
    cdef int i, at = 0
    for i in range(ID_BYTES):
        if i == 4 or i == 6 or i == 8 or i == 10:
            to[at] = c'-'
            at += 1
        to[at] = digits[id[i] >> 4]
        to[at + 1] = digits[id[i] & 15]
        at += 2

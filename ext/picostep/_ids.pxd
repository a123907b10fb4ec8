# Random ids: RFC 9562 version 4 UUIDs. The kernel gives a key for each 256 of them, of which they are made
# here, a block at a time, as by the generators of Go and Rust: it would take 13 us to give all 4 KB.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "_sys.h" nogil:
    int fill_random "ps_random"(void *to, size_t n) noexcept

cdef extern from "chacha.h" nogil:
    void chacha8 "ps_chacha8"(const uint32_t *key, uint64_t counter, uint32_t *out) noexcept

cdef enum:
    ID_BYTES = 16
    ID_BLOCK = 64
    BLOCKS_OF_A_KEY = 64

cdef struct IdPool:
    uint32_t used           # bytes of the block
    uint32_t blocks_left    # of the key
    uint32_t key[8]
    uint32_t block[16]


cdef inline void forget_ids(IdPool *pool) noexcept nogil:
    """Has the next id made of a new key: a forked child with its parent's would hand out the same ids."""
    pool.used = ID_BLOCK
    pool.blocks_left = 0


cdef inline int next_id(IdPool *pool, uint8_t *to) noexcept nogil:
    """Writes 16 bytes; -1 when the kernel gives no randomness."""
    if pool.used >= ID_BLOCK:
        if pool.blocks_left == 0:
            if fill_random(pool.key, sizeof(pool.key)) != 0:
                return -1
            pool.blocks_left = BLOCKS_OF_A_KEY
        pool.blocks_left -= 1
        chacha8(pool.key, pool.blocks_left, pool.block)
        pool.used = 0
    memcpy(to, <uint8_t *>pool.block + pool.used, ID_BYTES)
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

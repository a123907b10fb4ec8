# cython: language_level=3, freethreading_compatible=True
"""The ring: a bounded file in shared memory that one process appends records to and an exporter drains.

`append()` is the only thing a host does when a step ends. It copies the record and its texts as CPython holds
them and publishes them by one store (`Frame.commit`). The kernel keeps the pages when the process is killed.
The exporter reads the file with pread(), so a file that was damaged or truncated can give it wrong bytes but
no fault, and checks every length.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from picostep._clock cimport wall_ns
from picostep._context cimport TRACEPARENT_SIZE, parse_traceparent
from picostep._ids cimport fill_random, forget_ids, format_id

import os


cdef extern from "_sys.h" nogil:
    ctypedef int ps_thread
    bint SHARED "PS_SHARED"
    bint FREE_THREADED "PS_FREE_THREADED"
    uint64_t load "ps_load"(const uint64_t *) noexcept
    void store "ps_store"(uint64_t *, uint64_t) noexcept
    void fence "ps_fence"() noexcept
    void raise_to "ps_raise_to"(uint64_t *, uint64_t) noexcept
    int lowest_bit "ps_lowest_bit"(uint32_t) noexcept
    int bit_length "ps_bit_length"(uint32_t) noexcept
    void lock "ps_lock"(ps_mutex *) noexcept
    void unlock "ps_unlock"(ps_mutex *) noexcept
    void *map_memory "ps_map"(int fd, size_t n) noexcept
    void unmap_memory "ps_unmap"(void *, size_t n) noexcept
    int reserve "ps_reserve"(int fd, uint64_t start, uint64_t n) noexcept
    void touch "ps_touch"(uint8_t *, size_t n) noexcept
    int start_thread "ps_start_thread"(ps_thread *, void *(*)(void *) noexcept nogil, void *) noexcept
    void join_thread "ps_join_thread"(ps_thread) noexcept
    int at_fork "ps_at_fork"(void (*)() noexcept nogil) noexcept
    int lock_file "ps_lock_file"(int fd) noexcept
    void close_fd "ps_close"(int fd) noexcept
    int64_t file_size "ps_file_size"(int fd) noexcept
    size_t strnlen(const char *, size_t) noexcept
    int64_t read_at "ps_read_at"(int fd, void *to, uint64_t n, uint64_t at) noexcept
    int write_at "ps_write_at"(int fd, const void *data, uint64_t n, uint64_t at) noexcept

cdef extern from "Python.h" nogil:
    # By pointer: append() handles borrowed references only and must not touch their counts.
    Py_ssize_t text_length "PyUnicode_GET_LENGTH"(PyObject *) noexcept
    int text_width "PyUnicode_KIND"(PyObject *) noexcept
    void *text_data "PyUnicode_DATA"(PyObject *) noexcept

cdef extern from "Python.h":
    object text_from "PyUnicode_FromKindAndData"(int kind, const void *data, Py_ssize_t n)

cdef enum:
    HEADER_SIZE = 4096
    FIRST_RESERVE = 256 * 1024      # space made on the caller's thread: 54 µs here, against 5 ms for 16 MiB
    # At a time in the background: whoever maps memory meanwhile waits for one of these.
    NEXT_RESERVE = 256 * 1024
    MIN_CAPACITY = 64 * 1024
    MAX_CAPACITY = 1024 * 1024 * 1024
    READ_CHUNK = 256 * 1024
    FAILED_AT_ONCE = 64             # open runs of a dead host: about 1 ms, as a thread of a host may do it
    NEXT_SLOTS = 32                 # slots that get their space at a time, on the caller's thread: 0.02 ms
    VERSION = 3
    OLDEST = 2                      # that is read
    BYTE_ORDER = 0x01020304
    MAX_FDS = 256

cdef uint64_t MAX_POSITION = <uint64_t>1 << 62      # sums of positions and sizes do not overflow
cdef uint64_t IMAGES = MAX_POSITION + 1             # commit words of images: beyond those of all frames
cdef uint64_t MAGIC = 0x5045545350434950     # "PICPSTEP" as bytes of a little-endian word

cdef Host the_host
memset(&the_host, 0, sizeof(the_host))
forget_ids(&the_host.ids)
host = &the_host

# Texts that are shed when the ring fills up: everything else is small and counts.
cdef uint32_t[5] BODIES
BODIES[0] = 0
BODIES[KIND_STEP] = 1 << STEP_PROMPT | 1 << STEP_RESPONSE | 1 << STEP_TOOL_DEFINITIONS
BODIES[KIND_RUN] = (
    1 << RUN_USER_PROMPT | 1 << RUN_RESPONSE | 1 << RUN_SYSTEM_PROMPT | 1 << RUN_FULL_INPUT
    | 1 << RUN_FULL_OUTPUT)
BODIES[KIND_TOOL_CALL] = 1 << TOOL_CALL_ARGS | 1 << TOOL_CALL_RESULT
BODIES[KIND_FEEDBACK] = 0

ENDED_BY_DEATH = "the process ended before the run did"
"""Status message of a run whose process is dead."""


# ---- what both sides need

cdef inline uint64_t record_size(const Record *record) noexcept nogil:
    """Bytes of the fixed part and of the counts after it."""
    return sizeof(Record) + 8 * <uint64_t>bit_length(record.has_counts >> COMMON_COUNTS)


cdef inline uint64_t padded(uint64_t n) noexcept nogil:
    return (n + 7) & ~<uint64_t>7


cdef void read_outcome(Header *header, Outcome *outcome) noexcept nogil:
    """Copies the outcome that counts. A header that never comes to rest is damaged: any copy will do."""
    cdef uint64_t turn
    cdef int _tries
    for _tries in range(1000):
        turn = load(&header.turn)
        outcome[0] = header.outcome[turn & 1]
        if load(&header.turn) == turn:
            return


cdef inline size_t last_error_size(Header *header) noexcept nogil:
    return LAST_ERROR_2 if header.version == 2 else LAST_ERROR


cdef str read_last_error(Header *header):
    """The text that the exporter has left; never parts of two, as note() may be writing one right now."""
    cdef char text[LAST_ERROR]
    cdef char again[LAST_ERROR]
    cdef size_t size = last_error_size(header)
    cdef int _tries
    for _tries in range(1000):
        memcpy(text, header.last_error, size)
        load(&header.turn)      # nothing of the second copy is read before the first one is made
        memcpy(again, header.last_error, size)
        if memcmp(text, again, size) == 0:
            break
    return text[:strnlen(text, size)].decode("ascii", "replace")


cdef dict read_counters(Header *header):
    cdef Outcome outcome
    cdef uint64_t accepted, full
    read_outcome(header, &outcome)
    # After the outcome: nothing is released that was not accepted.
    accepted, full = load(&header.accepted), load(&header.ring_full)
    return {
        "recorded": accepted + full,
        "accepted": accepted,
        "shed": header.shed,
        "shortened": header.shortened,
        "withheld": outcome.withheld,
        "delivered": outcome.delivered,
        "in_ring": max(0, <int64_t>(accepted - outcome.released)),
        "in_spool": outcome.in_spool,
        "unsynced": outcome.unsynced,
        "dropped": {
            "ring_full": full, "encode_error": outcome.encode_error, "rejected": outcome.rejected,
            "corrupt": outcome.corrupt, "expired": outcome.expired,
        },
        "torn": outcome.torn,
        "untracked_runs": header.untracked,
        "last_error": read_last_error(header),
    }


include "_ring_host.pxi"
include "_ring_reader.pxi"

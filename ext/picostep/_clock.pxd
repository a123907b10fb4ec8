# Time of records: monotonic stamps, turned into wall time by one anchor per process.
#
# The anchor moves only when the wall clock was set (or the machine slept): then by more than 50 ms. So
# records of one process keep their order, durations are never negative, and a process that lives for months
# follows its clock.
from libc.stdint cimport int64_t

cdef extern from "_sys.h" nogil:
    int64_t monotonic_ns "ps_monotonic_ns"() noexcept
    int64_t wall_ns "ps_wall_ns"() noexcept

cdef struct Clock:
    int64_t offset      # wall = monotonic + offset
    int64_t checked     # monotonic time of the last comparison

cdef enum:
    CLOCK_CHECK_NS = 1000000000
    CLOCK_STEP_NS = 50000000


cdef inline int64_t clock_offset(Clock *clock, int64_t now) noexcept nogil:
    """Offset from monotonic to wall time; compares the two clocks once a second."""
    cdef int64_t offset
    if now - clock.checked >= CLOCK_CHECK_NS or clock.checked == 0:
        offset = wall_ns() - now
        if (clock.checked == 0 or offset - clock.offset > CLOCK_STEP_NS
                or clock.offset - offset > CLOCK_STEP_NS):
            clock.offset = offset
        clock.checked = now
    return clock.offset

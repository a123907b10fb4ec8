# cython: language_level=3
"""The floor of a recorded step: the same chain of calls that checks and keeps nothing, two clocks, one copy.

Compiled on demand by baselines.py; not part of the package.
"""
cimport cython
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy, memset

cdef extern from "<time.h>" nogil:
    """
    static inline int64_t floor_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int64_t floor_now() noexcept

cdef extern from "Python.h" nogil:
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *)
    int PyUnicode_KIND(PyObject *)
    void *PyUnicode_DATA(PyObject *)

cdef enum:
    SIZE = 16 * 1024 * 1024

cdef uint8_t *memory = <uint8_t *>malloc(SIZE)
memset(memory, 1, SIZE)
cdef size_t at = 0


cdef inline size_t copy(object text, size_t to) noexcept:
    cdef PyObject *p = <PyObject *>text
    cdef size_t n = PyUnicode_GET_LENGTH(p) * PyUnicode_KIND(p)
    memcpy(memory + to, PyUnicode_DATA(p), n)
    return to + n


@cython.final
@cython.freelist(64)
cdef class FloorStep:
    cdef str a, b, c
    cdef int64_t start

    def prompt(self, text):
        self.a = text
        return self

    def response(self, text):
        self.b = text
        return self

    def model(self, requested=None, used=None):
        return self

    def tokens(self, prompt_uncached=None, prompt_cached=None, completion=None):
        return self

    def finish_reason(self, reason):
        return self

    def tool_definitions(self, definitions):
        self.c = definitions
        return self

    def end(self):
        global at
        cdef size_t to = at
        if to + 4 * (len(self.a) + len(self.b) + len(self.c)) > SIZE:
            to = 0
        at = copy(self.c, copy(self.b, copy(self.a, to)))
        return floor_now() - self.start


@cython.final
cdef class FloorRun:
    def step(self, step_id=None):
        cdef FloorStep made = FloorStep.__new__(FloorStep)
        made.start = floor_now()
        return made


def last(size_t n) -> bytes:
    """The last n bytes copied, to check that they were."""
    return memory[at - n:at]

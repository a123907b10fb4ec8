# cython: language_level=3, freethreading_compatible=True
"""The thread that keeps an exporter process alive for a ring directory; see keeper.h."""
cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc

cdef extern from "keeper.h" nogil:
    ctypedef struct keeper:
        pass
    keeper *keeper_new(const char *lock_path, char **argv, char **env, const void *config, size_t config_size,
                       void (*failed)(void *) noexcept nogil, void *arg) noexcept
    int keeper_start(keeper *) noexcept
    void keeper_stop(keeper *) noexcept
    long keeper_child(keeper *) noexcept
    unsigned long keeper_starts(keeper *) noexcept

cdef dict alive = {}    # keepers have a thread each that may call back at any time, so they are never freed


cdef void failed(void *arg) noexcept with gil:
    cdef Keeper self = <Keeper>arg
    self.failed = True
    try:
        self.when_failed()
    except Exception:
        import logging
        logging.getLogger("picostep").exception("cannot export")


cdef char **as_list(list texts) except NULL:
    cdef char **out = <char **>PyMem_Malloc((len(texts) + 1) * sizeof(char *))
    cdef Py_ssize_t i
    if out == NULL:
        raise MemoryError
    try:
        for i in range(len(texts)):
            out[i] = <bytes?>texts[i]
    except TypeError:
        PyMem_Free(out)
        raise
    out[len(texts)] = NULL
    return out


@cython.final
cdef class Keeper:
    """What keeps one exporter running while `start()` was called last, not `stop()`.

    Args:
        lock_path: the directory's lock file.
        argv, env: of the exporter; bytes without NUL.
        config: what it reads from its standard input.
        when_failed: called once, from another thread, when no process can be started here.

    Attributes:
        failed: whether no process can be started here.

    Raises:
        OSError: this platform or process can have none.
    """
    cdef keeper *keeper
    cdef object when_failed
    cdef readonly bint failed

    def __cinit__(self, bytes lock_path not None, list argv not None, list env not None,
                  bytes config not None, when_failed):
        cdef char **c_argv = NULL
        cdef char **c_env = NULL
        cdef const char *data = config
        try:
            c_argv = as_list(argv)
            c_env = as_list(env)
            self.keeper = keeper_new(lock_path, c_argv, c_env, data, len(config), failed, <void *>self)
        finally:
            PyMem_Free(c_argv)
            PyMem_Free(c_env)
        if self.keeper == NULL:
            raise OSError("no exporter process can be kept here")
        self.when_failed = when_failed
        alive[id(self)] = self

    def start(self) -> bool:
        """Want an exporter; return False when there can be no thread."""
        return not self.failed and keeper_start(self.keeper) == 0

    def stop(self) -> None:
        """Want none any more; one that runs ends by itself."""
        keeper_stop(self.keeper)

    @property
    def child(self) -> int:
        """Pid of the exporter that this process started; 0 for none, or if another process started it."""
        return keeper_child(self.keeper)

    @property
    def starts(self) -> int:
        """How many exporters this process has started."""
        return keeper_starts(self.keeper)

/* What picostep asks of the operating system and the C compiler, in one place.
 *
 * POSIX gets shared memory, kernel locks and background threads. Windows gets clocks, random bytes and private
 * memory: there the ring lives in the process and the exporter is a thread. */
#ifndef PICOSTEP_SYS_H
#define PICOSTEP_SYS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "Python.h"

/* ---- atomics: one writer per word, so plain acquire/release loads and stores are enough ---- */
#if defined(_MSC_VER)
#include <intrin.h>
static inline uint64_t ps_load(const uint64_t *p) { uint64_t v = *(const volatile uint64_t *)p; _ReadWriteBarrier(); return v; }
static inline void ps_fence(void) { _ReadWriteBarrier(); }
static inline void ps_store(uint64_t *p, uint64_t v) { _ReadWriteBarrier(); *(volatile uint64_t *)p = v; }
static inline void ps_raise_to(uint64_t *p, uint64_t v) {
    uint64_t old = ps_load(p);
    while (old < v) {
        uint64_t seen = (uint64_t)_InterlockedCompareExchange64((volatile __int64 *)p, (__int64)v, (__int64)old);
        if (seen == old) return;
        old = seen;
    }
}
#else
static inline uint64_t ps_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void ps_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
/* What is stored before it is seen before what is stored after it. */
static inline void ps_fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
/* Two threads may reserve the same pages; the larger result stands. */
static inline void ps_raise_to(uint64_t *p, uint64_t v) {
    uint64_t old = ps_load(p);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {}
}
#endif

/* ---- texts: before CPython 3.12 one may still be in its legacy form ---- */
#if PY_VERSION_HEX < 0x030C0000
static inline int ps_text_ready(PyObject *text) { return PyUnicode_READY(text); }
#else
static inline int ps_text_ready(PyObject *text) { (void)text; return 0; }
#endif

/* ---- numbers ---- */
#define PS_MAX_COUNT INT64_C(9007199254740992)


#if defined(_MSC_VER)
static inline int ps_lowest_bit(uint32_t v) { unsigned long i; _BitScanForward(&i, v); return (int)i; }
static inline int ps_bit_length(uint32_t v) { unsigned long i; return _BitScanReverse(&i, v) ? (int)i + 1 : 0; }
#else
static inline int ps_lowest_bit(uint32_t v) { return __builtin_ctz(v); }
static inline int ps_bit_length(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }
#endif

/* ---- the lock of a ring: the GIL itself where there is one ---- */
#ifdef Py_GIL_DISABLED
#define PS_FREE_THREADED 1
typedef PyMutex ps_mutex;
static inline void ps_lock(ps_mutex *m) { PyMutex_Lock(m); }
static inline void ps_unlock(ps_mutex *m) { PyMutex_Unlock(m); }
#else
#define PS_FREE_THREADED 0
typedef char ps_mutex;
static inline void ps_lock(ps_mutex *m) { (void)m; }
static inline void ps_unlock(ps_mutex *m) { (void)m; }
#endif

/* ---- time ---- */
#ifdef _WIN32
#include <windows.h>
#include <bcrypt.h>
static inline int64_t ps_monotonic_ns(void) {
    LARGE_INTEGER c, f;
    QueryPerformanceCounter(&c);
    QueryPerformanceFrequency(&f);
    return (int64_t)(c.QuadPart / f.QuadPart) * 1000000000 + (int64_t)(c.QuadPart % f.QuadPart) * 1000000000 / f.QuadPart;
}
static inline int64_t ps_wall_ns(void) {
    FILETIME ft;
    ULARGE_INTEGER t;
    GetSystemTimePreciseAsFileTime(&ft);
    t.LowPart = ft.dwLowDateTime;
    t.HighPart = ft.dwHighDateTime;
    return ((int64_t)t.QuadPart - 116444736000000000LL) * 100;
}
static inline int ps_random(void *to, size_t n) {
    return BCryptGenRandom(NULL, (PUCHAR)to, (ULONG)n, BCRYPT_USE_SYSTEM_PREFERRED_RNG) == 0 ? 0 : -1;
}
#else
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__) || defined(__APPLE__)
#include <sys/random.h>
#endif
static inline int64_t ps_clock_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static inline int64_t ps_monotonic_ns(void) { return ps_clock_ns(CLOCK_MONOTONIC); }
static inline int64_t ps_wall_ns(void) { return ps_clock_ns(CLOCK_REALTIME); }
static inline int ps_random(void *to, size_t n) {
    uint8_t *p = (uint8_t *)to;
    while (n) {
        size_t k = n < 256 ? n : 256; /* up to 256 bytes are never interrupted nor short */
        if (getentropy(p, k)) return -1;
        p += k;
        n -= k;
    }
    return 0;
}
#endif

/* ---- memory ---- */
#ifdef _WIN32
#define PS_SHARED 0
typedef int ps_thread;
static inline int ps_start_thread(ps_thread *t, void *(*run)(void *), void *arg) { (void)t; (void)run; (void)arg; return -1; }
static inline void ps_join_thread(ps_thread t) { (void)t; }
static inline int ps_at_fork(void (*child)(void)) { (void)child; return 0; }
static inline int ps_lock_file(int fd) { (void)fd; return -1; }
static inline void ps_close(int fd) { (void)fd; }
static inline int64_t ps_file_size(int fd) { (void)fd; return -1; }
static inline int64_t ps_read_at(int fd, void *to, uint64_t n, uint64_t at) { (void)fd; (void)to; (void)n; (void)at; return -1; }
static inline int ps_write_at(int fd, const void *from, uint64_t n, uint64_t at) { (void)fd; (void)from; (void)n; (void)at; return -1; }
static inline int ps_reserve(int fd, uint64_t from, uint64_t n) { (void)fd; (void)from; (void)n; return 0; }
static inline void ps_touch(uint8_t *p, size_t n) { (void)p; (void)n; }
static inline void *ps_map(int fd, size_t n) {
    (void)fd;
    return VirtualAlloc(NULL, n, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
}
static inline void ps_unmap(void *p, size_t n) { (void)n; VirtualFree(p, 0, MEM_RELEASE); }
#else
#define PS_SHARED 1
#define PS_SPARE (UINT64_C(64) << 20)
typedef pthread_t ps_thread;
/* A thread of ours must not run the host's signal handlers. */
static inline int ps_start_thread(ps_thread *t, void *(*run)(void *), void *arg) {
    sigset_t all, before;
    int err;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(t, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err ? -1 : 0;
}
static inline void ps_join_thread(ps_thread t) { pthread_join(t, NULL); }
/* Runs in a child of fork(), also of one that C code forks: only async-signal-safe calls in there. */
static inline int ps_at_fork(void (*child)(void)) { return pthread_atfork(NULL, NULL, child); }
/* 0: ours now; else somebody else's. */
static inline int ps_lock_file(int fd) { return flock(fd, LOCK_EX | LOCK_NB); }
static inline void ps_close(int fd) { close(fd); }
static inline int64_t ps_file_size(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}
static inline int64_t ps_read_at(int fd, void *to, uint64_t n, uint64_t at) {
    uint64_t done = 0;
    while (done < n) {
        ssize_t k = pread(fd, (char *)to + done, n - done, (off_t)(at + done));
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) break;
        done += (uint64_t)k;
    }
    return (int64_t)done;
}
/* 0, or -1 when not all could be written. */
static inline int ps_write_at(int fd, const void *from, uint64_t n, uint64_t at) {
    const char *p = (const char *)from;
    while (n) {
        ssize_t k = pwrite(fd, p, n, (off_t)at);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        p += k;
        at += (uint64_t)k;
        n -= (uint64_t)k;
    }
    return 0;
}
/* fd >= 0: that file, shared; fd < 0: private memory. NULL when it cannot be had. */
static inline void *ps_map(int fd, size_t n) {
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}
static inline void ps_unmap(void *p, size_t n) { munmap(p, n); }

/* Whether n bytes can be taken without filling the file system up: others in this machine live on /dev/shm, too. */
static inline int ps_leaves_room(int fd, uint64_t n) {
    struct statvfs fs;
    uint64_t spare;
    if (fstatvfs(fd, &fs)) return 1;
    spare = (uint64_t)fs.f_blocks * fs.f_frsize / 8;
    if (spare > PS_SPARE) spare = PS_SPARE;
    return (uint64_t)fs.f_bavail * fs.f_frsize >= n + spare;
}

/* Gives a part of the file its space, so that no store into it can meet a full file system (SIGBUS). 0 or an errno. */
static inline int ps_reserve(int fd, uint64_t from, uint64_t n) {
    if (!ps_leaves_room(fd, n)) return ENOSPC;
#if defined(__linux__)
    int err;
    do { err = posix_fallocate(fd, (off_t)from, (off_t)n); } while (err == EINTR);
    return err;
#else
    static const char zeros[65536];
    while (n) {
        ssize_t k = pwrite(fd, zeros, n < sizeof zeros ? (size_t)n : sizeof zeros, (off_t)from);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return k < 0 ? errno : ENOSPC;
        from += (uint64_t)k;
        n -= (uint64_t)k;
    }
    return 0;
#endif
}

/* Puts pages into this process's page table; harmless on pages in use, as a writer may have overtaken us. */
static inline void ps_touch(uint8_t *p, size_t n) {
#ifdef MADV_POPULATE_WRITE
    if (madvise(p, n, MADV_POPULATE_WRITE) == 0) return;
#endif
    for (size_t i = 0; i < n; i += 4096) __atomic_fetch_or(p + i, 0, __ATOMIC_RELAXED);
}
#endif

#endif

# cython: language_level=3, freethreading_compatible=True
"""The ring: a bounded file in shared memory that one process appends records to and an exporter drains.

`append()` is the only thing a host does when a step ends. It copies the record and its texts as CPython holds
them and publishes them by one store (`Frame.commit`). The kernel keeps the pages when the process is killed.
The exporter reads the file with pread(), so a file that was damaged or truncated can give it wrong bytes but
no fault, and checks every length.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

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
    VERSION = 2
    BYTE_ORDER = 0x01020304
    MAX_FDS = 256

cdef uint64_t MAX_POSITION = <uint64_t>1 << 62      # sums of positions and sizes do not overflow
cdef uint64_t IMAGES = MAX_POSITION + 1             # commit words of images: beyond those of all frames
cdef uint64_t MIN_FRAME = sizeof(Frame) + sizeof(Record)
cdef uint64_t MAGIC = 0x5045545350434950     # "PICPSTEP" as bytes of a little-endian word

cdef Host the_host
memset(&the_host, 0, sizeof(the_host))
forget_ids(&the_host.ids)
host = &the_host

# Texts that are shed when the ring fills up: everything else is small and counts.
cdef uint16_t[5] BODIES
BODIES[0] = 0
BODIES[KIND_STEP] = 1 << STEP_PROMPT | 1 << STEP_RESPONSE | 1 << STEP_TOOLS
BODIES[KIND_RUN] = 1 << RUN_PROMPT | 1 << RUN_RESPONSE | 1 << RUN_SYSTEM | 1 << RUN_INPUT | 1 << RUN_OUTPUT
BODIES[KIND_TOOL_CALL] = 1 << TOOL_ARGS | 1 << TOOL_RESULT
BODIES[KIND_FEEDBACK] = 0

ENDED_BY_DEATH = "the process ended before the run did"
"""Status message of a run whose process is dead."""


# ---- append: the host's hot path ---------------------------------------------------------------------------

cdef inline uint64_t padded(uint64_t n) noexcept nogil:
    return (n + 7) & ~<uint64_t>7


cdef inline uint64_t kept(PyObject *text, uint64_t cap) noexcept nogil:
    """Bytes to store of a text: all, or as many whole characters as fit into cap."""
    cdef uint64_t width = text_width(text), size = <uint64_t>text_length(text) * width
    return size if size <= cap else cap // width * width


cdef inline uint64_t measure(PyObject **texts, uint32_t present, uint64_t cap, int *count) noexcept nogil:
    """Size of the frame for these texts, each cut to cap bytes."""
    cdef uint64_t size = sizeof(Frame) + sizeof(Record)
    count[0] = 0
    while present:
        size += sizeof(Text) + padded(kept(texts[lowest_bit(present)], cap))
        count[0] += 1
        present &= present - 1
    return size


cdef uint64_t fair_cap(PyObject **texts, uint32_t present, uint64_t room) noexcept nogil:
    """The largest cap, near enough, under which the frame fits into room.

    Small texts stay whole, the large share the rest."""
    cdef uint64_t low = 0, high = room, middle
    cdef int count
    while low + 64 < high:
        middle = (low + high) // 2
        if measure(texts, present, middle, &count) <= room:
            low = middle
        else:
            high = middle
    return low


cdef bint grow(Ring *ring, uint64_t end) noexcept nogil:
    """Makes sure that the first `end` bytes of data have their space; False when the file system has no more.

    Only the first records of a process can overtake the thread that reserves: their caller then reserves what
    it needs."""
    cdef uint64_t ready = load(&ring.header.ready)
    if end <= ready:
        return True
    end = (end + FIRST_RESERVE - 1) // FIRST_RESERVE * FIRST_RESERVE
    if end > ring.limit:
        end = ring.limit
    if reserve(ring.fd, HEADER_SIZE + ready, end - ready) != 0:
        # No lap is over yet, so the ring can still become smaller.
        ring.limit = load(&ring.header.ready)
        store(&ring.header.limit, ring.limit)
        return False
    raise_to(&ring.header.ready, end)
    return True


cdef inline uint64_t fitted(Ring *ring, PyObject **texts, uint32_t present, uint64_t *cap, int *count,
                            uint16_t *flags) noexcept nogil:
    """Size of the frame, its texts cut where it would be more than a quarter of the ring.

    Its space is there if it ends before the end of the data."""
    cdef uint64_t size
    while True:
        cap[0] = ~<uint64_t>0
        flags[0] &= <uint16_t>~FRAME_SHORTENED
        size = measure(texts, present, cap[0], count)
        if size > ring.limit // 4:
            cap[0] = fair_cap(texts, present, ring.limit // 4)
            size = measure(texts, present, cap[0], count)
            flags[0] |= FRAME_SHORTENED
        if (ring.offset + size <= load(&ring.header.ready) or ring.offset + size > ring.limit
                or grow(ring, ring.offset + size)):
            return size
        # The ring became smaller; now the frame ends beyond it.


cdef inline uint64_t tail_of(Header *header) noexcept nogil:
    """The end of the last released frame. Never of an outcome that is still being written."""
    cdef uint64_t turn, tail
    while True:
        turn = load(&header.turn)
        tail = load(&header.outcome[turn & 1].tail)
        if load(&header.turn) == turn:
            return tail


cdef inline bint room_for(Ring *ring, uint64_t size, bint whole) noexcept nogil:
    """Whether a frame fits when the ring may be filled to three quarters, or whole.

    Moves to offset 0 when the rest of the data is too short."""
    cdef uint64_t rest = ring.limit - ring.offset, total = size
    cdef uint64_t part = ring.limit if whole else ring.limit - ring.limit // 4
    if size > rest:
        total += rest
    if ring.head - ring.tail + total > part:
        ring.tail = tail_of(ring.header)
        if ring.head - ring.tail + total > part:
            return False
    if size > rest:
        if not grow(ring, ring.limit):
            return False        # the next try sees the smaller limit
        if rest:
            store(&(<Frame *>(ring.data + ring.offset)).commit, ~(ring.nonce + ring.head))
        ring.head += rest
        ring.offset = 0
        store(&ring.header.head, ring.head)
    return True


cdef inline void write_frame(Frame *frame, uint64_t size, uint16_t flags, int count, uint64_t seq,
                             Record *record, PyObject **texts, uint32_t present,
                             uint64_t cap) noexcept nogil:
    """Writes all of a frame but its commit word. Size and count are those that measure() gives."""
    cdef Text *entry = <Text *>(<uint8_t *>(frame + 1) + sizeof(Record))
    cdef uint8_t *at = <uint8_t *>(entry + count)
    cdef PyObject *text
    cdef uint64_t n
    cdef int slot
    frame.size = <uint32_t>size
    frame.kind = record.kind
    frame.texts = <uint8_t>count
    frame.flags = flags
    frame.seq = seq
    memcpy(frame + 1, record, sizeof(Record))
    while present:
        slot = lowest_bit(present)
        present &= present - 1
        text = texts[slot]
        n = kept(text, cap)
        entry.slot = <uint8_t>slot
        entry.width = <uint8_t>text_width(text)
        entry.json = (record.json >> slot) & 1
        entry._pad = 0
        entry.size = <uint32_t>n
        entry.chars = text_length(text)
        memcpy(at, text_data(text), n)
        at += padded(n)
        entry += 1


cdef void count_unrecorded() noexcept nogil:
    """Counts a record that is lost as there is no ring for it."""
    lock(&host.lock)
    host.unrecorded += 1
    unlock(&host.lock)


cdef int append(Ring *ring, Record *record, PyObject **texts) noexcept:
    """Copies one record into the ring. 0, or -1 when the ring is full: counted, never an exception."""
    cdef uint32_t present = record.present
    cdef uint16_t flags = 0
    cdef uint64_t cap, size
    cdef Header *header
    cdef Frame *frame
    cdef int count

    if record.flags & RUN_UUID:
        present &= ~<uint32_t>(1 << RUN_ID)
    if record.flags & OWN_UUID:
        present &= ~<uint32_t>(1 << OWN_ID)

    lock(&ring.lock)
    header = ring.header
    if header == NULL:          # another thread closed it, which only happens without the GIL
        unlock(&ring.lock)
        count_unrecorded()
        return -1
    size = fitted(ring, texts, present, &cap, &count, &flags)
    if not room_for(ring, size, False):
        if present & BODIES[record.kind]:
            present &= ~<uint32_t>BODIES[record.kind]
            size = fitted(ring, texts, present, &cap, &count, &flags)
            flags |= FRAME_SHED
        if not room_for(ring, size, True):
            store(&header.ring_full, header.ring_full + 1)
            unlock(&ring.lock)
            return -1

    frame = <Frame *>(ring.data + ring.offset)
    write_frame(frame, size, flags, count, ring.seq, record, texts, present, cap)
    if flags:
        header.shed += flags & FRAME_SHED != 0
        header.shortened += flags & FRAME_SHORTENED != 0
    ring.seq += 1
    # Before the commit: an exporter never sees more records than were accepted.
    store(&header.accepted, ring.seq)
    store(&frame.commit, ring.nonce + ring.head)
    ring.head += size
    ring.offset += size
    store(&header.head, ring.head)
    unlock(&ring.lock)
    return 0


# ---- the table of open runs --------------------------------------------------------------------------------

cdef inline Frame *image_of(Ring *ring, uint32_t slot, int which) noexcept nogil:
    return <Frame *>(ring.table + <uint64_t>slot * SLOT_SIZE + which * IMAGE_SIZE)


cdef inline uint64_t image_word(uint64_t nonce, uint32_t slot, int which) noexcept nogil:
    return nonce + IMAGES + 2 * <uint64_t>slot + which


cdef uint64_t image_cap(PyObject **texts, uint32_t present) noexcept nogil:
    """What texts are cut to so that an image holds them; 0 when an id would be cut, which must not be."""
    cdef uint32_t ids = present & (1 << RUN_ID | 1 << RUN_SESSION | 1 << TRACEPARENT)
    cdef uint64_t cap = ~<uint64_t>0
    cdef int count
    if measure(texts, present, cap, &count) > IMAGE_SIZE:
        cap = fair_cap(texts, present, IMAGE_SIZE)
    while ids:
        if kept(texts[lowest_bit(ids)], cap) != kept(texts[lowest_bit(ids)], ~<uint64_t>0):
            return 0
        ids &= ids - 1
    return cap


cdef bint write_image(Ring *ring, uint32_t slot, Record *record, PyObject **texts) noexcept nogil:
    """Writes the image of a slot that is not in use, then gives up the other: one is whole at any moment.

    False, and nothing written, when the ids alone are too long."""
    cdef uint32_t present = record.present
    cdef uint16_t flags = 0
    cdef uint64_t cap, size
    cdef int which = image_of(ring, slot, 0).commit == image_word(ring.nonce, slot, 0), count
    cdef Frame *made = image_of(ring, slot, which)
    cdef Frame *old = image_of(ring, slot, 1 - which)
    if record.flags & RUN_UUID:
        present &= ~<uint32_t>(1 << RUN_ID)
    cap = image_cap(texts, present)
    if cap == 0:
        present &= ~<uint32_t>BODIES[KIND_RUN]
        flags |= FRAME_SHED
        cap = image_cap(texts, present)
        if cap == 0:
            return False
    size = measure(texts, present, cap, &count)
    if cap != ~<uint64_t>0:
        flags |= FRAME_SHORTENED
    write_frame(made, size, flags, count, old.seq + 1, record, texts, present, cap)
    store(&made.commit, image_word(ring.nonce, slot, which))
    store(&old.commit, 0)
    fence()     # nothing of the next image is written before this one is the only one
    return True


cdef bint grow_table(Ring *ring) noexcept nogil:
    """Gives more slots their space, so that no store meets a full file system; False when there is none."""
    cdef uint32_t more = min(ring.slots - ring.slots_ready, <uint32_t>NEXT_SLOTS), slot
    cdef uint64_t at = HEADER_SIZE + ring.header.capacity + <uint64_t>ring.slots_ready * SLOT_SIZE
    if more == 0 or reserve(ring.fd, at, <uint64_t>more * SLOT_SIZE) != 0:
        ring.slots = ring.slots_ready
        return False
    for slot in range(ring.slots_ready, ring.slots_ready + more):
        ring.slots_free[slot // 32] |= <uint32_t>1 << slot % 32
    ring.slots_ready += more
    return True


cdef uint32_t track(Ring *ring, Record *record, PyObject **texts) noexcept:
    """Enters a run into the table, as it would be recorded if it ended now; the ring's lock is held.

    Returns its slot, counted from 1; 0 when there is none for it: counted, never an exception."""
    cdef uint32_t slot = 0, word
    if ring.header == NULL:     # another thread closed it
        return 0
    # The lowest slot that is free: those that were in use are in the cache, and few of them need space.
    while ring.slots_from * 32 < ring.slots_ready and not ring.slots_free[ring.slots_from]:
        ring.slots_from += 1
    if ring.slots_from * 32 < ring.slots_ready or grow_table(ring):
        word = ring.slots_free[ring.slots_from]
        slot = ring.slots_from * 32 + lowest_bit(word)
        # Before the image: a reader looks no further than this.
        if slot >= ring.header.slots:
            store(&ring.header.slots, slot + 1)
        if write_image(ring, slot, record, texts):
            ring.slots_free[ring.slots_from] = word & (word - 1)
            return slot + 1
    store(&ring.header.untracked, ring.header.untracked + 1)
    return 0


cdef void track_again(Ring *ring, uint32_t slot, Record *record, PyObject **texts) noexcept:
    """Says anew what is known of a run; what does not fit leaves the slot as it was. The ring's lock is held."""
    if ring.header != NULL:
        write_image(ring, slot - 1, record, texts)


cdef void untrack(Ring *ring, uint32_t slot) noexcept:
    """Frees the slot of a run that needs none any more."""
    slot -= 1
    lock(&ring.lock)
    if ring.header != NULL:
        store(&image_of(ring, slot, 0).commit, 0)
        store(&image_of(ring, slot, 1).commit, 0)
        ring.slots_free[slot // 32] |= <uint32_t>1 << slot % 32
        if slot // 32 < ring.slots_from:
            ring.slots_from = slot // 32
    unlock(&ring.lock)


cdef void close_table(Ring *ring) noexcept nogil:
    """Has no run reported that is open now; the ring's lock is held."""
    ring.slots = ring.slots_ready = 0
    ring.slots_from = 0
    store(&ring.header.slots, 0)


# ---- fork: the child leaves the parent's rings alone -------------------------------------------------------

cdef int[MAX_FDS] child_closes      # descriptors whose locks the child must not keep alive
cdef int child_closes_n = 0


cdef void after_fork_in_child() noexcept nogil:
    global child_closes_n
    cdef Ring *ring = the_host.all
    cdef int i
    while ring != NULL:
        if ring.header != NULL:
            unmap_memory(ring.header, ring.map_size)
            ring.header = NULL
            if ring.fd >= 0:
                close_fd(ring.fd)
        memset(&ring.lock, 0, sizeof(ring.lock))
        ring = ring.next
    for i in range(child_closes_n):
        close_fd(child_closes[i])
    child_closes_n = 0
    memset(the_host.ring, 0, sizeof(the_host.ring))
    memset(&the_host.lock, 0, sizeof(the_host.lock))
    the_host.all = NULL
    forget_ids(&the_host.ids)
    the_host.unrecorded = 0
    the_host.forks += 1

at_fork(after_fork_in_child)


def forks() -> int:
    """Return how many forks lie between the process that loaded picostep and this one."""
    return the_host.forks


def unrecorded() -> int:
    """Return how many records of this process were lost because it could have no ring at all."""
    return the_host.unrecorded


def close_in_child(int fd) -> None:
    """Have forked children close a descriptor, so that a kernel lock on it stays with this process."""
    global child_closes_n
    if child_closes_n == MAX_FDS:
        raise OSError("too many descriptors registered")
    child_closes[child_closes_n] = fd
    child_closes_n += 1


def keep_in_child(int fd) -> None:
    """Take `close_in_child()` back, before the descriptor is closed here."""
    global child_closes_n
    cdef int i
    for i in range(child_closes_n):
        if child_closes[i] == fd:
            child_closes_n -= 1
            child_closes[i] = child_closes[child_closes_n]
            return


# ---- the host's ring as an object --------------------------------------------------------------------------

cdef void *reserve_rest(void *arg) noexcept nogil:
    """Background thread: gives the whole ring its space and its pages, so that no caller pays for them."""
    cdef HostRingState *state = <HostRingState *>arg
    cdef Ring *ring = &state.ring
    cdef uint64_t at = load(&ring.header.ready), n
    touch(ring.data, at)
    while at < load(&ring.header.limit) and not load(&state.stop):
        n = load(&ring.header.limit) - at
        if n > NEXT_RESERVE:
            n = NEXT_RESERVE
        if reserve(ring.fd, HEADER_SIZE + at, n) != 0:
            break               # append() finds out for itself, and makes the ring smaller
        touch(ring.data + at, n)
        at += n
        raise_to(&ring.header.ready, at)
    return NULL


cdef struct HostRingState:
    Ring ring
    ps_thread thread
    bint threaded
    uint64_t stop


rings: dict[int, HostRing] = {}
"""This process's rings by destination; install() and close() keep it in step with the core's own table."""


@cython.final
cdef class HostRing:
    """This process's end of a ring.

    Args:
        fd: an empty file, locked by the caller; the ring closes it. -1: private memory that dies with the
            process.
        capacity: bytes of data, 64 KiB to 1 GiB.

    Attributes:
        destination: number of the destination that this is the ring of; -1 before `install()`.

    Raises:
        OSError: the file system or memory has no room for the first 256 KiB.
    """
    cdef HostRingState *state
    cdef readonly int destination

    def __cinit__(self, int fd, uint64_t capacity):
        cdef Header *header
        cdef Ring *ring
        cdef uint64_t nonce = 0, first, size
        cdef uint32_t slots
        cdef int err
        if not MIN_CAPACITY <= capacity <= MAX_CAPACITY:
            raise ValueError(f"a ring has {MIN_CAPACITY} to {MAX_CAPACITY} bytes, not {capacity}")
        capacity = capacity & ~<uint64_t>4095
        first = min(capacity, <uint64_t>FIRST_RESERVE) if fd >= 0 else capacity
        slots = min(capacity // 8 // SLOT_SIZE, <uint64_t>MAX_SLOTS) if fd >= 0 else 0
        size = HEADER_SIZE + capacity + <uint64_t>slots * SLOT_SIZE
        self.destination = -1
        if fill_random(&nonce, sizeof(nonce)) != 0:
            raise OSError("the kernel gives no random bytes")
        if fd >= 0:
            os.ftruncate(fd, size)
            err = reserve(fd, 0, HEADER_SIZE + first)
            if err != 0:
                raise OSError(err, os.strerror(err))
        header = <Header *>map_memory(fd, size)
        if header == NULL:
            raise MemoryError(f"no memory for a ring of {capacity} bytes")
        self.state = <HostRingState *>PyMem_RawMalloc(sizeof(HostRingState))
        if self.state == NULL:
            unmap_memory(header, size)
            raise MemoryError
        memset(self.state, 0, sizeof(HostRingState))
        header.magic = MAGIC
        header.version = VERSION
        header.byte_order = BYTE_ORDER
        header.capacity = header.limit = capacity
        header.nonce = nonce
        header.created_ns = wall_ns()
        header.pid = os.getpid()
        header.ready = first
        ring = &self.state.ring
        ring.header = header
        ring.data = <uint8_t *>header + HEADER_SIZE
        ring.limit = capacity
        ring.nonce = nonce
        ring.table = ring.data + capacity
        ring.slots = slots
        ring.map_size = size
        ring.fd = fd

    def install(self, int destination) -> bool:
        """Make this the ring of a destination; False when that has one already."""
        cdef Ring *ring = &self.state.ring
        if not 0 <= destination < MAX_DESTINATIONS:
            raise ValueError(f"destination {destination} is out of range")
        lock(&host.lock)
        if host.ring[destination] != NULL:
            unlock(&host.lock)
            return False
        self.destination = destination
        host.rings += 1
        ring.number = host.rings
        ring.next = host.all
        host.all = ring
        host.ring[destination] = ring
        unlock(&host.lock)
        rings[destination] = self
        return True

    def reserve(self) -> None:
        """Start to give the ring its space and its pages, in the background; nothing if it is closed."""
        cdef Ring *ring = &self.state.ring
        lock(&ring.lock)
        if ring.fd >= 0 and ring.header != NULL and not self.state.threaded and not self.state.stop:
            self.state.threaded = start_thread(&self.state.thread, reserve_rest, self.state) == 0
        unlock(&ring.lock)

    def abandon_runs(self) -> None:
        """Have nothing reported of the runs that are open, nor of later ones, when this process ends."""
        cdef Ring *ring = &self.state.ring
        lock(&ring.lock)
        if ring.header != NULL:
            close_table(ring)
        unlock(&ring.lock)

    def close(self) -> dict:
        """End this ring: the next record of its destination opens another. Exporters take what is in it.

        Returns:
            Its last counters(); empty when it was closed before, or another thread is just closing it.
        """
        cdef Ring *ring
        cdef Ring **link = &host.all
        cdef Header *header
        cdef dict counters
        cdef bint closing
        if self.state == NULL:
            return {}
        ring = &self.state.ring
        # One thread alone gets past this: while it waits below, the ring is still there for the thread that
        # reserves, and no other may begin to reserve.
        lock(&ring.lock)
        closing = ring.header == NULL or self.state.stop
        if not closing:
            store(&self.state.stop, 1)
        unlock(&ring.lock)
        if closing:
            return {}
        if self.state.threaded:
            with nogil:
                join_thread(self.state.thread)
        lock(&host.lock)
        if self.destination >= 0 and host.ring[self.destination] == ring:
            host.ring[self.destination] = NULL
        while link[0] != NULL and link[0] != ring:
            link = &link[0].next
        if link[0] == ring:
            link[0] = ring.next
        unlock(&host.lock)
        if rings.get(self.destination) is self:
            del rings[self.destination]
        lock(&ring.lock)
        close_table(ring)               # its runs go on, if at all, in the next ring
        header = ring.header
        ring.header = NULL              # nothing is appended from here on
        unlock(&ring.lock)
        counters = read_counters(header)
        unmap_memory(header, ring.map_size)
        if ring.fd >= 0:
            close_fd(ring.fd)
        return counters

    def __dealloc__(self):
        # Rings live as long as the process: their memory is given back by close() or by the end of the
        # process. Without the GIL another thread may have taken the pointer from the table just before the
        # ring was closed, and look at its lock after: this much is kept.
        if self.state != NULL and self.state.ring.header == NULL and not FREE_THREADED:
            PyMem_RawFree(self.state)

    @property
    def open(self) -> bool:
        """False after `close()`, and in a forked child."""
        return self.state.ring.header != NULL

    @property
    def private(self) -> bool:
        """Whether the ring dies with the process."""
        return self.state.ring.fd < 0

    @property
    def head(self) -> int:
        """End of the newest record, in bytes since the ring was made."""
        return self.state.ring.head

    @property
    def tail(self) -> int:
        """Everything before this position is out of the ring: delivered, spooled, or counted as dropped."""
        return tail_of(self.state.ring.header) if self.state.ring.header != NULL else self.state.ring.head

    @property
    def settled(self) -> int:
        """Everything before this position is delivered to all sinks, or counted as dropped."""
        cdef Outcome outcome
        if self.state.ring.header == NULL:
            return self.state.ring.head
        read_outcome(self.state.ring.header, &outcome)
        return outcome.settled

    @property
    def ready(self) -> int:
        """Bytes of the ring that have their space in the file system."""
        return load(&self.state.ring.header.ready) if self.state.ring.header != NULL else 0

    def counters(self) -> dict:
        """Return what `RingReader.counters()` does; {} when the ring is closed."""
        if self.state.ring.header == NULL:
            return {}
        return read_counters(self.state.ring.header)


cdef void read_outcome(Header *header, Outcome *outcome) noexcept nogil:
    """Copies the outcome that counts. A header that never comes to rest is damaged: any copy will do."""
    cdef uint64_t turn
    cdef int _tries
    for _tries in range(1000):
        turn = load(&header.turn)
        outcome[0] = header.outcome[turn & 1]
        if load(&header.turn) == turn:
            return


cdef dict read_counters(Header *header):
    cdef Outcome outcome
    cdef uint64_t accepted, full
    read_outcome(header, &outcome)
    # After the outcome: nothing is released that was not accepted.
    accepted, full = load(&header.accepted), load(&header.ring_full)
    noted = header.last_error[:strnlen(header.last_error, sizeof(header.last_error))]
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
        "last_error": noted.decode("ascii", "replace"),
    }


# ---- the exporter's side -----------------------------------------------------------------------------------

class RingError(Exception):
    """A file that is not a ring, or one that this version may not read. The message says why."""


class JSONText(str):
    """A text that was handed over as a dict or list: its content is JSON."""

    __slots__ = ()


cdef tuple STEP_NAMES = (
    "run_id", "step_id", "prompt", "response", "tool_definitions", "model_requested", "model_used",
    "finish_reason", "status_message", "real_total_cost", "provider", "service_tier", "traceparent")
cdef tuple RUN_NAMES = (
    "run_id", "session_id", "user_prompt", "response", "system_prompt", "full_input", "full_output",
    "metadata", "status_message", None, None, None, "traceparent")
cdef tuple TOOL_NAMES = (
    "run_id", "tool_call_id", "args", "result", "tool_name", None, None, None,
    "status_message", None, None, None, "traceparent")
cdef tuple FEEDBACK_NAMES = (
    "run_id", "feedback_id", "score", "text", None, None, None, None, "status_message", None, None, None,
    None)
cdef tuple NAMES = (None, STEP_NAMES, RUN_NAMES, TOOL_NAMES, FEEDBACK_NAMES)
cdef tuple KINDS = (None, "step", "run", "tool_call", "feedback")
cdef tuple TOKENS = (
    "prompt_uncached_tokens", "prompt_cached_tokens", "completion_tokens", "cache_write_tokens",
    "cache_write_1h_tokens", "reasoning_tokens")


cdef str uuid_text(const uint8_t *id):
    cdef char text[36]
    format_id(id, text)
    return text[:36].decode("ascii")


cdef class Damaged(Exception):
    """A frame that does not hold together. Internal."""


cdef object decode_text(const Text *entry, const uint8_t *at):
    cdef uint64_t i, chars = entry.size // entry.width
    cdef str text
    if entry.width == 4:
        for i in range(chars):
            if (<const uint32_t *>at)[i] > 0x10FFFF:
                raise Damaged
    text = text_from(entry.width, at, chars)
    if entry.chars > chars:
        return f"{text}… [picostep kept {chars} of {entry.chars} characters]"
    return JSONText(text) if entry.json else text


cdef object of_its_form(object text, int slot, int kind):
    """The value of a text that must be of a certain form; raises Damaged."""
    if slot == STEP_COST and kind == KIND_STEP:
        return decode_cost(text)
    if slot == TRACEPARENT and not is_traceparent(text):
        raise Damaged
    return text


cdef bint is_traceparent(object text) except -1:
    cdef bytes raw = text.encode("utf-8", "replace")
    cdef char parsed[TRACEPARENT_SIZE]
    return (parse_traceparent(<const uint8_t *>PyBytes_AS_STRING(raw), len(raw), parsed)
            and raw == parsed[:TRACEPARENT_SIZE])


cdef dict decode(const Frame *frame):
    """One checked frame as a dict with only the keys that are set; raises Damaged."""
    cdef const Record *record = <const Record *>(frame + 1)
    cdef const Text *entry = <const Text *>(<const uint8_t *>(frame + 1) + sizeof(Record))
    cdef const uint8_t *at
    cdef uint64_t left
    cdef tuple names
    cdef object name, text
    cdef dict out
    cdef int i
    if not KIND_STEP <= frame.kind <= KIND_FEEDBACK or frame.kind != record.kind or frame.texts > MAX_TEXTS:
        raise Damaged
    left = frame.size - sizeof(Frame) - sizeof(Record)
    if left < frame.texts * sizeof(Text):
        raise Damaged
    left -= frame.texts * sizeof(Text)
    at = <const uint8_t *>(entry + frame.texts)
    names = <tuple>NAMES[frame.kind]
    out = {"kind": KINDS[frame.kind], "seq": frame.seq}
    if record.flags & RUN_UUID:
        out["run_id"] = uuid_text(record.run_uuid)
    if record.flags & OWN_UUID:
        if frame.kind == KIND_RUN:
            raise Damaged
        out[names[OWN_ID]] = uuid_text(record.own_uuid)
    out["start_ns"] = record.start_ns
    out["end_ns"] = record.end_ns
    out["status_code"] = record.status_code
    for _ in range(frame.texts):
        if (entry.slot >= MAX_TEXTS or (entry.width != 1 and entry.width != 2 and entry.width != 4)
                or entry.size % entry.width or padded(entry.size) > left):
            raise Damaged
        name = names[entry.slot]
        if name is None:
            raise Damaged
        text = decode_text(entry, at)
        if entry.slot > STATUS_MESSAGE:
            text = of_its_form(text, entry.slot, frame.kind)
        out[name] = text
        at += padded(entry.size)
        left -= padded(entry.size)
        entry += 1
    if left or "run_id" not in out:
        raise Damaged
    if frame.kind == KIND_STEP:
        for i in range(TOKENS_KINDS):
            if record.has_tokens & (1 << i):
                out[TOKENS[i]] = record.tokens[i]
        if record.flags & COST_FLOAT:
            if not (isfinite(record.cost) and record.cost >= 0):
                raise Damaged
            out["real_total_cost"] = record.cost
        if record.first_token_ns:
            out["first_token_ns"] = record.first_token_ns
    elif frame.kind == KIND_RUN and record.flags & CONVERSATIONAL:
        out["conversational"] = record.flags & IS_CONVERSATIONAL != 0
    if frame.flags & FRAME_SHED:
        out["shed"] = True
    if frame.flags & FRAME_SHORTENED:
        out["shortened"] = True
    return out


cdef tuple failed_run(const Frame *image):
    """Id and frame, but for its number, of a run that a dead host left in an image; raises Damaged."""
    cdef dict run = decode(image)
    cdef PyObject *texts[MAX_TEXTS]
    cdef uint32_t present = 0
    cdef Record record
    cdef uint64_t size
    cdef bytes frame
    cdef int slot, count
    memcpy(&record, image + 1, sizeof(Record))
    record.status_code = 2
    record.end_ns = max(record.start_ns, wall_ns())     # the death was noticed just now
    record.json = 0
    message = run.get("status_message")
    run["status_message"] = f"{message}; {ENDED_BY_DEATH}" if message else ENDED_BY_DEATH
    for slot in range(MAX_TEXTS):
        text = run.get((<tuple>RUN_NAMES)[slot])
        if text is None or (slot == RUN_ID and record.flags & RUN_UUID):
            continue
        texts[slot] = <PyObject *>text      # `run` holds it
        present |= <uint32_t>1 << slot
        if isinstance(text, JSONText):
            record.json |= <uint16_t>(1 << slot)
    record.present = <uint16_t>present
    size = measure(texts, present, ~<uint64_t>0, &count)
    frame = PyBytes_FromStringAndSize(NULL, size)
    memset(PyBytes_AS_STRING(frame), 0, size)
    write_frame(<Frame *>PyBytes_AS_STRING(frame), size, image.flags, count, 0, &record, texts, present,
                ~<uint64_t>0)
    return run["run_id"], frame


cdef object decode_cost(object text):
    from decimal import Decimal, InvalidOperation
    try:
        value = int(text) if text.isdecimal() else Decimal(text)
    except (ValueError, InvalidOperation):
        raise Damaged from None
    if isinstance(value, Decimal) and not (value.is_finite() and value >= 0):
        raise Damaged
    return value


cdef int check_reasons(dropped) except -1:
    unknown = (dropped or {}).keys() - {"encode_error", "rejected", "corrupt", "expired"}
    if unknown:
        raise ValueError(f"unknown reasons {sorted(unknown)}")
    return 0


cdef uint64_t before_commit(const uint64_t *words, uint64_t n, uint64_t commit) noexcept nogil:
    """How many of n words come before one that begins a frame or ends a lap in its place.

    `commit` is what the first of them would have to be to begin a frame."""
    cdef uint64_t i
    for i in range(n):
        if words[i] == commit + 8 * i or words[i] == ~(commit + 8 * i):
            return i
    return n


@cython.final
cdef class RingReader:
    """The exporter's end of a ring: a file of any process, or a private ring of this one.

    Args:
        path: the ring's file; relative to `dir_fd` when that is given. No symbolic link is followed.
        dir_fd: descriptor of the directory.

    Attributes:
        ended: gets the ids of all runs that are read; `fail_open_runs()` leaves those alone that are in it.
        name: of the file, or "private".
        pid: of the process that made the ring; for people only.

    Raises:
        RingError: not a ring, of another version or byte order, of another owner, or open to others.
        OSError: the file cannot be opened.

    Not thread-safe: one exporter, one reader.
    """
    cdef int fd
    cdef Header *header
    cdef HostRing owner             # of a private ring
    cdef uint64_t capacity
    cdef uint64_t nonce
    cdef uint64_t cursor
    cdef uint64_t next_seq
    cdef uint64_t slack             # records that may be missing before the next: some only after damage
    cdef Outcome outcome            # as it is in the header
    cdef list losses                # (position, records that damage took before it): not yet in the header
    cdef bint adopted
    cdef bint fresh                 # nothing was read since the cursor was taken from the header
    cdef uint8_t *buffer
    cdef uint64_t buffer_size
    cdef uint64_t buffer_at         # position of the first byte
    cdef uint64_t buffer_n
    cdef uint64_t end               # nothing beyond this position was committed when the buffer was filled
    cdef public object ended
    cdef readonly str name
    cdef readonly int64_t pid

    def __cinit__(self):
        self.fd = -1

    def __init__(self, str path, dir_fd=None):
        cdef int64_t size
        cdef Header *header
        if not SHARED:
            raise RingError("rings are private on this platform")
        self.name = os.path.basename(path)
        self.fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
        found = os.fstat(self.fd)
        size = file_size(self.fd)
        if size < 0:
            raise RingError("not a regular file")
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise RingError("not this user's own")
        if size < HEADER_SIZE + MIN_CAPACITY:
            raise RingError("too short to be a ring")
        if size > HEADER_SIZE + <int64_t>MAX_CAPACITY + <int64_t>MAX_SLOTS * SLOT_SIZE:
            raise RingError("too long to be a ring")
        header = <Header *>map_memory(self.fd, HEADER_SIZE)
        if header == NULL:
            raise MemoryError
        self.header = header
        if header.magic != MAGIC:
            raise RingError("not a ring")
        if header.byte_order != BYTE_ORDER or header.version != VERSION:
            raise RingError(f"a ring of version {header.version}, byte order {header.byte_order:#x}")
        self.capacity = size - HEADER_SIZE
        self.nonce = header.nonce
        self.pid = header.pid
        self.resume()

    @staticmethod
    def of_private(HostRing ring) -> RingReader:
        """Return the reader of a ring in this process's private memory."""
        cdef RingReader self = RingReader.__new__(RingReader)
        self.owner = ring
        self.name = f"private-{ring.state.ring.header.created_ns:x}"    # unlike any of an earlier process
        self.header = ring.state.ring.header
        self.capacity = ring.state.ring.limit
        self.nonce = ring.state.ring.nonce
        self.pid = self.header.pid
        self.resume()
        return self

    cdef int resume(self) except -1:
        read_outcome(self.header, &self.outcome)
        if self.outcome.tail > MAX_POSITION:
            self.outcome.tail = 0
        self.cursor = (self.outcome.tail + 7) & ~<uint64_t>7
        self.next_seq = self.outcome.released
        self.fresh = True
        self.slack = 0 if self.outcome.tail <= load(&self.header.head) else self.capacity // MIN_FRAME
        self.losses = []
        return 0

    cdef void publish(self) noexcept:
        cdef uint64_t turn = load(&self.header.turn) + 1
        self.header.outcome[turn & 1] = self.outcome
        store(&self.header.turn, turn)

    def __dealloc__(self):
        self.close()

    def close(self) -> None:
        """Give up the file and, if the ring was adopted, its lock."""
        if self.header != NULL and self.owner is None:
            unmap_memory(self.header, HEADER_SIZE)
        self.header = NULL
        if self.fd >= 0:
            close_fd(self.fd)
            self.fd = -1
        PyMem_RawFree(self.buffer)
        self.buffer = NULL
        self.buffer_n = self.buffer_size = 0

    cdef int check_open(self) except -1:
        if self.header == NULL or (self.owner is not None and not self.owner.open):
            raise ValueError("the ring reader is closed")
        return 0

    @property
    def size(self) -> int:
        """Bytes of data that the ring holds at most."""
        return self.limit()

    @property
    def position(self) -> int:
        """Where the next `read()` goes on."""
        return self.cursor

    @property
    def backlog(self) -> int:
        """Bytes between the oldest record that is not released and the newest."""
        self.check_open()
        return min(load(&self.header.head) - self.outcome.tail, self.limit())

    @property
    def drained(self) -> bool:
        """Whether nothing lies beyond the cursor; of a dead host, after a `read()` that found nothing."""
        self.check_open()
        return self.cursor >= load(&self.header.head)

    def alive(self) -> bool:
        """Return whether the host lives; False also means that this reader holds the ring's lock now."""
        self.check_open()
        if self.owner is not None:
            return True
        if not self.adopted and lock_file(self.fd) == 0:
            self.adopted = True
            self.buffer_n = 0
        return not self.adopted

    cdef uint64_t limit(self) noexcept:
        """Bytes after which the data begins again: also when the file has become shorter than that."""
        cdef uint64_t limit = load(&self.header.limit) if self.header != NULL else 0
        if MIN_CAPACITY <= limit <= MAX_CAPACITY and limit % 8 == 0:
            return limit
        limit = load(&self.header.capacity) if self.header != NULL else 0
        if MIN_CAPACITY <= limit <= self.capacity and limit % 8 == 0:
            return limit
        return self.capacity & ~<uint64_t>7

    cdef uint64_t fetch(self, uint64_t position, uint64_t n, uint64_t limit) except? 0:
        """Gets n bytes of a position in the buffer, fewer to the end of the data; returns how many."""
        cdef uint64_t offset = position % limit, want
        cdef int64_t got
        cdef uint8_t *larger
        if n > limit - offset:
            n = limit - offset
        if position - self.buffer_at < self.buffer_n and n <= self.buffer_n - (position - self.buffer_at):
            return n
        want = max(n, min(<uint64_t>READ_CHUNK, limit - offset))
        if want > self.buffer_size:
            larger = <uint8_t *>PyMem_RawRealloc(self.buffer, want)
            if larger == NULL:
                raise MemoryError
            self.buffer, self.buffer_size = larger, want
        if self.owner is not None:
            memcpy(self.buffer, self.owner.state.ring.data + offset, want)
        else:
            with nogil:
                got = read_at(self.fd, self.buffer, want, HEADER_SIZE + offset)
                memset(self.buffer + got, 0, want - got)
        self.buffer_at = position
        self.buffer_n = min(want, self.end - position) if self.end > position else 0
        return min(n, self.buffer_n)

    cdef uint64_t word(self, uint64_t position, uint64_t limit) except? 0:
        if self.fetch(position, 8, limit) < 8:
            return 0
        return (<uint64_t *>(self.buffer + (position - self.buffer_at)))[0]

    cdef dict next_record(self):
        """The next whole record, or None when there is none now."""
        cdef uint64_t limit, head, end, there, word
        cdef Frame *frame
        while True:
            limit = self.limit()
            head = load(&self.header.head)
            if head < self.cursor and not self.adopted:
                return None
            if head > self.outcome.tail + limit:    # nonsense in the header: look as far as a ring can reach
                head = self.outcome.tail + limit
            if self.cursor >= head:
                # A host that was killed between the commit and the store of its head left one more.
                self.end = self.cursor + limit // 2
                if not self.adopted:
                    return None
                word = self.word(self.cursor, limit)
                if word != self.nonce + self.cursor and word != ~(self.nonce + self.cursor):
                    return None
                end = self.end
            else:
                # Of a dead host, a frame that is committed counts, wherever the head may be.
                end = self.end = self.outcome.tail + limit if self.adopted else head
            there = self.fetch(self.cursor, sizeof(Frame), limit)
            if there >= 8:
                word = self.word(self.cursor, limit)
                if word == ~(self.nonce + self.cursor):
                    self.cursor += limit - self.cursor % limit
                    self.fresh = False
                    continue
                if word == self.nonce + self.cursor and there == sizeof(Frame):
                    frame = <Frame *>(self.buffer + (self.cursor - self.buffer_at))
                    there = frame.size
                    if (there % 8 == 0 and MIN_FRAME <= there <= end - self.cursor
                            and there <= max(limit, self.capacity) // 4
                            and self.cursor % limit + there <= self.capacity
                            and self.fetch(self.cursor, there, limit) == there):
                        frame = <Frame *>(self.buffer + (self.cursor - self.buffer_at))
                        # Numbers have no holes but where damage was skipped, and no larger ones than that.
                        if frame.seq - self.next_seq <= self.slack:
                            try:
                                record = decode(frame)
                            except Damaged:
                                pass
                            else:
                                self.lose(frame.seq - self.next_seq)
                                self.next_seq += 1
                                self.cursor += there
                                self.slack = 0
                                self.fresh = False
                                return record
            self.skip_damage(end, limit)

    cdef int skip_damage(self, uint64_t end, uint64_t limit) except -1:
        """Moves the cursor to the next thing that looks like a frame, or to the end."""
        cdef uint64_t at = self.cursor + 8, n, skipped
        while at < end:
            if at % limit >= self.capacity:     # a limit that is nonsense must not cost more than the file
                at += limit - at % limit
                continue
            n = self.fetch(at, 8, limit) // 8
            if n:
                n = (self.buffer_n - (at - self.buffer_at)) // 8
                skipped = before_commit(
                    <const uint64_t *>(self.buffer + (at - self.buffer_at)), n, self.nonce + at)
                at += skipped * 8
                if skipped < n:
                    break
            else:
                at = end
        at = min(at, end)
        # What is damaged at the very beginning may be the place to begin at: then as many as a ring can hold.
        self.slack += (limit if self.fresh else at - self.cursor) // MIN_FRAME + 1
        self.fresh = False
        self.cursor = at
        return 0

    cdef int lose(self, uint64_t records) except -1:
        """Takes note of records that have no readable frame before the cursor."""
        if records:
            self.losses.append((self.cursor, records))
            self.next_seq += records
        return 0

    def read(self, int max_records, uint64_t max_bytes) -> list:
        """Decode records from the cursor on, and move it.

        Returns:
            At most `max_records` dicts of together about `max_bytes` bytes (at least one when there is one);
            [] when there is nothing now. What is damaged is skipped, and counted with the next release().
        """
        cdef list out = []
        cdef uint64_t start = self.cursor
        self.check_open()
        # Bytes ahead of the last head may have changed since they were copied.
        self.buffer_n = 0
        while len(out) < max_records and self.cursor - start < max_bytes:
            record = self.next_record()
            if record is None:
                if self.adopted:
                    self.take_stock()
                break
            out.append(record)
            if self.ended is not None and record["kind"] == "run":
                self.ended.add(record["run_id"])
        return out

    cdef int take_stock(self) except -1:
        """At the end of a dead host's ring: what was counted and not found was damaged, or is a torn one."""
        cdef uint64_t accepted = load(&self.header.accepted)
        if accepted > self.next_seq:
            self.lose(min(accepted - self.next_seq, self.slack))
            self.outcome.torn += accepted - self.next_seq
            self.publish()
        self.slack = 0
        store(&self.header.accepted, self.next_seq)
        store(&self.header.head, self.cursor)
        return 0

    def fail_open_runs(self) -> int:
        """Record, as failed, the runs that were open when the host of this ring died.

        Only when the ring is adopted and all of it is released. What is recorded is read like everything
        else. One that is in `ended` is left out.

        Returns:
            How many were recorded, 64 at most: the rest when these are released. 0: nothing is left in the
            table; what was damaged in it is counted with the next release().
        """
        cdef uint64_t raw[SLOT_WORDS]
        cdef uint64_t at, slots
        cdef uint32_t slot
        cdef int done = 0
        cdef list bad = []
        self.check_open()
        at = load(&self.header.capacity)
        if (not self.adopted or not self.cursor == self.outcome.tail == load(&self.header.head)
                or not MIN_CAPACITY <= at <= MAX_CAPACITY):
            return 0
        at += HEADER_SIZE
        slots = min(load(&self.header.slots), <uint64_t>MAX_SLOTS)
        for slot in range(slots):
            memset(raw, 0, sizeof(raw))
            read_at(self.fd, raw, SLOT_SIZE, at + <uint64_t>slot * SLOT_SIZE)
            if not (raw[0] or raw[IMAGE_WORDS]):
                continue
            record = self.open_run(slot, <const uint8_t *>raw)
            if record is None:
                bad.append(slot)
                continue
            if self.ended is None or record[0] not in self.ended:
                if not self.append_for_host(record[1]):
                    bad.append(slot)
                    continue
                done += 1
            self.free_slot(slot, at)
            if done == FAILED_AT_ONCE:
                break
        if done:
            return done     # those without room may find some then
        for slot in bad:
            self.free_slot(slot, at)
        if bad:
            self.lose(len(bad))
            store(&self.header.accepted, self.next_seq)
        return 0

    cdef tuple open_run(self, uint32_t slot, const uint8_t *raw):
        """Id and frame of the run in a slot, from the newer of its whole images; None when there is none."""
        cdef const Frame *image
        cdef uint64_t newest = 0
        cdef int which
        cdef tuple found = None
        for which in range(2):
            image = <const Frame *>(raw + which * IMAGE_SIZE)
            if (image.commit == image_word(self.nonce, slot, which) and image.kind == KIND_RUN
                    and image.size % 8 == 0 and MIN_FRAME <= image.size <= IMAGE_SIZE
                    and (found is None or image.seq > newest)):
                try:
                    found = failed_run(image)
                except Damaged:
                    continue
                newest = image.seq
        return found

    cdef bint append_for_host(self, bytes frame) except -1:
        """Writes a frame as the host would have done; False when there is no room for it."""
        cdef uint64_t limit = self.limit(), position = load(&self.header.head), offset = position % limit
        cdef uint64_t size = len(frame), seq = load(&self.header.accepted), word, rest = 0
        if offset + size > limit:
            rest = limit - offset
        if (position - self.outcome.tail > limit or position > MAX_POSITION
                or position + rest + size - self.outcome.tail > limit):
            return False
        if rest:
            word = ~(self.nonce + position)
            if write_at(self.fd, &word, sizeof(word), HEADER_SIZE + offset) != 0:
                return False
            position += rest
            offset = 0
        (<Frame *>PyBytes_AS_STRING(frame)).seq = seq
        word = self.nonce + position
        if (write_at(self.fd, PyBytes_AS_STRING(frame), size, HEADER_SIZE + offset) != 0
                or write_at(self.fd, &word, sizeof(word), HEADER_SIZE + offset) != 0):
            return False
        store(&self.header.accepted, seq + 1)
        store(&self.header.head, position + size)
        return True

    cdef int free_slot(self, uint32_t slot, uint64_t at) except -1:
        cdef uint64_t nothing = 0
        at += <uint64_t>slot * SLOT_SIZE
        write_at(self.fd, &nothing, sizeof(nothing), at)
        write_at(self.fd, &nothing, sizeof(nothing), at + IMAGE_SIZE)
        return 0

    def release(self, uint64_t position, uint64_t delivered, dropped=None, *, uint64_t spooled=0,
                uint64_t withheld=0) -> None:
        """Free everything before a position that `read()` reached, and count it.

        Args:
            position: `position` after the last record that is done with.
            delivered: how many of the records were delivered or durably stored.
            dropped: how many were not, by reason: "encode_error", "rejected", "corrupt", "expired".
            spooled: how many wait on disk now; settle() tells what becomes of them.
            withheld: how many of them all have a text that was withheld.
        """
        cdef Outcome *outcome = &self.outcome
        cdef uint64_t lost = 0
        self.check_open()
        if not outcome.tail <= position <= self.cursor:
            raise ValueError(f"position {position} was not read")
        check_reasons(dropped)
        while self.losses and self.losses[0][0] <= position:
            lost += self.losses.pop(0)[1]
        outcome.released += delivered + spooled + lost + self.count(delivered, dropped)
        outcome.corrupt += lost
        outcome.in_spool += spooled
        outcome.unsynced += spooled
        outcome.withheld += withheld
        outcome.tail = position
        if not outcome.in_spool:
            outcome.settled = position
        self.publish()

    def settle(self, uint64_t position, uint64_t delivered, dropped=None) -> None:
        """Say what became of spooled records: those up to a position, in their order.

        Args:
            position: end of the last of them; settled() of the host tells how far that has come.
            delivered: how many were delivered.
            dropped: how many were not, by reason as for release().
        """
        cdef Outcome *outcome = &self.outcome
        self.check_open()
        check_reasons(dropped)
        if delivered + sum((dropped or {}).values()) > outcome.in_spool:
            raise ValueError("more records than are spooled")
        outcome.in_spool -= delivered + self.count(delivered, dropped)
        outcome.unsynced = min(outcome.unsynced, outcome.in_spool)
        outcome.settled = outcome.tail if not outcome.in_spool else min(
            max(position, outcome.settled), outcome.tail)
        self.publish()

    def synced(self) -> None:
        """Say that all spooled records would survive the loss of power."""
        self.check_open()
        if self.outcome.unsynced:
            self.outcome.unsynced = 0
            self.publish()

    cdef uint64_t count(self, uint64_t delivered, dropped) except? 0:
        """Adds to the counters; returns how many were dropped."""
        cdef dict reasons = dict(dropped or {})
        self.outcome.delivered += delivered
        self.outcome.encode_error += <uint64_t>reasons.get("encode_error", 0)
        self.outcome.rejected += <uint64_t>reasons.get("rejected", 0)
        self.outcome.corrupt += <uint64_t>reasons.get("corrupt", 0)
        self.outcome.expired += <uint64_t>reasons.get("expired", 0)
        return sum(reasons.values())

    @property
    def in_spool(self) -> int:
        """Records of this ring that wait on disk."""
        return self.outcome.in_spool

    @property
    def tail(self) -> int:
        """Everything before this position was released."""
        return self.outcome.tail

    def shrink(self) -> None:
        """Give back the space of an adopted ring that is empty; its counters stay."""
        self.check_open()
        if self.adopted and self.fd >= 0 and self.cursor >= load(&self.header.head):
            os.ftruncate(self.fd, HEADER_SIZE + MIN_CAPACITY)

    def set_last_error(self, str text not None) -> None:
        """Say what goes wrong, in up to 63 ASCII characters: the host shows it in stats(). "" clears it."""
        cdef bytes raw = text.encode("ascii", "replace")[:63]
        self.check_open()
        memset(self.header.last_error, 0, sizeof(self.header.last_error))
        memcpy(self.header.last_error, PyBytes_AS_STRING(raw), len(raw))

    def counters(self) -> dict:
        """Count records: recorded, accepted, shed, shortened, delivered, in_ring, dropped by reason, torn.

        And last_error: text.
        """
        self.check_open()
        return read_counters(self.header)

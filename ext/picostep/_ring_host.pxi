# ---- append: the host's hot path ---------------------------------------------------------------------------

cdef inline uint64_t kept(PyObject *text, uint64_t cap) noexcept nogil:
    """Bytes to store of a text: all, or as many whole characters as fit into cap."""
    cdef uint64_t width = text_width(text), size = <uint64_t>text_length(text) * width
    return size if size <= cap else cap // width * width


cdef inline uint64_t measure(const Draft *draft, uint32_t present, uint64_t cap, int *count) noexcept nogil:
    """Size of the frame for these texts, each cut to cap bytes."""
    cdef uint64_t size = sizeof(Frame) + record_size(&draft.record)
    count[0] = 0
    while present:
        size += sizeof(Text) + padded(kept(draft.text[lowest_bit(present)], cap))
        count[0] += 1
        present &= present - 1
    return size


cdef uint64_t fair_cap(const Draft *draft, uint32_t present, uint64_t room) noexcept nogil:
    """The largest cap, near enough, under which the frame fits into room.

    Small texts stay whole, the large share the rest."""
    cdef uint64_t low = 0, high = room, middle
    cdef int count
    while low + 64 < high:
        middle = (low + high) // 2
        if measure(draft, present, middle, &count) <= room:
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


cdef inline uint64_t fitted(Ring *ring, const Draft *draft, uint32_t present, uint64_t *cap, int *count,
                            uint16_t *flags) noexcept nogil:
    """Size of the frame, its texts cut where it would be more than a quarter of the ring.

    Its space is there if it ends before the end of the data."""
    cdef uint64_t size
    while True:
        cap[0] = ~<uint64_t>0
        flags[0] &= <uint16_t>~FRAME_SHORTENED
        size = measure(draft, present, cap[0], count)
        if size > ring.limit // 4:
            cap[0] = fair_cap(draft, present, ring.limit // 4)
            size = measure(draft, present, cap[0], count)
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
                             const Draft *draft, uint32_t present, uint64_t cap) noexcept nogil:
    """Writes all of a frame but its commit word. Size and count are those that measure() gives."""
    cdef uint64_t fixed = record_size(&draft.record)
    cdef uint8_t *made = <uint8_t *>(frame + 1)
    cdef Text *entry = <Text *>(made + fixed)
    cdef uint8_t *at = <uint8_t *>(entry + count)
    cdef PyObject *text
    cdef uint64_t n
    cdef int slot
    frame.size = <uint32_t>size
    frame.kind = draft.record.kind
    frame.texts = <uint8_t>count
    frame.flags = flags
    frame.seq = seq
    memcpy(made, &draft.record, sizeof(Record))
    if fixed > sizeof(Record):
        memcpy(made + sizeof(Record), draft.more, fixed - sizeof(Record))
    while present:
        slot = lowest_bit(present)
        present &= present - 1
        text = draft.text[slot]
        n = kept(text, cap)
        entry.slot = <uint8_t>slot
        entry.width = <uint8_t>text_width(text)
        entry.encoding = (draft.json >> slot) & 1      # AS_JSON or AS_TEXT
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


cdef int append(Ring *ring, const Draft *draft) noexcept:
    """Copies one record into the ring. 0, or -1 when the ring is full: counted, never an exception."""
    cdef uint32_t present = draft.present
    cdef uint16_t flags = 0
    cdef uint64_t cap, size
    cdef Header *header
    cdef Frame *frame
    cdef int count

    if draft.record.flags & RUN_UUID:
        present &= ~<uint32_t>(1 << RUN_ID)
    if draft.record.flags & OWN_UUID:
        present &= ~<uint32_t>(1 << OWN_ID)

    lock(&ring.lock)
    header = ring.header
    if header == NULL:          # another thread closed it, which only happens without the GIL
        unlock(&ring.lock)
        count_unrecorded()
        return -1
    size = fitted(ring, draft, present, &cap, &count, &flags)
    if not room_for(ring, size, False):
        if present & BODIES[draft.record.kind]:
            present &= ~<uint32_t>BODIES[draft.record.kind]
            size = fitted(ring, draft, present, &cap, &count, &flags)
            flags |= FRAME_SHED
        if not room_for(ring, size, True):
            store(&header.ring_full, header.ring_full + 1)
            unlock(&ring.lock)
            return -1

    frame = <Frame *>(ring.data + ring.offset)
    write_frame(frame, size, flags, count, ring.seq, draft, present, cap)
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


cdef uint64_t image_cap(const Draft *draft, uint32_t present) noexcept nogil:
    """What texts are cut to so that an image holds them; 0 when an id would be cut, which must not be."""
    cdef uint32_t ids = present & (1 << RUN_ID | 1 << RUN_SESSION_ID | 1 << TRACEPARENT)
    cdef uint64_t cap = ~<uint64_t>0
    cdef int count
    if measure(draft, present, cap, &count) > IMAGE_SIZE:
        cap = fair_cap(draft, present, IMAGE_SIZE)
    while ids:
        if kept(draft.text[lowest_bit(ids)], cap) != kept(draft.text[lowest_bit(ids)], ~<uint64_t>0):
            return 0
        ids &= ids - 1
    return cap


cdef bint write_image(Ring *ring, uint32_t slot, const Draft *draft, int64_t start_ns,
                      int64_t end_ns) noexcept nogil:
    """Writes the image of a slot that is not in use, then gives up the other: one is whole at any moment.

    False, and nothing written, when the ids alone are too long."""
    cdef uint32_t present = draft.present
    cdef uint16_t flags = 0
    cdef uint64_t cap, size
    cdef int which = image_of(ring, slot, 0).commit == image_word(ring.nonce, slot, 0), count
    cdef Frame *made = image_of(ring, slot, which)
    cdef Frame *old = image_of(ring, slot, 1 - which)
    if draft.record.flags & RUN_UUID:
        present &= ~<uint32_t>(1 << RUN_ID)
    cap = image_cap(draft, present)
    if cap == 0:
        present &= ~<uint32_t>BODIES[KIND_RUN]
        flags |= FRAME_SHED
        cap = image_cap(draft, present)
        if cap == 0:
            return False
    size = measure(draft, present, cap, &count)
    if cap != ~<uint64_t>0:
        flags |= FRAME_SHORTENED
    write_frame(made, size, flags, count, old.seq + 1, draft, present, cap)
    (<Record *>(made + 1)).start_ns = start_ns
    (<Record *>(made + 1)).end_ns = end_ns
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


cdef uint32_t track(Ring *ring, const Draft *draft, int64_t start_ns, int64_t end_ns) noexcept:
    """Enters a run into the table, as it would be recorded with these times; the ring's lock is held.

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
        if write_image(ring, slot, draft, start_ns, end_ns):
            ring.slots_free[ring.slots_from] = word & (word - 1)
            return slot + 1
    store(&ring.header.untracked, ring.header.untracked + 1)
    return 0


cdef void track_again(Ring *ring, uint32_t slot, const Draft *draft, int64_t start_ns,
                      int64_t end_ns) noexcept:
    """Says anew what is known of a run; what does not fit leaves the slot as it was.

    The ring's lock is held."""
    if ring.header != NULL:
        write_image(ring, slot - 1, draft, start_ns, end_ns)


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

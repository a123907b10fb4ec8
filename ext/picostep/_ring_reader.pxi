# ---- the exporter's side -----------------------------------------------------------------------------------

class RingError(Exception):
    """A file that is not a ring, or one that this version may not read. The message says why."""


class NewerRing(RingError):
    """A ring of a later version of the format: whole, and for an exporter of that version."""


class JSONText(str):
    """A text that was handed over as a dict or list: its content is JSON."""

    __slots__ = ()


cdef tuple KINDS = (None, "step", "run", "tool_call", "feedback")
# Of texts by kind and number, of counts by number; None where this version has no name. Made with the first
# reader: a host that only records has no use for them.
cdef tuple text_names = None
cdef tuple count_names = None


cdef int name_fields() except -1:
    global text_names, count_names
    from picostep.record import counts, texts
    if text_names is None:
        count_names = counts()
        text_names = (None, *[texts(kind) for kind in KINDS[1:]])
    return 0


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
    return JSONText(text) if entry.encoding == AS_JSON else text


cdef object of_its_form(object text, int slot, int kind):
    """The value of a text that must be of a certain form; raises Damaged."""
    if slot == STEP_REAL_TOTAL_COST and kind == KIND_STEP:
        return decode_cost(text)
    if slot == TRACEPARENT and not is_traceparent(text):
        raise Damaged
    return text


cdef bint is_traceparent(object text) except -1:
    cdef bytes raw = text.encode("utf-8", "replace")
    cdef char parsed[TRACEPARENT_SIZE]
    return (parse_traceparent(<const uint8_t *>PyBytes_AS_STRING(raw), len(raw), parsed)
            and raw == parsed[:TRACEPARENT_SIZE])


cdef struct Upgraded:       # what a frame of version 2 has, as one of today has it
    Record record
    int64_t more[3]


cdef inline uint64_t least_size(uint32_t version) noexcept nogil:
    """Bytes of a frame that has no texts."""
    return sizeof(Frame) + (sizeof(Record2) if version == 2 else sizeof(Record))


cdef inline const Record *record_of(const Frame *frame, uint32_t version, Upgraded *room,
                                    uint64_t *size) noexcept nogil:
    """The record of a frame, and the bytes up to its texts; of an older frame a copy, made in `room`."""
    cdef const Record *record = <const Record *>(frame + 1)
    if version == 2:
        upgrade(<const Record2 *>(frame + 1), room)
        size[0] = sizeof(Frame) + sizeof(Record2)
        return &room.record
    size[0] = sizeof(Frame) + record_size(record)
    return record


cdef void upgrade(const Record2 *old, Upgraded *room) noexcept nogil:
    cdef Record *record = &room.record
    memset(room, 0, sizeof(Upgraded))
    memcpy(record, old, 4 * sizeof(int64_t))
    record.cost = old.cost
    memcpy(record.run_uuid, old.run_uuid, sizeof(old.run_uuid))
    memcpy(record.own_uuid, old.own_uuid, sizeof(old.own_uuid))
    record.flags = old.flags
    record.has_counts = old.has_counts & 0x3f
    record.kind = old.kind
    memcpy(record.counts, old.counts, sizeof(record.counts))
    memcpy(room.more, old.counts + COMMON_COUNTS, sizeof(room.more))


cdef dict decode(const Frame *frame, uint32_t version):
    """One checked frame as a dict with only the keys that are set; raises Damaged.

    Texts, encodings and counts that have no name here are of a later host: left out, and the record kept."""
    cdef Upgraded room
    cdef const Record *record
    cdef const Text *entry
    cdef const uint8_t *at
    cdef uint64_t left, size
    cdef uint32_t counts
    cdef tuple names
    cdef object name, text
    cdef dict out
    record = record_of(frame, version, &room, &size)
    if not KIND_STEP <= frame.kind <= KIND_FEEDBACK or frame.kind != record.kind or frame.texts > MAX_TEXTS:
        raise Damaged
    entry = <const Text *>(<const uint8_t *>frame + size)
    size += frame.texts * sizeof(Text)
    if frame.size < size:
        raise Damaged
    left = frame.size - size
    at = <const uint8_t *>(entry + frame.texts)
    names = <tuple>text_names[frame.kind]
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
        name = <object>PyTuple_GET_ITEM(names, entry.slot)
        if name is not None and entry.encoding <= AS_JSON:
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
        counts = record.has_counts
        while counts:
            name = <object>PyTuple_GET_ITEM(count_names, lowest_bit(counts))
            if name is not None:
                out[name] = count_of(record, lowest_bit(counts))
            counts &= counts - 1
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


cdef tuple failed_run(const Frame *image, uint32_t version):
    """Id and frame, but for its number, of a run that a dead host left in an image; raises Damaged.

    All but times, status and message stay as they are, also what this version has no name for."""
    cdef dict run = decode(image, version)
    cdef str message = run.get("status_message")
    cdef const char *raw = <const char *>image
    cdef const Text *entry
    cdef const char *at
    cdef Upgraded room
    cdef uint64_t size
    cdef bytes entries = b"", texts = b"", frame
    cdef Frame *made
    cdef Record *record
    cdef int i
    record_of(image, version, &room, &size)
    entry = <const Text *>(raw + size)
    at = <const char *>(entry + image.texts)
    for i in range(image.texts):
        if entry.slot != STATUS_MESSAGE:
            entries += (<const char *>entry)[:sizeof(Text)]
            texts += at[:padded(entry.size)]
        at += padded(entry.size)
        entry += 1
    more = text_entry(STATUS_MESSAGE, f"{message}; {ENDED_BY_DEATH}" if message else ENDED_BY_DEATH)
    entries += more[0]
    frame = raw[:size] + entries + texts + more[1]
    made = <Frame *>PyBytes_AS_STRING(frame)
    made.commit = made.seq = 0
    made.size = <uint32_t>len(frame)
    made.texts = <uint8_t>(len(entries) // sizeof(Text))
    record = <Record *>(made + 1)       # of a Record2, too, these are the places
    record.end_ns = max(record.start_ns, wall_ns())     # the death was noticed just now
    record.status_code = 2
    return run["run_id"], frame


cdef tuple text_entry(int slot, str text):
    """A text as a frame has it: its entry, and its characters."""
    cdef Text entry
    cdef PyObject *given = <PyObject *>text
    cdef uint64_t size = <uint64_t>text_length(given) * text_width(given)
    memset(&entry, 0, sizeof(entry))
    entry.slot = <uint8_t>slot
    entry.width = <uint8_t>text_width(given)
    entry.size = <uint32_t>size
    entry.chars = text_length(given)
    characters = (<const char *>text_data(given))[:size].ljust(padded(size), b"\0")
    return (<const char *>&entry)[:sizeof(entry)], characters


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
    cdef uint32_t version
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
        if header.byte_order != BYTE_ORDER or header.version < OLDEST:
            raise RingError(f"a ring of version {header.version}, byte order {header.byte_order:#x}")
        if header.version > VERSION:
            raise NewerRing(f"a ring of version {header.version}; this one reads {OLDEST} to {VERSION}")
        self.version = header.version
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
        self.version = VERSION
        self.capacity = ring.state.ring.limit
        self.nonce = ring.state.ring.nonce
        self.pid = self.header.pid
        self.resume()
        return self

    cdef int resume(self) except -1:
        if text_names is None:
            name_fields()
        read_outcome(self.header, &self.outcome)
        if self.outcome.tail > MAX_POSITION:
            self.outcome.tail = 0
        self.cursor = (self.outcome.tail + 7) & ~<uint64_t>7
        self.next_seq = self.outcome.released
        self.fresh = True
        self.slack = 0
        if self.outcome.tail > load(&self.header.head):
            self.slack = self.capacity // least_size(self.version)
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
                    if (there % 8 == 0 and least_size(self.version) <= there <= end - self.cursor
                            and there <= max(limit, self.capacity) // 4
                            and self.cursor % limit + there <= self.capacity
                            and self.fetch(self.cursor, there, limit) == there):
                        frame = <Frame *>(self.buffer + (self.cursor - self.buffer_at))
                        # Numbers have no holes but where damage was skipped, and no larger ones than that.
                        if frame.seq - self.next_seq <= self.slack:
                            try:
                                record = decode(frame, self.version)
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
        self.slack += (limit if self.fresh else at - self.cursor) // least_size(self.version) + 1
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
                    and image.size % 8 == 0 and least_size(self.version) <= image.size <= IMAGE_SIZE
                    and (found is None or image.seq > newest)):
                try:
                    found = failed_run(image, self.version)
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
        """Say what goes wrong, in up to 511 ASCII characters: the host shows it in stats(). "" clears it.

        A host of version 2 shows 63 of them.
        """
        cdef char *said
        cdef size_t size
        cdef bytes raw
        self.check_open()
        said, size = self.header.last_error, last_error_size(self.header)
        raw = text.encode("ascii", "replace")[:size - 1].ljust(size, b"\0")
        # The first character goes first and comes last: whoever copies parts of two finds another one then.
        said[0] = 0
        fence()
        memcpy(said + 1, PyBytes_AS_STRING(raw) + 1, size - 1)
        fence()
        said[0] = PyBytes_AS_STRING(raw)[0]

    def counters(self) -> dict:
        """Count records: recorded, accepted, shed, shortened, delivered, in_ring, dropped by reason, torn.

        And last_error: text.
        """
        self.check_open()
        return read_counters(self.header)

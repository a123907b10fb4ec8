# cython: language_level=3, freethreading_compatible=True
"""The price table in memory, the cost of a step, and sums that are exact.

A table is one block of bytes, compiled by `picostep.prices.compile`. It is trusted only after every index and
length in it was checked: `PriceTable()` raises for anything else, and no look-up can leave its memory.
Names are resolved in Python (`picostep.prices.resolve`), once a name; here is the cache of the answers.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_Check
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_Check, PyUnicode_CheckExact
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

from picostep.errors import ArgumentError, ArgumentTypeError, PicostepError

cdef extern from "Python.h":
    object exact_text "PyUnicode_FromObject"(object)    # a subclass of str may hash and compare as it likes

cdef enum:
    HEADER = 64
    DIGEST = 32             # its place in the header
    VERSION = 1
    ROW = 64                # bytes in the file, and in memory
    SLOT = 16
    TRACK = 8
    MODEL = 8
    MAX_TABLE = 64 * 1024 * 1024
    MAX_CACHED = 4096       # names
    MAX_NAME = 512          # characters; longer names are resolved again each time

MAGIC = b"PICOCOST"

STATUSES = (
    "priced", "user", "override", "free", "unknown_model", "unknown_provider", "variant_fallback",
    "no_output_price", "unsupported", "invalid_usage", "no_usage",
)
"""What `Cost.status` may say; the place of a text is its number in the compiled core."""


class PriceTableError(PicostepError, ValueError):
    """
    Raised when bytes are not a price table that can be used.

    The message says what is wrong: not a table, of another version, damaged, or inconsistent.
    """


PriceTableError.__module__ = "picostep.prices"


# ---- the file ----------------------------------------------------------------------------------------------

cdef inline uint32_t u32(const unsigned char *p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline int32_t i32(const unsigned char *p) noexcept nogil:
    return <int32_t>u32(p)


cdef inline int64_t i64(const unsigned char *p) noexcept nogil:
    return <int64_t>(u32(p) | <uint64_t>u32(p + 4) << 32)


cdef int damaged(str what) except -1:
    raise PriceTableError(f"price table: {what}")


cdef object digest(bytes data):
    """Of everything but the digest itself."""
    try:
        from _blake2 import blake2b     # hashlib would load OpenSSL for it
    except ImportError:
        from hashlib import blake2b
    hashed = blake2b(data[:DIGEST], digest_size=16)
    hashed.update(memoryview(data)[DIGEST + 16:])
    return hashed.digest()


cdef int read_rows(PriceRow *rows, int32_t n, const unsigned char *p) except -1:
    cdef int32_t i
    cdef int k
    cdef int64_t *rates
    for i in range(n):
        rates = <int64_t *>(rows + i)
        for k in range(7):
            rates[k] = i64(p + 8 * k)
            if rates[k] < 0:
                damaged(f"row {i} has a negative rate")
        rows[i].above = i32(p + 56)
        rows[i].next = i32(p + 60)
        if rows[i].above < -1 or rows[i].next < -1 or rows[i].next >= i:
            damaged(f"row {i} has a bad tier")
        if rows[i].next >= 0 and rows[rows[i].next].above <= rows[i].above:
            damaged(f"row {i} has tiers out of order")
        p += ROW
    return 0


cdef int read_slots(PriceSlot *slots, int32_t n, int32_t n_rows, const unsigned char *p) except -1:
    cdef int32_t i
    for i in range(n):
        slots[i] = PriceSlot(i32(p), i32(p + 4), i32(p + 8), u32(p + 12))
        if not (0 <= slots[i].row < n_rows and 0 <= slots[i].second < SECONDS_PER_DAY):
            damaged(f"slot {i} points outside the table")
        p += SLOT
    return 0


cdef int read_tracks(
    PriceTrack *tracks, int32_t n, const PriceSlot *slots, int32_t n_slots, const unsigned char *p
) except -1:
    cdef int32_t i, k
    cdef const PriceSlot *slot
    for i in range(n):
        tracks[i] = PriceTrack(i32(p), p[4] | <uint16_t>p[5] << 8, p[6] | <uint16_t>p[7] << 8)
        if tracks[i].slots == 0 or tracks[i].slot < 0 or tracks[i].slot > n_slots - tracks[i].slots:
            damaged(f"track {i} points outside the table")
        slot = slots + tracks[i].slot
        if slot.day != FOREVER or slot.second != 0:
            damaged(f"track {i} has no beginning")
        for k in range(1, tracks[i].slots):
            if slot[k].day == slot[k - 1].day:
                if slot[k].second <= slot[k - 1].second:
                    damaged(f"track {i} has times out of order")
            elif slot[k].day < slot[k - 1].day or slot[k].second != 0:
                damaged(f"track {i} has days out of order")
        p += TRACK
    return 0


cdef int read_models(
    PriceModel *models, int32_t n, const PriceTrack *tracks, int32_t n_tracks, const unsigned char *p
) except -1:
    cdef int32_t i, k
    for i in range(n):
        models[i] = PriceModel(i32(p), i32(p + 4))
        if models[i].tracks < 1 or models[i].track < 0 or models[i].track > n_tracks - models[i].tracks:
            damaged(f"model {i} points outside the table")
        if tracks[models[i].track].variant != VARIANT_STANDARD:
            damaged(f"model {i} has no standard price")
        for k in range(models[i].track + 1, models[i].track + models[i].tracks):
            if tracks[k].variant <= tracks[k - 1].variant:
                damaged(f"model {i} has variants out of order")
        p += MODEL
    return 0


# ---- arguments ---------------------------------------------------------------------------------------------

cdef int64_t count(object value, str name) except? -1:
    """A number of tokens or nanoseconds; never a float, which C would truncate."""
    cdef int overflow = 0
    cdef int64_t result
    if not PyLong_Check(value) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name} must be int, not {type(value).__name__}")
    result = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        raise ArgumentError(f"{name} does not fit 64 bits")
    return result


cdef int64_t tokens_of(object value, str name) except -1:
    cdef int64_t result = count(value, name)
    if result < 0:
        raise ArgumentError(f"{name} must not be negative, got {result}")
    return result


cdef int check_pico(object pico) except -1:
    if not PyLong_Check(pico) or isinstance(pico, bool):
        raise ArgumentTypeError(f"pico must be int or None, not {type(pico).__name__}")
    return 0


def check_tokens(uncached, cached, cache_write, cache_write_1h, completion, reasoning):
    """Return whether no part is larger than its whole; see `PriceTable.cost()` for arguments and errors."""
    cdef Tokens tokens = Tokens(
        tokens_of(uncached, "uncached tokens"), tokens_of(cached, "cached tokens"),
        tokens_of(cache_write, "cache_write tokens"), tokens_of(cache_write_1h, "cache_write_1h tokens"),
        tokens_of(completion, "completion tokens"), tokens_of(reasoning, "reasoning tokens"),
    )
    return tokens_valid(&tokens)


# ---- the table ---------------------------------------------------------------------------------------------

@cython.final
cdef class PriceTable:
    """PriceTable(data)\n--\n\nA price table out of its bytes.

    Args:
        data: What `picostep.prices.compile` made. It is copied.

    Raises:
        PriceTableError: The bytes are not a table, are of another version, damaged, or inconsistent.

    Attributes:
        id: 12 hex digits that name the content; stored with each cost.

        source: Where the prices come from, for example `"genai-prices 0.2.3"`.

        size: Bytes in memory, without the cache of names.

        variants: Names of the price variants, "standard" first.

    Thread-safety: any number of threads may use one table.
    """

    def __init__(self, bytes data not None):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        cdef const unsigned char *p = <const unsigned char *>PyBytes_AS_STRING(data)
        cdef Prices prices
        cdef int64_t fixed
        memset(&prices, 0, sizeof(Prices))
        if self.memory != NULL:
            raise TypeError("a price table cannot be loaded twice")
        if size < HEADER or data[:8] != MAGIC:
            damaged("not a price table of picostep")
        if u32(p + 8) != VERSION:
            damaged(f"version {u32(p + 8)}, this picostep reads version {VERSION}")
        if size > MAX_TABLE or u32(p + 28) != <uint64_t>size:
            damaged(f"{u32(p + 28)} bytes long by its header, but there are {size}")
        if digest(data) != data[DIGEST:DIGEST + 16]:
            damaged("damaged (its checksum does not match)")
        prices.n_rows, prices.n_slots = i32(p + 12), i32(p + 16)
        prices.n_tracks, prices.n_models = i32(p + 20), i32(p + 24)
        if prices.n_rows < 1 or prices.n_slots < 1 or prices.n_tracks < 1 or prices.n_models < 1:
            damaged("empty")
        fixed = <int64_t>prices.n_rows * ROW + <int64_t>prices.n_slots * SLOT
        fixed += <int64_t>prices.n_tracks * TRACK + <int64_t>prices.n_models * MODEL
        if fixed > size - HEADER:
            damaged("shorter than what its header announces")
        self.load(prices, fixed, p + HEADER)
        self._names = data[HEADER + fixed:]
        self.id = data[DIGEST:DIGEST + 6].hex()
        self.size = <int>fixed + PyBytes_GET_SIZE(self._names)
        self._by_provider = {}
        self._resolver = None
        self.read_head()

    cdef int load(self, Prices prices, int64_t fixed, const unsigned char *p) except -1:
        cdef uintptr_t start
        self.memory = PyMem_Malloc(<size_t>fixed + 63)
        if self.memory == NULL:
            raise MemoryError
        start = (<uintptr_t>self.memory + 63) & ~<uintptr_t>63      # a row is one cache line
        prices.rows = <PriceRow *>start
        prices.slots = <PriceSlot *>(prices.rows + prices.n_rows)
        prices.tracks = <PriceTrack *>(prices.slots + prices.n_slots)
        prices.models = <PriceModel *>(prices.tracks + prices.n_tracks)
        read_rows(prices.rows, prices.n_rows, p)
        p += <size_t>prices.n_rows * ROW
        read_slots(prices.slots, prices.n_slots, prices.n_rows, p)
        p += <size_t>prices.n_slots * SLOT
        read_tracks(prices.tracks, prices.n_tracks, prices.slots, prices.n_slots, p)
        p += <size_t>prices.n_tracks * TRACK
        read_models(prices.models, prices.n_models, prices.tracks, prices.n_tracks, p)
        self.prices = prices
        return 0

    cdef int read_head(self) except -1:
        """The first record of the names: where the prices come from, and the names of the variants."""
        cdef int32_t i
        try:
            source, _, names = self._names.partition(b"\x1e")[0].decode().partition("\n")
        except UnicodeDecodeError:
            damaged("its names are not UTF-8")
        self.source = source
        self.variants = tuple(names.split("\t"))
        if self.variants[:2] != ("standard", "default"):
            damaged("its variants have no names")
        for i in range(self.prices.n_tracks):
            if self.prices.tracks[i].variant >= len(self.variants):
                damaged(f"track {i} is of a variant without a name")
        self._variant_of = {name.lower(): number for number, name in enumerate(self.variants)}
        self._variant_of["on_demand"] = VARIANT_STANDARD    # Groq's word for it
        return 0

    def __dealloc__(self):
        PyMem_Free(self.memory)

    def __reduce__(self):
        raise TypeError("a price table is not pickled: load it where it is needed")

    def __repr__(self):
        return f"<PriceTable {self.id}: {self.source}, {self.prices.n_models} models>"

    def __len__(self):
        """Models in the table; those that one provider resells for another count for both."""
        return self.prices.n_models

    # -- names

    cdef int cached(self, object model, object provider) except? -4:
        """The answer to a name that was asked for before, else NOT_CACHED. Exact str (provider: or None)."""
        cdef dict models = self._by_provider.get(provider)
        if models is None:
            return NOT_CACHED
        found = models.get(model)
        return NOT_CACHED if found is None else <int>found

    @cython.critical_section
    cdef int look_up(self, object model, object provider) except? -4:
        """A model index, NO_MODEL or NO_PROVIDER."""
        cdef int found
        if not PyUnicode_CheckExact(model):
            model = exact_text(model)
        if provider is not None and not PyUnicode_CheckExact(provider):
            provider = exact_text(provider)
        found = self.cached(model, provider)
        if found == NOT_CACHED:
            found = self.resolve(model, provider)
            if len(model) <= MAX_NAME and (provider is None or len(provider) <= MAX_NAME):
                if self._cached >= MAX_CACHED:
                    self._by_provider.clear()
                    self._cached = 0
                (<dict>self._by_provider.setdefault(provider, {}))[model] = found
                self._cached += 1
        return found

    cdef int resolve(self, str model, str provider) except? -4:
        cdef int found = self.resolver().resolve(model, provider)
        if not -2 <= found < self.prices.n_models:
            damaged("its names do not belong to its models")
        return found

    cdef object resolver(self):
        if self._resolver is None:
            from picostep.prices.resolve import Resolver

            self._resolver = Resolver(self._names, self.free())
        return self._resolver

    cdef bytes free(self):
        """A byte for each model: 1 if its standard price is, and always was, nothing."""
        cdef int32_t i, k
        cdef const PriceTrack *track
        cdef bytearray free = bytearray(self.prices.n_models)
        for i in range(self.prices.n_models):
            track = self.prices.tracks + self.prices.models[i].track
            free[i] = 1
            for k in range(track.slot, track.slot + track.slots):
                if not self.prices.slots[k].flags & SLOT_FREE:
                    free[i] = 0
        return bytes(free)

    def find(self, model, provider=None):
        """Find a model by name.

        Args:
            model: The model as it was called, or as the response named it. str.

            provider: Who served it, in a spelling of docs/reference/prices.md; None: the name says it.

        Returns:
            The index of the model, at least 0. -1: the model is not known. -2: the provider is not known.

        Raises:
            ArgumentTypeError: One of them is not str.
        """
        if not PyUnicode_Check(model):
            raise ArgumentTypeError(f"model must be str, not {type(model).__name__}")
        if provider is not None and not PyUnicode_Check(provider):
            raise ArgumentTypeError(f"provider must be str or None, not {type(provider).__name__}")
        return self.look_up(model, provider)

    def variant(self, service_tier=None):
        """Return the number of a service tier for `cost()`: 0 is the standard, -1 one that is not known."""
        if service_tier is None:
            return VARIANT_STANDARD
        if not PyUnicode_Check(service_tier):
            raise ArgumentTypeError(f"service_tier must be str or None, not {type(service_tier).__name__}")
        return self._variant_of.get(service_tier.lower(), VARIANT_UNKNOWN)

    def name(self, index):
        """Return `(provider, model, via)` of a model; `via` is the provider whose price is used."""
        return self.resolver().name(self.checked(index))

    def check(self):
        """Read all the names.

        A table is usable without: names are read as they are needed.

        Raises:
            PriceTableError: A rule cannot be read, or the names do not belong to the models.
        """
        self.resolver().check()

    # -- prices

    cdef int checked(self, object index) except -1:
        cdef int64_t i = count(index, "index")
        if not 0 <= i < self.prices.n_models:
            raise ArgumentError(f"index must be from 0 to {self.prices.n_models - 1}, got {i}")
        return <int>i

    def cost(
        self, index, start_ns, variant=0, uncached=0, cached=0, cache_write=0, cache_write_1h=0, completion=0,
        reasoning=0,
    ):
        """Return what a step cost.

        Args:
            index: Of `find()`, at least 0.

            start_ns: When the step began, Unix nanoseconds UTC.

            variant: Of `variant()`.

            uncached: Prompt tokens neither read from nor written to a cache.

            cached: Prompt tokens read from a cache.

            cache_write: Prompt tokens written to a cache, and in neither of the two above.

            cache_write_1h: Those of `cache_write` that live for an hour.

            completion: Tokens generated, reasoning included.

            reasoning: Those of `completion` that are reasoning.

        Raises:
            ArgumentTypeError: A number is not an int.

            ArgumentError: A count is negative, a number does not fit 64 bits, or there is no such model.
        """
        cdef Tokens tokens = Tokens(
            tokens_of(uncached, "uncached tokens"), tokens_of(cached, "cached tokens"),
            tokens_of(cache_write, "cache_write tokens"), tokens_of(cache_write_1h, "cache_write_1h tokens"),
            tokens_of(completion, "completion tokens"), tokens_of(reasoning, "reasoning tokens"),
        )
        return self.priced(
            self.checked(index), count(start_ns, "start_ns"),
            <int>max(-1, min(count(variant, "variant"), 65536)), &tokens,
        )

    def price(
        self, model, start_ns, provider, service_tier, uncached, cached, cache_write, cache_write_1h,
        completion, reasoning,
    ):
        """Return what a step cost by the names of its model, provider and service tier.

        Args:
            model, provider: As for `find()`; None is not known.

            service_tier: As for `variant()`.

            others: As for `cost()`.

        Raises:
            ArgumentTypeError, ArgumentError: As for `cost()` and `find()`.
        """
        cdef Tokens tokens = Tokens(
            tokens_of(uncached, "uncached tokens"), tokens_of(cached, "cached tokens"),
            tokens_of(cache_write, "cache_write tokens"), tokens_of(cache_write_1h, "cache_write_1h tokens"),
            tokens_of(completion, "completion tokens"), tokens_of(reasoning, "reasoning tokens"),
        )
        cdef int index = NO_MODEL if model is None else self.find(model, provider)
        if index < 0:
            return Cost(None, STATUSES[UNKNOWN_MODEL if index == NO_MODEL else UNKNOWN_PROVIDER], self.id)
        return self.priced(index, count(start_ns, "start_ns"), self.variant(service_tier), &tokens)

    cdef Cost priced(self, int32_t index, int64_t start_ns, int variant, Tokens *tokens):
        cdef Cost cost = Cost.__new__(Cost)
        cost._model = index
        cost._variant = variant
        price(&self.prices, index, start_ns, variant, tokens, &cost._found)
        cost.table = self.id
        cost._row = self
        if cost._found.status == OVERFLOW:
            cost.pico = self.exact(&cost._found, tokens)
            cost._found.status = status_of(
                self.prices.slots[cost._found.slot].flags, self.falls_back(index, variant), tokens.completion)
        elif cost._found.status != UNSUPPORTED and cost._found.status != INVALID_USAGE:
            cost.pico = cost._found.pico
        cost.status = STATUSES[cost._found.status]
        return cost

    cdef bint falls_back(self, int32_t model, int variant):
        cdef bint fallback = False
        track_of(self.prices.models + model, self.prices.tracks, variant, &fallback)
        return fallback

    cdef object exact(self, Priced *found, const Tokens *tokens):
        """The cost in Python's ints, for what does not fit 64 bits."""
        cdef int32_t row = self.prices.slots[found.slot].row
        cdef int32_t next = self.prices.rows[row].next
        cdef PriceRow *rates
        total = <object>tokens.uncached + <object>tokens.cached + <object>tokens.cache_write
        while next >= 0 and total > <object>self.prices.rows[next].above:
            row = next
            next = self.prices.rows[row].next
        rates = self.prices.rows + row
        found.row = row
        return (
            <object>rates.request
            + <object>tokens.uncached * <object>rates.uncached
            + <object>tokens.cached * <object>rates.cached
            + <object>(tokens.cache_write - tokens.cache_write_1h) * <object>rates.cache_write
            + <object>tokens.cache_write_1h * <object>rates.cache_write_1h
            + <object>(tokens.completion - tokens.reasoning) * <object>rates.output
            + <object>tokens.reasoning * <object>rates.reasoning
        )

    def row(self, number):
        """Return a row: six rates in pico-dollars a token, a request's fee, `above`, the next tier's row."""
        cdef int64_t i = count(number, "number")
        cdef PriceRow *row
        if not 0 <= i < self.prices.n_rows:
            raise ArgumentError(f"number must be from 0 to {self.prices.n_rows - 1}, got {i}")
        row = self.prices.rows + i
        return (
            row.uncached, row.cached, row.cache_write, row.cache_write_1h, row.output, row.reasoning,
            row.request, row.above, row.next,
        )

    def slot(self, number):
        """Return a slot: `(day, second of day, row, flags)`; see `tracks()`."""
        cdef int64_t i = count(number, "number")
        cdef PriceSlot *slot
        if not 0 <= i < self.prices.n_slots:
            raise ArgumentError(f"number must be from 0 to {self.prices.n_slots - 1}, got {i}")
        slot = self.prices.slots + i
        return slot.day, slot.second, slot.row, slot.flags

    def tracks(self, index):
        """Return the prices of a model: `{variant: [(day, second of day, row, flags), …]}`, in order of time.

        `day` counts from 1970-01-01 UTC; the first one is -2**31.
        """
        cdef PriceModel *model = self.prices.models + self.checked(index)
        cdef PriceTrack *track
        cdef int32_t i, k
        result = {}
        for i in range(model.track, model.track + model.tracks):
            track = self.prices.tracks + i
            result[self.variants[track.variant]] = [
                self.slot(k) for k in range(track.slot, track.slot + track.slots)
            ]
        return result

    def counts(self):
        """Return how much there is of everything: rows, slots, tracks, models."""
        return {
            "rows": self.prices.n_rows,
            "slots": self.prices.n_slots,
            "tracks": self.prices.n_tracks,
            "models": self.prices.n_models,
        }


# ---- what a step cost --------------------------------------------------------------------------------------

@cython.final
@cython.no_gc       # holds an int, texts and at most a table, which knows nothing of costs: no cycles
cdef class Cost:
    """Cost(pico, status, table="", row="")\n--\n\nWhat a step cost, exactly, and how sure that is.

    Attributes:
        pico: The cost in pico-dollars (1e-12 USD); None if it is not known. Never 0 for want of a price.

        status: One of `picostep.prices.STATUSES`.

        table: The id of the price table, or of the overrides, that was used; "" for none.

        row: A line for people: which price it was.

        usd: The cost in US dollars as an exact Decimal, or None.

        place: `(model, variant, slot, row)`, numbers in the table; None if it was not the table that priced.

    Immutable; two are equal if all four are.
    """

    def __init__(self, pico, str status not None, str table not None="", str row not None=""):
        if self.status is not None:
            raise TypeError("a cost cannot be changed")
        if pico is not None:
            check_pico(pico)
        if status not in STATUSES:
            raise ArgumentError(f"status must be one of {', '.join(STATUSES)}; got {status!r}")
        self.pico = pico
        self.status = status
        self.table = table
        self._row = row

    @property
    def usd(self):
        if self.pico is None:
            return None
        return usd(self.pico)

    @property
    def row(self):
        if isinstance(self._row, PriceTable):
            from picostep.prices.explanation import row_text

            return row_text(self._row, self.place)
        return self._row or ""

    @property
    def place(self):
        if isinstance(self._row, PriceTable):
            return self._model, self._variant, self._found.slot, self._found.row
        return None

    def _fields(self):
        return self.pico, self.status, self.table, self.row

    def __eq__(self, other):
        if not isinstance(other, Cost):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self):
        return hash(self._fields())

    def __repr__(self):
        return f"Cost(pico={self.pico}, status={self.status!r}, table={self.table!r}, row={self.row!r})"

    def __reduce__(self):
        return Cost, self._fields()


cdef object Decimal = None      # imported when it is needed first


cpdef object usd(object pico):
    """Return pico-dollars in US dollars, as an exact Decimal."""
    global Decimal
    if Decimal is None:
        from decimal import Decimal
    return Decimal(f"{pico}E-12")   # a constructor is exact, whatever the context's precision


@cython.final
@cython.no_gc
cdef class CostSum:
    """CostSum()\n--\n\nA sum of costs that neither drifts nor overflows.

    Attributes:
        pico: The sum in pico-dollars, int.

        usd: The sum in US dollars as an exact Decimal.

        priced: Costs that were added.

        unpriced: Steps without a price that were added; as long as there are any, the sum is a lower bound.

    Thread-safety: `add()` may be called from any number of threads.
    """

    def __cinit__(self):
        self._big = 0

    cdef void add_pico(self, int64_t pico) noexcept:
        cdef uint64_t before = self._low
        self._low += <uint64_t>pico
        self._high += (-1 if pico < 0 else 0) + (1 if self._low < before else 0)
        self.priced += 1

    @cython.critical_section
    def add(self, pico):
        """Add a cost in pico-dollars; None counts as a step without a price. Returns the sum itself.

        Raises:
            ArgumentTypeError: It is neither an int nor None.
        """
        cdef int overflow = 0
        cdef int64_t value
        if pico is None:
            self.unpriced += 1
            return self
        check_pico(pico)
        value = PyLong_AsLongLongAndOverflow(pico, &overflow)
        if overflow:
            self._big += int(pico)
            self.priced += 1
        else:
            self.add_pico(value)
        return self

    @property
    def pico(self):
        return (<object>self._high << 64) + <object>self._low + self._big

    @property
    def usd(self):
        return usd(self.pico)

    def __repr__(self):
        return f"CostSum(pico={self.pico}, priced={self.priced}, unpriced={self.unpriced})"

    def __reduce__(self):
        raise TypeError("a sum is not pickled: send its numbers")

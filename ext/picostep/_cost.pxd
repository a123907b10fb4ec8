# Prices and the arithmetic of one step, in integers. Rates are pico-dollars (1e-12 USD) a token.
#
# The hot path is here, inline and without Python objects; loading, names and error texts are in the .pyx.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef PICOSTEP_CHECKED_H
    #define PICOSTEP_CHECKED_H
    /* *sum += a and *sum += a * b, for operands and sums >= 0. Not 0 when the result does not fit: then *sum
     * is worthless. */
    #if defined(__GNUC__) || defined(__clang__)
    static inline int picostep_add(int64_t *sum, int64_t a) { return __builtin_add_overflow(*sum, a, sum); }
    static inline int picostep_add_product(int64_t *sum, int64_t a, int64_t b) {
        int64_t product;
        return __builtin_mul_overflow(a, b, &product) | __builtin_add_overflow(*sum, product, sum);
    }
    #else
    static inline int picostep_add(int64_t *sum, int64_t a) {
        if (a > INT64_MAX - *sum) return 1;
        *sum += a;
        return 0;
    }
    static inline int picostep_add_product(int64_t *sum, int64_t a, int64_t b) {
        if (((a | b) >> 31) != 0 && b != 0 && a > INT64_MAX / b) return 1;
        return picostep_add(sum, a * b);
    }
    #endif
    #endif
    """
    int checked_add "picostep_add"(int64_t *sum, int64_t a) noexcept nogil
    int checked_add_product "picostep_add_product"(int64_t *sum, int64_t a, int64_t b) noexcept nogil

# One cache line. What a source leaves out is filled in: a missing cache rate is the input rate.
cdef struct PriceRow:
    int64_t uncached
    int64_t cached
    int64_t cache_write
    int64_t cache_write_1h
    int64_t output
    int64_t reasoning
    int64_t request         # pico-dollars a request
    int32_t above           # of a tier: it holds when the total input is larger; -1: a base row
    int32_t next            # the next higher tier, always at a lower index; -1: none

cdef struct PriceSlot:      # from when a row holds; ascending in a track, and a day begins with second 0
    int32_t day             # since 1970-01-01 UTC; INT32_MIN: from the beginning
    int32_t second          # of each of these days, UTC
    int32_t row
    uint32_t flags          # SLOT_*

cdef enum:
    SLOT_FREE = 1           # the source lists the model without any price
    SLOT_UNSUPPORTED = 2    # priced by something else than tokens (audio hours, pages …)
    SLOT_NO_OUTPUT = 4      # no output price: an embedding model, or an omission
    SLOT_STANDARD = 8       # in the track of a variant that does not hold then: this is the standard price
    SLOT_QUANTISED = 16     # a rate was rounded to a whole pico-dollar
    SLOT_MORE_UNITS = 32    # it has prices for audio, images, searches … too, for which a step has no counts

cdef struct PriceTrack:     # the prices of one variant of one model
    int32_t slot
    uint16_t slots
    uint16_t variant        # VARIANT_*, or any larger number: its place in the list of names

cdef struct PriceModel:     # tracks ascending by variant; the first one is the standard
    int32_t track
    int32_t tracks

cdef enum:
    VARIANT_STANDARD = 0
    VARIANT_DEFAULT = 1     # what OpenAI calls the standard in its responses
    VARIANT_UNKNOWN = -1    # a service tier of which the table has never heard

cdef struct Tokens:         # disjoint, but for the two "of which"; all >= 0
    int64_t uncached
    int64_t cached
    int64_t cache_write
    int64_t cache_write_1h  # of which live for an hour
    int64_t completion
    int64_t reasoning       # of which reasoning

# What became of a price. The texts are in STATUSES, in this order; the numbers may be stored.
cdef enum Status:
    PRICED = 0
    USER = 1
    OVERRIDE = 2
    FREE = 3
    UNKNOWN_MODEL = 4
    UNKNOWN_PROVIDER = 5
    VARIANT_FALLBACK = 6
    NO_OUTPUT_PRICE = 7
    UNSUPPORTED = 8
    INVALID_USAGE = 9
    NO_USAGE = 10           # no token was counted, so there is nothing to price
    OVERFLOW = 11           # never seen from Python: there the exact cost is an int

cdef enum:
    NO_MODEL = -1
    NO_PROVIDER = -2
    NOT_CACHED = -3

cdef enum:
    NS_PER_SECOND = 1000000000
    SECONDS_PER_DAY = 86400
    FOREVER = -2147483648   # the day of a slot that holds from the beginning


cdef inline bint tokens_valid(const Tokens *tokens) noexcept nogil:
    return (tokens.uncached | tokens.cached | tokens.cache_write | tokens.cache_write_1h | tokens.completion
            | tokens.reasoning) >= 0 and tokens.cache_write_1h <= tokens.cache_write \
        and tokens.reasoning <= tokens.completion


cdef inline int total_input(const Tokens *tokens, int64_t *total) noexcept nogil:
    """The prompt as a whole, which chooses the tier; not 0 when it does not fit."""
    total[0] = tokens.uncached
    return checked_add(total, tokens.cached) | checked_add(total, tokens.cache_write)


cdef inline int32_t tier_of(const PriceRow *rows, int32_t row, int64_t total) noexcept nogil:
    """The row whose rates hold for all tokens of a prompt of this length."""
    cdef int32_t next = rows[row].next
    while next >= 0 and total > rows[next].above:
        row = next
        next = rows[row].next
    return row


cdef inline int row_cost(const PriceRow *row, const Tokens *tokens, int64_t *pico) noexcept nogil:
    """The cost by the rates of this row; not 0 when it does not fit."""
    pico[0] = row.request
    return (
        checked_add_product(pico, tokens.uncached, row.uncached)
        | checked_add_product(pico, tokens.cached, row.cached)
        | checked_add_product(pico, tokens.cache_write - tokens.cache_write_1h, row.cache_write)
        | checked_add_product(pico, tokens.cache_write_1h, row.cache_write_1h)
        | checked_add_product(pico, tokens.completion - tokens.reasoning, row.output)
        | checked_add_product(pico, tokens.reasoning, row.reasoning)
    )


cdef inline const PriceSlot *slot_at(const PriceSlot *slots, int32_t n, int64_t start_ns) noexcept nogil:
    """The slot that holds at a time; n >= 1, and the first slot holds from the beginning."""
    cdef int64_t seconds, day
    cdef int32_t second
    if n == 1:
        return slots
    seconds = start_ns // NS_PER_SECOND
    day = seconds // SECONDS_PER_DAY
    second = <int32_t>(seconds - day * SECONDS_PER_DAY)
    while n > 1 and (slots[n - 1].day > day or slots[n - 1].second > second):
        n -= 1
    return slots + (n - 1)


cdef inline const PriceTrack *track_of(
    const PriceModel *model, const PriceTrack *tracks, int variant, bint *fallback
) noexcept nogil:
    """The track of a variant, or the standard one; `fallback`: its price may be another one."""
    cdef int32_t i
    fallback[0] = False
    if variant == VARIANT_STANDARD:
        return tracks + model.track
    for i in range(model.track + 1, model.track + model.tracks):
        if tracks[i].variant == variant:
            return tracks + i
    fallback[0] = variant != VARIANT_DEFAULT
    return tracks + model.track


cdef struct Priced:         # where a cost came from
    int status              # of Status
    int32_t row
    int32_t slot
    int64_t pico            # with PRICED, FREE, VARIANT_FALLBACK and NO_OUTPUT_PRICE


cdef struct Prices:         # the table's memory; all indices in it were checked when it was loaded
    PriceRow *rows
    PriceSlot *slots
    PriceTrack *tracks
    PriceModel *models
    int32_t n_rows
    int32_t n_slots
    int32_t n_tracks
    int32_t n_models


cdef inline void price(
    const Prices *prices, int32_t model, int64_t start_ns, int variant, const Tokens *tokens, Priced *found
) noexcept nogil:
    """What a step cost. `model` is an index of `find()`, at least 0; `start_ns` is Unix time."""
    cdef bint fallback = False
    cdef const PriceTrack *track = track_of(prices.models + model, prices.tracks, variant, &fallback)
    cdef const PriceSlot *slot = slot_at(prices.slots + track.slot, track.slots, start_ns)
    cdef int64_t total = 0
    cdef int overflow
    found.pico = 0
    found.slot = <int32_t>(slot - prices.slots)
    found.row = slot.row
    if not tokens_valid(tokens):
        found.status = INVALID_USAGE
        return
    overflow = total_input(tokens, &total)
    found.row = tier_of(prices.rows, slot.row, total)
    overflow |= row_cost(prices.rows + found.row, tokens, &found.pico)
    if slot.flags & SLOT_UNSUPPORTED:
        found.status = UNSUPPORTED
    elif slot.flags & SLOT_FREE:
        found.status = FREE
    elif overflow:
        found.status = OVERFLOW
    else:
        found.status = status_of(slot.flags, fallback, tokens.completion)


cdef inline int status_of(uint32_t flags, bint fallback, int64_t completion) noexcept nogil:
    """How sure a cost is that could be computed."""
    if flags & SLOT_NO_OUTPUT and completion > 0:
        return NO_OUTPUT_PRICE
    if fallback or flags & SLOT_STANDARD:
        return VARIANT_FALLBACK
    return PRICED


cdef class Cost


cdef class PriceTable:
    cdef Prices prices
    cdef void *memory               # of prices
    cdef readonly str id
    cdef readonly str source
    cdef readonly int size
    cdef readonly tuple variants    # names, by number
    cdef bytes _names
    cdef object _resolver
    cdef dict _variant_of           # service tier -> number
    cdef dict _by_provider          # provider -> {model -> index}
    cdef Py_ssize_t _cached

    # Without the GIL, callers of cached() must hold the table's critical section; look_up() takes it itself.
    cdef int cached(self, object model, object provider) except? -4
    cdef int look_up(self, object model, object provider) except? -4
    cdef int checked(self, object index) except -1
    cdef Cost priced(self, int32_t index, int64_t start_ns, int variant, Tokens *tokens)
    cdef object exact(self, Priced *found, const Tokens *tokens)
    cdef bint falls_back(self, int32_t model, int variant)
    cdef bytes free(self)
    cdef int resolve(self, str model, str provider) except? -4
    cdef object resolver(self)
    cdef int load(self, Prices prices, int64_t fixed, const unsigned char *p) except -1
    cdef int read_head(self) except -1


cdef class Cost:
    cdef readonly object pico       # int or None
    cdef readonly str status
    cdef readonly str table
    cdef object _row                # text, or the table that can describe _found
    cdef int32_t _model
    cdef int _variant
    cdef Priced _found


cdef class CostSum:
    cdef int64_t _high              # 128 bits, two's complement
    cdef uint64_t _low
    cdef object _big                # what did not fit 64 bits; an int
    cdef readonly int64_t priced
    cdef readonly int64_t unpriced

    cdef void add_pico(self, int64_t pico) noexcept

# The ring's map: what lies in the file, and what the host keeps of it.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from picostep._clock cimport Clock
from picostep._ids cimport IdPool

cdef extern from "_sys.h" nogil:
    ctypedef struct ps_mutex:
        pass

cdef enum:
    MAX_DESTINATIONS = 64
    TEXTS = 13              # kinds of texts that this version records …
    MAX_TEXTS = 32          # … and that a frame can have
    COUNTS = 6              # kinds of counts that this version records …
    COMMON_COUNTS = 3       # … of which every record has room for these …
    MAX_COUNTS = 32         # … and that a frame can have
    LAST_ERROR = 512
    LAST_ERROR_2 = 64
    MAX_SLOTS = 4096        # runs that one ring can keep track of …
    SLOTS_32 = 128          # … a bit each

# ---- the file: one page of header, `capacity` bytes of frames, the table of open runs ----------------------

cdef struct Outcome:        # what became of the records; 128 bytes
    uint64_t tail           # end of the last released frame: the space before it is free
    uint64_t settled        # everything before it is delivered to all sinks, or dropped
    uint64_t released       # records before tail = delivered + in_spool + what was dropped
    uint64_t delivered
    uint64_t in_spool       # wait on disk for a sink
    uint64_t encode_error
    uint64_t rejected
    uint64_t corrupt
    uint64_t expired
    uint64_t unsynced       # of in_spool: power loss would take them
    uint64_t withheld       # of released: with a text withheld, as its redaction failed
    uint64_t torn           # never accepted: the host died inside end()
    uint64_t _pad[4]

cdef struct Header:
    # Written once.
    uint64_t magic
    uint32_t version
    uint32_t byte_order
    uint64_t capacity       # bytes of data the file was made for
    uint64_t nonce          # secret of this ring: no text that a user hands over can look like a frame
    int64_t created_ns      # Unix time
    int64_t pid             # for people; liveness is the lock on the file
    uint64_t slots          # of the table, those that were ever in use; 0: no run of this host is reported
    uint64_t _pad0
    # Written by the host.
    uint64_t limit          # bytes of data in use; below capacity only when the file system had no more
    uint64_t ready          # bytes of data that have their space
    uint64_t head           # end of the last committed frame
    uint64_t accepted       # records in the ring, ever
    uint64_t shed           # of these: without bodies, as the ring was filling up
    uint64_t shortened      # of these: with a text cut, as the record was too large
    uint64_t ring_full      # records that found no room
    uint64_t untracked      # runs that found no slot
    # Written by the exporter: outcome[turn & 1] counts. The other one is written whole before `turn` moves
    # on, so an exporter that is killed at any moment leaves numbers that belong together.
    uint64_t turn
    uint64_t _pad2[7]
    Outcome outcome[2]
    char last_error[512]    # LAST_ERROR; ASCII, NUL-terminated; of a host of version 2 LAST_ERROR_2 bytes

cdef struct Frame:
    # nonce + position: written last, makes the frame visible; ~(nonce + position): go on at offset 0
    uint64_t commit
    uint32_t size           # whole frame, a multiple of 8
    uint8_t kind            # KIND_*
    uint8_t texts           # number of Text entries after the record
    uint16_t flags          # FRAME_*
    uint64_t seq            # 0, 1, 2 … in this ring; of an image: 1, 2, 3 … in its slot

cdef struct Text:           # one for each; the texts themselves follow all entries, each padded to 8 bytes
    uint8_t slot
    uint8_t width           # bytes per character, as CPython holds it: 1, 2 or 4
    uint8_t encoding        # AS_*
    uint8_t _pad
    uint32_t size           # bytes
    uint64_t chars          # characters that were handed over; more than size / width when shortened

cdef enum:                  # The table: slots of two images each. An image is a frame, and never a record.
    IMAGE_SIZE = 1024
    IMAGE_WORDS = 128
    SLOT_SIZE = 2048
    SLOT_WORDS = 256

# The fixed part of every record. After it come the counts beyond the common ones, up to the last one that is
# set, 8 bytes each.
cdef struct Record:
    int64_t start_ns        # Unix time; before end(), monotonic unless START_GIVEN
    int64_t end_ns
    int64_t first_token_ns  # 0: none
    int64_t status_code
    double cost             # valid with COST_FLOAT
    uint8_t run_uuid[16]    # valid with RUN_UUID, else the id is a text
    uint8_t own_uuid[16]    # valid with OWN_UUID
    uint8_t parent_uuid[16]     # reserved; valid with PARENT_UUID, else the id is the text PARENT_ID, if any
    uint32_t flags
    uint32_t has_counts     # bit per count, whose word is valid with it: *_TOKENS and the like
    uint8_t kind
    uint8_t operation       # reserved: 0 is chat, others for embeddings and the like
    uint8_t cost_source     # reserved: who reported STEP_REPORTED_COST
    uint8_t _pad
    uint32_t attempts       # reserved: how often a client asked; 0: not known
    int64_t counts[COMMON_COUNTS]

# Frames of version 2 have this instead, and after it their texts. The first four words are the same.
cdef struct Record2:
    int64_t start_ns
    int64_t end_ns
    int64_t first_token_ns
    int64_t status_code
    int64_t counts[6]       # those of which has_counts has the bit
    double cost
    uint8_t run_uuid[16]
    uint8_t own_uuid[16]
    uint16_t flags
    uint16_t _json
    uint16_t _present
    uint8_t has_counts
    uint8_t kind

# A frame may have what is reserved here: a later host of the same version may set it. A reader skips texts,
# encodings, counts and flags that it does not know, and keeps the record.
cdef enum:
    KIND_STEP = 1
    KIND_RUN = 2
    KIND_TOOL_CALL = 3
    KIND_FEEDBACK = 4

cdef enum:
    FRAME_SHED = 1
    FRAME_SHORTENED = 2

cdef enum:
    RUN_UUID = 1
    OWN_UUID = 2
    COST_FLOAT = 4
    CONVERSATIONAL = 8      # the run says whether it is conversational …
    IS_CONVERSATIONAL = 16  # … and it is
    START_GIVEN = 32
    # Reserved.
    PARENT_UUID = 64
    CANCELLED = 128         # whoever waited for it went away
    NO_RUN = 256            # a step of its own: its run's id is made up
    AMBIGUOUS_USAGE = 512   # counts of doubtful meaning were left out
    CLAMPED_USAGE = 1024    # a part that was larger than the whole was cut
    UNKNOWN_USAGE = 2048    # nothing could be read of what was given

cdef enum:                  # how a text is kept
    AS_TEXT = 0             # characters, as CPython holds them
    AS_JSON = 1             # the same, and they are the JSON of a dict or list
    # Reserved; of width 1.
    AS_BYTES = 2            # as they were given: UTF-8, perhaps JSON
    AS_EVENTS = 3           # the raw events of a stream, one after the other

# Counts. Their names in a record, as those of the texts below, are in record.py, by these numbers.
cdef enum:
    PROMPT_UNCACHED_TOKENS = 0
    PROMPT_CACHED_TOKENS = 1
    COMPLETION_TOKENS = 2
    CACHE_WRITE_TOKENS = 3
    CACHE_WRITE_1H_TOKENS = 4   # of which live for an hour
    REASONING_TOKENS = 5        # a part of completion
    # Reserved.
    AUDIO_INPUT_TOKENS = 6
    AUDIO_CACHED_TOKENS = 7
    AUDIO_OUTPUT_TOKENS = 8
    IMAGE_INPUT_TOKENS = 9
    IMAGE_OUTPUT_TOKENS = 10
    SEARCHES = 11
    QUEUE_NS = 12
    PREFILL_NS = 13
    DECODE_NS = 14

# Texts. 0 and 1 are ids in every kind; 8, 12 and 13 are the same in every kind that has them.
cdef enum:
    RUN_ID = 0
    OWN_ID = 1
    STATUS_MESSAGE = 8
    TRACEPARENT = 12        # of the caller's span, as parse_traceparent() writes it
    PARENT_ID = 13          # reserved: of the step of a tool call, the outer run of a run

cdef enum:
    STEP_PROMPT = 2
    STEP_RESPONSE = 3
    STEP_TOOL_DEFINITIONS = 4
    STEP_MODEL_REQUESTED = 5
    STEP_MODEL_USED = 6
    STEP_FINISH_REASON = 7
    STEP_REAL_TOTAL_COST = 9    # decimal text of an int or Decimal
    STEP_PROVIDER = 10
    STEP_SERVICE_TIER = 11
    # Reserved.
    STEP_REGION = 14
    STEP_SPEED = 15
    STEP_REPORTED_COST = 16     # decimal text of what the provider says it charged
    STEP_METADATA = 17

cdef enum:
    RUN_SESSION_ID = 1      # a run has no second id
    RUN_USER_PROMPT = 2
    RUN_RESPONSE = 3
    RUN_SYSTEM_PROMPT = 4
    RUN_FULL_INPUT = 5
    RUN_FULL_OUTPUT = 6
    RUN_METADATA = 7
    # Reserved.
    RUN_AGENT = 14
    RUN_USER_ID = 15

cdef enum:
    TOOL_CALL_ARGS = 2
    TOOL_CALL_RESULT = 3
    TOOL_CALL_TOOL_NAME = 4

cdef enum:
    FEEDBACK_SCORE = 2
    FEEDBACK_TEXT = 3

# ---- the host's side ---------------------------------------------------------------------------------------

cdef struct Ring:
    Header *header          # NULL in a forked child: this ring is the parent's
    uint8_t *data
    uint64_t head
    uint64_t offset         # of head within the data
    uint64_t tail           # as last seen
    uint64_t limit
    uint64_t seq
    uint64_t nonce
    uint64_t map_size
    int fd                  # -1: private memory
    uint32_t number         # 1, 2, 3 … in this process and its children, in the order of install()
    uint8_t *table
    uint32_t slots          # that the table can have; 0 when no run is to be tracked any more
    uint32_t slots_ready    # that have their space
    uint32_t slots_from     # no lower word of slots_free has a bit
    uint32_t slots_free[SLOTS_32]
    ps_mutex lock
    Ring *next              # all rings of this process, for the handler of fork()

cdef struct Host:           # what a process shares between its rooms
    Ring *ring[MAX_DESTINATIONS + 1]    # the last is always NULL, for records that have no destination
    Ring *all
    Clock clock
    IdPool ids
    ps_mutex lock           # of clock and ids
    uint64_t forks          # how many times this process image was forked
    uint64_t unrecorded     # records lost as there was no ring at all
    uint32_t rings          # that were ever installed

cdef Host *host

cdef struct Draft:          # a record that is being made
    Record record
    int64_t more[COUNTS - COMMON_COUNTS]    # the other counts: at once after the record
    uint32_t present        # bit per text
    uint32_t json           # bit per text: it is JSON
    PyObject *text[TEXTS]   # owned; NULL where `present` has no bit

cdef inline int64_t count_of(const Record *record, int number) noexcept nogil:
    """A count of a record that the others follow at once, as in a draft and in a frame."""
    if number < COMMON_COUNTS:
        return record.counts[number]
    return (<const int64_t *>(record + 1))[number - COMMON_COUNTS]

cdef void count_unrecorded() noexcept nogil
cdef int append(Ring *ring, const Draft *draft) noexcept
cdef uint32_t track(Ring *ring, const Draft *draft, int64_t start_ns, int64_t end_ns) noexcept
cdef void track_again(Ring *ring, uint32_t slot, const Draft *draft, int64_t start_ns,
                      int64_t end_ns) noexcept
cdef void untrack(Ring *ring, uint32_t slot) noexcept

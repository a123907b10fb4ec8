"""
The exporter: takes records out of rings, and brings each of them to every sink.

The way of a batch, and the modules it passes:

    rings in shared memory        one for each process, living or dead
              |
            rings                 found, adopted, removed
              |
            batch                 read, and not released yet
              |
            stages                redact, price, observe
              |
        +-----+--------------+
        |                    |
    sink_worker          sink_worker        one for each sink
        |                    |
    attempts             attempts           what does the answer mean?
        |                    |
    +---+---+            +---+---+
    |       |            |       |
   sink   spool         sink   spool        what is spooled is offered later, by attempts, too
    |       |            |       |
    +-------+-----+------+-------+
                  |
               ledger             where is each record: delivered, dropped, or spooled?
                  |
        counters of the rings     released, settled: what `flush()` waits for and `stats()` shows

`loop` turns all of this, `build` puts it together, and `process`, `thread` and `picostep export` run it.

    rings          finds the rings of a directory, adopts those of dead processes, removes empty ones
    ended_runs     remembers which runs have ended, so that no dead ring reports one of them again
    batch          holds records that were read until all sinks are through with them
    stages         says what happens to records before any sink gets them, and in which order
    redact         takes secrets and what the user names out of texts
    pricer         adds what each step cost
    sink_worker    works for one sink in a thread of its own: batches in order, then what waits in the spool
    attempts       decides what a sink's answer means: done, again later, in halves, or never
    dead_letters   keeps what a sink refused for good
    spool          queues on disk what a sink does not take now
    lanes          keeps the spools of several exporters of one sink apart, and takes over what is left
    segment        defines the files of a spool
    ledger         knows what was read of each ring and where it is, and tells the rings
    top_socket     answers `picostep top`

Only `top_socket` uses `picostep.metrics`, and loads it when it is asked first.
"""

/* Keeps an exporter process alive for one ring directory, from a thread that never needs the GIL.
 *
 * The thread waits for the directory's lock. When it gets it, no exporter runs there: it starts one and passes the locked
 * descriptor on, so the lock is never free in between. Then it waits for that process to end, and begins again. Many
 * hosts may wait for one lock; the kernel wakes them one by one. */
#ifndef PICOSTEP_KEEPER_H
#define PICOSTEP_KEEPER_H

#include <stddef.h>
#include <stdint.h>

typedef struct keeper keeper;

/* All texts and the config are copied. argv and env end with NULL. `failed` is called once, from the thread, when no
 * process can be started; the thread is over then. NULL: no memory. */
keeper *keeper_new(const char *lock_path, char *const *argv, char *const *env, const void *config, size_t config_size,
                   void (*failed)(void *arg), void *arg);
/* Starts the thread unless it runs. 0, or -1 when there can be no thread. */
int keeper_start(keeper *k);
/* From now on no exporter is started; the one that runs is left alone. */
void keeper_stop(keeper *k);
/* Pid of the exporter that this process started, 0 for none. */
long keeper_child(keeper *k);
/* How many exporters this process has started. */
unsigned long keeper_starts(keeper *k);

#endif

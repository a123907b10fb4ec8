#ifndef _GNU_SOURCE
#define _GNU_SOURCE         /* POSIX_SPAWN_SETSID */
#endif
#include "keeper.h"

#include <stdlib.h>
#include <string.h>

#ifdef _WIN32

keeper *keeper_new(const char *lock_path, char *const *argv, char *const *env, const void *config, size_t config_size,
                   void (*failed)(void *arg), void *arg) {
    (void)lock_path; (void)argv; (void)env; (void)config; (void)config_size; (void)failed; (void)arg;
    return NULL;
}
int keeper_start(keeper *k) { (void)k; return -1; }
void keeper_stop(keeper *k) { (void)k; }
long keeper_child(keeper *k) { (void)k; return 0; }
unsigned long keeper_starts(keeper *k) { (void)k; return 0; }

#else

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOCK_FD 3           /* where the exporter finds the locked descriptor */
#define CANNOT_START 3      /* its exit code when it runs but a sink cannot be opened: it may later */
#define QUICK_DEATH_S 5
#define QUICK_DEATHS 3

struct keeper {
    char *lock_path;
    char **argv;
    char **env;
    void *config;           /* holds the key: in memory only, and written to the exporter's pipe */
    size_t config_size;
    void (*failed)(void *);
    void *arg;
    atomic_int wanted;
    atomic_int lock_fd;     /* the lock while it is in our hands, -1 else: a forked child must close it */
    atomic_long child;
    atomic_ulong starts;
    pthread_mutex_t mutex;  /* of running */
    int running;
    struct keeper *next;
};

static struct keeper *keepers;
static pthread_once_t at_fork_once = PTHREAD_ONCE_INIT;

/* Held while a descriptor of the lock is open that lock_fd does not name: a child forked then could not close it, and the
 * directory would stay locked as long as that child lives. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) { pthread_mutex_lock(&gate); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&gate); }

static void after_fork_in_child(void) {
    pthread_mutex_unlock(&gate);
    for (struct keeper *k = keepers; k; k = k->next) {
        int fd = atomic_load(&k->lock_fd);
        if (fd >= 0) close(fd);
    }
    keepers = NULL;         /* the threads are the parent's; the child makes keepers of its own */
}

static void install_at_fork(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

static char **copy_list(char *const *list) {
    size_t n = 0;
    while (list[n]) n++;
    char **copy = calloc(n + 1, sizeof *copy);
    for (size_t i = 0; copy && i < n; i++)
        if (!(copy[i] = strdup(list[i]))) return NULL;
    return copy;
}

keeper *keeper_new(const char *lock_path, char *const *argv, char *const *env, const void *config, size_t config_size,
                   void (*failed)(void *arg), void *arg) {
    /* A keeper lives as long as its process, so what a failure in here leaves behind is not worth unwinding. */
    struct keeper *k = calloc(1, sizeof *k);
    if (!k) return NULL;
    k->lock_path = strdup(lock_path);
    k->argv = copy_list(argv);
    k->env = copy_list(env);
    k->config = malloc(config_size ? config_size : 1);
    if (!k->lock_path || !k->argv || !k->env || !k->config) return NULL;
    memcpy(k->config, config, config_size);
    k->config_size = config_size;
    k->failed = failed;
    k->arg = arg;
    atomic_store(&k->lock_fd, -1);
    pthread_mutex_init(&k->mutex, NULL);
    pthread_once(&at_fork_once, install_at_fork);
    k->next = keepers;
    keepers = k;
    return k;
}

static void pause_ms(struct keeper *k, long ms) {
    struct timespec tick = {0, 50 * 1000 * 1000};
    for (; ms > 0 && atomic_load(&k->wanted); ms -= 50) nanosleep(&tick, NULL);
}

/* A descriptor out of the way of 0 to 3, which the child gets anew. */
static int move_up(int fd) {
    if (fd < 0 || fd > LOCK_FD) return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, LOCK_FD + 1);
    close(fd);
    return moved;
}

static int make_pipe(int ends[2]) {
    if (pipe(ends)) return -1;
    ends[0] = move_up(ends[0]);
    ends[1] = move_up(ends[1]);
    if (ends[0] < 0 || ends[1] < 0) return -1;
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    return 0;
}

static void write_all(int fd, const char *from, size_t n) {
    while (n) {
        ssize_t k = write(fd, from, n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return; /* it died at once: waitpid tells */
        from += k;
        n -= (size_t)k;
    }
}

/* 0, or an errno. */
static int spawn(struct keeper *k, int lock_fd, pid_t *pid) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, defaults;
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    int ends[2], err;
    if (make_pipe(ends)) return errno;
#ifdef POSIX_SPAWN_SETSID
    flags |= POSIX_SPAWN_SETSID; /* Ctrl-C and the end of a terminal are for the host */
#endif
    sigemptyset(&none);
    sigfillset(&defaults);
    sigdelset(&defaults, SIGKILL);
    sigdelset(&defaults, SIGSTOP);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, flags);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &defaults);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
    /* Not the host's own: whoever waits for the end of its output must not wait for us. */
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, lock_fd, LOCK_FD);
    err = posix_spawn(pid, k->argv[0], &actions, &attr, k->argv, k->env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    close(ends[0]);
    if (!err) write_all(ends[1], k->config, k->config_size);
    close(ends[1]);
    return err;
}

static int open_lock(struct keeper *k) {
    pthread_mutex_lock(&gate);
    int fd = move_up(open(k->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    atomic_store(&k->lock_fd, fd);
    pthread_mutex_unlock(&gate);
    return fd;
}

static void close_lock(struct keeper *k, int fd) {
    pthread_mutex_lock(&gate);
    atomic_store(&k->lock_fd, -1);
    close(fd);
    pthread_mutex_unlock(&gate);
}

/* The lock's descriptor once it is ours, or -1 when nobody wants it any more. */
static int take_lock(struct keeper *k) {
    while (atomic_load(&k->wanted)) {
        int fd = open_lock(k);
        struct stat ours, there;
        if (fd < 0) {
            pause_ms(k, 1000); /* somebody removed the directory, or the process is out of descriptors */
            continue;
        }
        while (flock(fd, LOCK_EX) && errno == EINTR) {}
        /* The lock of a file that was removed meanwhile protects nothing. */
        if (atomic_load(&k->wanted) && fstat(fd, &ours) == 0 && stat(k->lock_path, &there) == 0 &&
            ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
            return fd;
        close_lock(k, fd);
    }
    return -1;
}

/* 1 to go on; 0 to go on after a pause that grows; -1 when it makes no sense. */
static int judge(int status, time_t lived, int *quick) {
    if (lived >= QUICK_DEATH_S || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        *quick = 0;
        return 1;
    }
    *quick += 1;
    /* Killed, or by something that it read: a thread of this process must not meet that. SIGSYS: a sandbox wants no exporter. */
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGSYS) return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT_START) return 0;
    return *quick < QUICK_DEATHS ? 0 : -1;
}

static time_t seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

static void *keep(void *arg) {
    struct keeper *k = arg;
    int quick = 0, verdict = 1;
    while (verdict >= 0) {
        int fd = take_lock(k), status = 0, err;
        time_t born = seconds();
        pid_t pid = 0;
        if (fd < 0) {
            pthread_mutex_lock(&k->mutex);
            if (!atomic_load(&k->wanted)) {
                k->running = 0;
                pthread_mutex_unlock(&k->mutex);
                return NULL;
            }
            pthread_mutex_unlock(&k->mutex);
            continue;
        }
        err = spawn(k, fd, &pid);
        close_lock(k, fd);
        if (err) break;
        atomic_fetch_add(&k->starts, 1);
        atomic_store(&k->child, pid);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
        atomic_store(&k->child, 0);
        verdict = judge(status, seconds() - born, &quick);
        if (verdict == 0) pause_ms(k, quick < 7 ? 500L << quick : 60000);
    }
    k->failed(k->arg);
    return NULL; /* `running` stays: what failed is not tried again */
}

int keeper_start(keeper *k) {
    int err = 0;
    atomic_store(&k->wanted, 1);
    pthread_mutex_lock(&k->mutex);
    if (!k->running) {
        pthread_t thread;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before); /* the host's handlers are not for this thread */
        err = pthread_create(&thread, NULL, keep, k);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (!err) {
            pthread_detach(thread);
            k->running = 1;
        }
    }
    pthread_mutex_unlock(&k->mutex);
    return err ? -1 : 0;
}

void keeper_stop(keeper *k) { atomic_store(&k->wanted, 0); }
long keeper_child(keeper *k) { return atomic_load(&k->child); }
unsigned long keeper_starts(keeper *k) { return atomic_load(&k->starts); }

#endif

/* The thread pool. */

#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/memory.h"

#define SPIN_ROUNDS 500 /* some 20 microseconds */

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct cdad_pool {
    int threads;
    pthread_mutex_t callers; /* one job at a time */
    pthread_mutex_t lock;    /* guards what follows */
    pthread_cond_t wake, finished;
    pthread_t *workers; /* [threads - 1] */
    int n_started;
    pid_t owner; /* the process that the workers live in */
    int stop, idle;
    atomic_uint generation; /* of the job; changed under lock, watched by spinning workers */
    cdad_task_fn fn;
    void *arg;
    int64_t n_tasks;
    atomic_llong next;
};

typedef struct worker_start {
    cdad_pool *pool;
    int number;
} worker_start;

static _Thread_local int inside_task; /* a nested call runs in place */

static void run_tasks(cdad_pool *pool, int worker) {
    inside_task = 1;
    for (;;) {
        const long long task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->n_tasks)
            break;
        pool->fn(pool->arg, task, worker);
    }
    inside_task = 0;
}

static void *worker_main(void *arg) {
    worker_start start = *(worker_start *)arg;
    cdad_pool *pool = start.pool;
    cdad_free(arg);
    unsigned seen = 0;
    pthread_mutex_lock(&pool->lock);
    seen = atomic_load(&pool->generation);
    pool->idle++;
    pthread_cond_signal(&pool->finished);
    for (;;) {
        pthread_mutex_unlock(&pool->lock);
        for (int i = 0; i < SPIN_ROUNDS && atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen; i++)
            cpu_relax();
        pthread_mutex_lock(&pool->lock);
        while (!pool->stop && atomic_load(&pool->generation) == seen)
            pthread_cond_wait(&pool->wake, &pool->lock);
        if (pool->stop)
            break;
        seen = atomic_load(&pool->generation);
        pool->idle--;
        pthread_mutex_unlock(&pool->lock);
        run_tasks(pool, start.number);
        pthread_mutex_lock(&pool->lock);
        pool->idle++;
        pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Starts the workers that are missing: at the first use, and in a child after a fork. Called with callers held. */
static void start_workers(cdad_pool *pool) {
    if (pool->owner != getpid()) { /* threads do not survive a fork, and locks may have been held */
        pool->owner = getpid();
        pool->n_started = pool->idle = 0;
        pthread_mutex_init(&pool->lock, NULL);
        pthread_cond_init(&pool->wake, NULL);
        pthread_cond_init(&pool->finished, NULL);
    }
    while (pool->n_started < pool->threads - 1) {
        worker_start *start;
        if (cdad_alloc((void **)&start, sizeof *start, NULL) != CDAD_OK)
            return; /* fewer threads give the same result */
        *start = (worker_start){pool, pool->n_started + 1};
        if (pthread_create(&pool->workers[pool->n_started], NULL, worker_main, start) != 0) {
            cdad_free(start);
            return;
        }
        pool->n_started++;
        pthread_mutex_lock(&pool->lock);
        while (pool->idle < pool->n_started)
            pthread_cond_wait(&pool->finished, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
}

void cdad_pool_run(cdad_pool *pool, int64_t n_tasks, cdad_task_fn fn, void *arg) {
    if (!pool || pool->threads == 1 || n_tasks <= 1 || inside_task) {
        for (int64_t task = 0; task < n_tasks; task++)
            fn(arg, task, 0);
        return;
    }
    pthread_mutex_lock(&pool->callers);
    start_workers(pool);
    pthread_mutex_lock(&pool->lock);
    pool->fn = fn;
    pool->arg = arg;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next, 0);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    run_tasks(pool, 0);
    /* Every task is taken; those still running are with workers that are not idle. */
    pthread_mutex_lock(&pool->lock);
    while (pool->idle < pool->n_started)
        pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&pool->callers);
}

cdad_status cdad_pool_new(cdad_pool **out, int threads, cdad_error *err) {
    cdad_pool *pool;
    *out = NULL;
    CDAD_FAIL_IF(threads < 1, err, CDAD_INVALID, "a pool of %d threads", threads);
    CDAD_TRY(cdad_alloc_zero((void **)&pool, sizeof *pool, err));
    if (cdad_alloc_zero((void **)&pool->workers, threads * (int64_t)sizeof *pool->workers, err) != CDAD_OK) {
        cdad_free(pool);
        return CDAD_NO_MEMORY;
    }
    pool->threads = threads;
    pool->owner = getpid();
    pthread_mutex_init(&pool->callers, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
    *out = pool;
    return CDAD_OK;
}

void cdad_pool_free(cdad_pool *pool) {
    if (!pool)
        return;
    if (pool->owner == getpid() && pool->n_started > 0) {
        pthread_mutex_lock(&pool->lock);
        pool->stop = 1;
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
        for (int i = 0; i < pool->n_started; i++)
            pthread_join(pool->workers[i], NULL);
    }
    pthread_mutex_destroy(&pool->callers);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->finished);
    cdad_free(pool->workers);
    cdad_free(pool);
}

int cdad_pool_threads(const cdad_pool *pool) { return pool ? pool->threads : 1; }

int cdad_cpu_count(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

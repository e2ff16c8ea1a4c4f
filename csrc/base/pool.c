/* The thread pool. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "base/forked.h"
#include "base/memory.h"

#define SPIN_ROUNDS 500 /* some 20 microseconds */

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

typedef struct worker {
    pthread_t thread;
    cdad_pool *pool;
    int number;
} worker;

struct cdad_pool {
    cdad_forked forked; /* its first member */
    int threads;
    pthread_mutex_t callers;     /* one job at a time */
    pthread_mutex_t lock;        /* guards what follows */
    pthread_cond_t wake, finished;
    worker *workers; /* [threads - 1] */
    int n_started, stop;
    atomic_int idle;        /* changed under lock, watched by a spinning caller */
    atomic_uint generation; /* of the job; changed under lock, watched by spinning workers */
    cdad_task_fn fn;        /* the job, changed under lock while every worker is idle */
    void *arg;
    int64_t n_tasks;
    atomic_llong next;
};

static _Thread_local int inside_task; /* a nested call runs in place */

static void init_locks(cdad_pool *pool) {
    pthread_mutex_init(&pool->callers, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finished, NULL);
}

/* Of a child of a fork: its locks may have been held or waited on. */
static void renew(cdad_forked *forked) {
    cdad_pool *pool = (cdad_pool *)forked;
    init_locks(pool);
    pool->n_started = 0;
    atomic_store(&pool->idle, 0);
}

static void run_tasks(cdad_pool *pool, int number) {
    inside_task = 1;
    for (;;) {
        const long long task = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (task >= pool->n_tasks)
            break;
        pool->fn(pool->arg, task, number);
    }
    inside_task = 0;
}

static void *worker_main(void *arg) {
    const worker *self = arg;
    cdad_pool *pool = self->pool;
    pthread_mutex_lock(&pool->lock);
    unsigned seen = atomic_load(&pool->generation);
    pool->idle++;
    pthread_cond_signal(&pool->finished);
    for (;;) {
        pthread_mutex_unlock(&pool->lock);
        for (int i = 0;
             i < SPIN_ROUNDS && atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen; i++)
            cpu_relax();
        pthread_mutex_lock(&pool->lock);
        while (!pool->stop && atomic_load(&pool->generation) == seen)
            pthread_cond_wait(&pool->wake, &pool->lock);
        if (pool->stop)
            break;
        seen = atomic_load(&pool->generation);
        pool->idle--;
        pthread_mutex_unlock(&pool->lock);
        run_tasks(pool, self->number);
        pthread_mutex_lock(&pool->lock);
        pool->idle++;
        pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

/* Called with `lock` held. */
static void wait_until_idle(cdad_pool *pool) {
    while (pool->idle < pool->n_started)
        pthread_cond_wait(&pool->finished, &pool->lock);
}

/* Starts the workers that are missing; fewer give the same result. Called with `lock` held. */
static void start_workers(cdad_pool *pool) {
    while (pool->n_started < pool->threads - 1) {
        worker *w = &pool->workers[pool->n_started];
        *w = (worker){.pool = pool, .number = pool->n_started + 1};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0)
            return;
        pool->n_started++;
    }
}

void cdad_pool_run(cdad_pool *pool, int64_t n_tasks, cdad_task_fn fn, void *arg) {
    if (!pool || pool->threads == 1 || n_tasks <= 1 || inside_task) {
        for (int64_t task = 0; task < n_tasks; task++)
            fn(arg, task, 0);
        return;
    }
    pthread_mutex_lock(&pool->callers);
    pthread_mutex_lock(&pool->lock);
    start_workers(pool);
    wait_until_idle(pool); /* a worker that woke late may still look for tasks of the last job */
    pool->fn = fn;
    pool->arg = arg;
    pool->n_tasks = n_tasks;
    atomic_store(&pool->next, 0);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    run_tasks(pool, 0);
    /* Every task is taken; those still running are with workers that are not idle. */
    for (int i = 0; i < SPIN_ROUNDS && atomic_load_explicit(&pool->idle, memory_order_relaxed) < pool->n_started; i++)
        cpu_relax();
    pthread_mutex_lock(&pool->lock);
    wait_until_idle(pool);
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&pool->callers);
}

cdad_status cdad_pool_new(cdad_pool **out, int threads, cdad_error *err) {
    cdad_pool *pool;
    cdad_status status;
    *out = NULL;
    CDAD_FAIL_IF(threads < 1, err, CDAD_INVALID, "a pool of %d threads", threads);
    CDAD_TRY(cdad_alloc_zero((void **)&pool, sizeof *pool, err));
    status = cdad_alloc_zero((void **)&pool->workers, (threads - 1) * (int64_t)sizeof *pool->workers, err);
    if (status != CDAD_OK) {
        cdad_free(pool);
        return status;
    }
    pool->threads = threads;
    init_locks(pool);
    pool->forked.renew = renew;
    cdad_forked_watch(&pool->forked);
    *out = pool;
    return CDAD_OK;
}

void cdad_pool_free(cdad_pool *pool) {
    if (!pool)
        return;
    cdad_forked_unwatch(&pool->forked);
    pthread_mutex_lock(&pool->lock);
    pool->stop = 1;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_mutex_destroy(&pool->callers);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->finished);
    cdad_free(pool->workers);
    cdad_free(pool);
}

int cdad_pool_threads(const cdad_pool *pool) { return pool ? pool->threads : 1; }

/* Processors' worth of time that the control group (version 2) allows, rounded up; INT32_MAX: no limit. */
static int quota(void) {
    long long time, period;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!f)
        return INT32_MAX;
    const int limited =
        fscanf(f, "%lld %lld", &time, &period) == 2 && time > 0 && period > 0; /* else "max" */
    fclose(f);
    return limited && (time - 1) / period < INT32_MAX ? (int)((time - 1) / period + 1) : INT32_MAX;
}

int cdad_cpu_count(void) {
    cpu_set_t set;
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    int n = online > 0 ? (int)online : 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        n = CPU_COUNT(&set);
    const int allowed = quota();
    return n < allowed ? n : allowed;
}

/* A thread pool that runs numbered tasks.
 *
 * Work is cut into tasks by fixed tile sizes, never by the number of threads, so what a task computes, and
 * with it every bit of a result, does not depend on how many threads there are. */
#ifndef CDAD_BASE_POOL_H
#define CDAD_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

typedef struct cdad_pool cdad_pool;

/* `task` counts from 0; `worker` is in [0, threads), for per-worker scratch. */
typedef void (*cdad_task_fn)(void *arg, int64_t task, int worker);

/* threads >= 1, the caller included. Threads start at the first use and again after a fork. */
CDAD_MUST_USE cdad_status cdad_pool_new(cdad_pool **out, int threads, cdad_error *err);
void cdad_pool_free(cdad_pool *pool);
int cdad_pool_threads(const cdad_pool *pool);

/* Runs fn(arg, 0..n_tasks-1) and returns when all are done. Callers from several threads take turns.
 * A NULL pool runs in the caller alone. */
void cdad_pool_run(cdad_pool *pool, int64_t n_tasks, cdad_task_fn fn, void *arg);

/* The number of processors that this process may use. */
int cdad_cpu_count(void);

#endif

/* The base: failures, memory, random numbers, the thread pool. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/philox.h"
#include "base/pool.h"
#include "check.h"

int cdad_test_base(void);

static cdad_status fail_with(cdad_error *err, int n) {
    CDAD_FAIL_IF(n > 2, err, CDAD_SHAPE, "%d is more than %d", n, 2);
    return CDAD_OK;
}

static void test_status(void) {
    cdad_error err = {0};
    CHECK(fail_with(&err, 2) == CDAD_OK && err.message[0] == 0, "%s", err.message);
    CHECK(fail_with(&err, 3) == CDAD_SHAPE && err.status == CDAD_SHAPE, "%d", err.status);
    CHECK(strcmp(err.message, "3 is more than 2") == 0, "%s", err.message);
    CHECK(cdad_fail_in(&err, "conv2d") == CDAD_SHAPE, "%d", err.status);
    CHECK(strcmp(err.message, "conv2d: 3 is more than 2") == 0, "%s", err.message);
    for (int i = 0; i < 100; i++) /* longer than the record: cut, never past its end */
        CHECK(cdad_fail_in(&err, "somewhere") == CDAD_SHAPE, "%d", err.status);
    CHECK(strlen(err.message) == sizeof err.message - 1, "%zu", strlen(err.message));
    CHECK(fail_with(NULL, 3) == CDAD_SHAPE && cdad_fail_in(NULL, "x") != CDAD_OK, "no record");
}

static void test_memory(void) {
    cdad_error err = {0};
    int64_t product = 0;
    CHECK(cdad_size_mul(3, 5, &product, &err) == CDAD_OK && product == 15, "%lld", (long long)product);
    CHECK(cdad_size_mul(0, INT64_MAX, &product, &err) == CDAD_OK && product == 0, "%lld", (long long)product);
    CHECK(cdad_size_mul(INT64_MAX / 16, 1, &product, &err) == CDAD_OK, "%s", err.message);
    CHECK(cdad_size_mul(INT64_MAX / 16 + 1, 1, &product, &err) == CDAD_SHAPE, "no limit");
    CHECK(cdad_size_mul(INT64_MAX, 3, &product, &err) == CDAD_SHAPE, "overflow");
    CHECK(cdad_size_mul(-1, 3, &product, &err) == CDAD_SHAPE &&
              cdad_size_mul(3, -1, &product, &err) == CDAD_SHAPE,
          "a negative factor");
    CHECK(cdad_align_up(0) == 0 && cdad_align_up(1) == 64 && cdad_align_up(64) == 64, "rounding");

    unsigned char *bytes;
    CHECK(cdad_alloc((void **)&bytes, 0, &err) == CDAD_OK && bytes, "%s", err.message);
    cdad_free(bytes);
    CHECK(cdad_alloc_zero((void **)&bytes, 1000, &err) == CDAD_OK, "%s", err.message);
    int clear = (uintptr_t)bytes % CDAD_ALIGN == 0;
    for (int i = 0; i < 1000; i++)
        clear &= bytes[i] == 0;
    CHECK(clear, "not aligned, or not zero");
    cdad_free(bytes);
    bytes = (unsigned char *)&err;
    CHECK(cdad_alloc((void **)&bytes, INT64_MAX, &err) == CDAD_NO_MEMORY && !bytes, "%s", err.message);
    CHECK(cdad_alloc((void **)&bytes, -1, &err) == CDAD_SHAPE && !bytes, "%s", err.message);

    cdad_alloc_fail_after(2);
    int fails[4];
    for (int i = 0; i < 4; i++) {
        fails[i] = cdad_alloc((void **)&bytes, 1, &err) != CDAD_OK;
        cdad_free(bytes);
    }
    CHECK(!fails[0] && fails[1] && !fails[2] && !fails[3], "%d%d%d%d", fails[0], fails[1], fails[2],
          fails[3]);

    int64_t *list = NULL, capacity = 0, wrong = 0;
    for (int64_t n = 0; n < 1000; n++) {
        if (cdad_grow((void **)&list, n, &capacity, sizeof *list, &err) != CDAD_OK || capacity <= n)
            break;
        list[n] = n * n;
    }
    for (int64_t n = 0; n < 1000 && capacity >= 1000; n++)
        wrong += list[n] != n * n;
    CHECK(capacity == 1024 && !wrong, "capacity %lld, %lld wrong", (long long)capacity, (long long)wrong);
    cdad_alloc_fail_after(1);
    CHECK(cdad_grow((void **)&list, capacity, &capacity, sizeof *list, &err) == CDAD_NO_MEMORY &&
              capacity == 1024 && list[999] == 999 * 999,
          "the array is lost where it cannot grow");
    cdad_free(list);
    char *copy;
    CHECK(cdad_strdup(&copy, "abc", &err) == CDAD_OK && strcmp(copy, "abc") == 0, "%s", err.message);
    cdad_free(copy);
}

/* The vectors published with the generator (Random123, kat_vectors). */
static void test_philox(void) {
    static const struct {
        uint64_t seed, stream, index;
        uint32_t want[4];
    } vectors[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x0370734413198a2e,
         0x85a308d3243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        cdad_philox(vectors[i].seed, vectors[i].stream, vectors[i].index, out);
        CHECK(memcmp(out, vectors[i].want, sizeof out) == 0, "vector %d: %08x %08x %08x %08x", i, out[0],
              out[1], out[2], out[3]);
    }
    enum { N = 40000 };
    static float whole[N], part[N];
    for (int normal = 0; normal < 2; normal++) {
        void (*const fill)(float *, int64_t, uint64_t, uint64_t, int64_t) =
            normal ? cdad_random_normal : cdad_random_uniform;
        fill(whole, N, 3, 4, 10);
        for (int64_t at = 0, n = 1; at < N; at += n, n = n % 7 + 1)
            fill(part + at, at + n < N ? n : N - at, 3, 4, 10 + at);
        CHECK(memcmp(whole, part, sizeof whole) == 0, "%s values depend on how they are asked for",
              normal ? "normal" : "uniform");
        fill(part, N, 3, 5, 10);
        double moment[5] = {0}, both = 0.0, next = 0.0, low = 1.0, high = 0.0;
        for (int i = 0; i < N; i++) {
            double power = 1.0;
            for (int k = 1; k < 5; k++)
                moment[k] += (power *= whole[i]) / N;
            both += (double)whole[i] * (double)part[i] / N;
            next += i ? (double)whole[i] * (double)whole[i - 1] / N : 0.0;
            low = fmin(low, whole[i]);
            high = fmax(high, whole[i]);
        }
        /* five standard errors of each sum */
        const double mean = normal ? 0 : 0.5, square = normal ? 1 : 1.0 / 3, product = normal ? 0 : 0.25;
        CHECK(fabs(moment[1] - mean) < 0.025 && fabs(moment[2] - square) < 0.036 &&
                  fabs(both - product) < 0.025 && fabs(next - product) < 0.025 &&
                  fabs(moment[4] - (normal ? 3 : 0.2)) < 0.25,
              "moments %g %g %g %g, products %g %g", moment[1], moment[2], moment[3], moment[4], both, next);
        if (!normal)
            CHECK(low >= 0.0 && low < 1e-3 && high < 1.0 && high > 0.999, "uniform in [%g, %g]", low, high);
    }
    int count[5] = {0};
    for (int64_t i = 0; i < 10000; i++) {
        const int64_t n = cdad_random_below(5, 1, 2, i);
        CHECK(n >= 0 && n < 5, "%lld is not below 5", (long long)n);
        count[n % 5]++;
    }
    for (int i = 0; i < 5; i++)
        CHECK(count[i] > 1800 && count[i] < 2200, "%d came %d times in 10000", i, count[i]);
    CHECK(cdad_random_below(1, 1, 2, 3) == 0, "below 1 there is 0 alone");
    CHECK(cdad_stream_of_name("") == 0xcbf29ce484222325 &&
              cdad_stream_of_name("foobar") == 0x85944171f73967e8,
          "FNV-1a of foobar is %016llx", (unsigned long long)cdad_stream_of_name("foobar"));
}

enum { TASKS = 1000 };

typedef struct count_job {
    cdad_pool *pool;
    int threads;
    atomic_int count[TASKS], bad_worker, nested;
} count_job;

static void nested_task(void *arg, int64_t task, int worker) {
    count_job *job = arg;
    (void)task;
    (void)worker;
    atomic_fetch_add(&job->nested, 1);
}

static void count_task(void *arg, int64_t task, int worker) {
    count_job *job = arg;
    atomic_fetch_add(&job->count[task], 1);
    if (worker < 0 || worker >= job->threads)
        atomic_fetch_add(&job->bad_worker, 1);
    if (task % 100 == 0)
        cdad_pool_run(job->pool, 3, nested_task, job);
}

/* Runs `rounds` jobs of 1000 and 3 tasks in turn; returns how many tasks did not run just once. */
static int run_jobs(cdad_pool *pool, int rounds) {
    int wrong = 0;
    for (int round = 0; round < rounds; round++) {
        const int n = round % 2 ? 3 : TASKS;
        count_job job = {.pool = pool, .threads = cdad_pool_threads(pool)};
        cdad_pool_run(pool, n, count_task, &job);
        for (int i = 0; i < TASKS; i++)
            wrong += atomic_load(&job.count[i]) != (i < n);
        wrong += atomic_load(&job.bad_worker) + (atomic_load(&job.nested) != (n == TASKS ? 30 : 3));
    }
    return wrong;
}

#ifdef __SANITIZE_THREAD__
enum { CHILD_ROUNDS = 0 }; /* the sanitizer has no threads in a child */
#else
enum { CHILD_ROUNDS = 10 };
#endif

typedef struct caller {
    pthread_t thread;
    cdad_pool *pool;
    atomic_int *stop;
    int wrong;
} caller;

static void *run_jobs_until(void *arg) {
    caller *self = arg;
    do
        self->wrong += run_jobs(self->pool, 10);
    while (!atomic_load(self->stop));
    return NULL;
}

/* A child that a fork made must be able to free the pool, after using it or at once; 0 when it did. */
static int use_in_child(cdad_pool *pool, int rounds) {
    int status = -1;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60); /* a hang ends here, and a busy machine is given time */
        const int wrong = run_jobs(pool, rounds);
        cdad_pool_free(pool);
        _exit(wrong != 0);
    }
    return child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* Three callers at once, and forks meanwhile and while the workers sleep. */
static void test_callers_and_forks(cdad_pool *pool) {
    caller callers[3];
    atomic_int stop = 0;
    for (int i = 0; i < 3; i++) {
        callers[i] = (caller){.pool = pool, .stop = &stop};
        CHECK(pthread_create(&callers[i].thread, NULL, run_jobs_until, &callers[i]) == 0, "no thread");
    }
    for (int i = 0; i < 6; i++)
        CHECK(use_in_child(pool, i % 2 * CHILD_ROUNDS) == 0,
              "child %d, forked while jobs ran, fails or hangs", i);
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK(!callers[i].wrong, "caller %d of three: tasks are lost or repeated", i);
    }
    usleep(2000);
    for (int i = 0; i < 2; i++)
        CHECK(use_in_child(pool, i * CHILD_ROUNDS) == 0,
              "child %d, forked while workers slept, fails or hangs", i);
    CHECK(run_jobs(pool, 10) == 0, "the parent after forks");
}

static void test_pool(void) {
    cdad_error err = {0};
    cdad_pool *pool;
    CHECK(cdad_pool_new(&pool, 0, &err) == CDAD_INVALID && !pool, "a pool of no threads");
    CHECK(run_jobs(NULL, 2) == 0 && cdad_pool_threads(NULL) == 1, "without a pool");
    for (int threads = 1; threads <= 4; threads++) {
        CHECK(cdad_pool_new(&pool, threads, &err) == CDAD_OK, "%s", err.message);
        CHECK(cdad_pool_threads(pool) == threads, "%d threads", cdad_pool_threads(pool));
        CHECK(run_jobs(pool, 200) == 0, "%d threads: tasks are lost or repeated", threads);
        if (threads == 3)
            test_callers_and_forks(pool);
        cdad_pool_free(pool);
    }
    cdad_pool_free(NULL);
    for (int failing = 1; failing <= 2; failing++) {
        cdad_alloc_fail_after(failing);
        CHECK(cdad_pool_new(&pool, 2, &err) == CDAD_NO_MEMORY && !pool, "allocation %d fails", failing);
    }
    cdad_alloc_fail_after(0);
    CHECK(cdad_cpu_count() >= 1 && cdad_cpu_count() <= sysconf(_SC_NPROCESSORS_ONLN), "%d processors",
          cdad_cpu_count());
}

int cdad_test_base(void) {
    test_status();
    test_memory();
    test_philox();
    test_pool();
    return failures;
}

/* Aligned allocation. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Memory from LARGE on is asked for in huge pages, as NumPy does: a fault for each of 4 KiB takes longer than what is done with it first. */
enum { PAGE = 2 << 20, LARGE = 32 << 20 };

static atomic_llong fail_in; /* counts down to the allocation that fails; 0: off */

void cdad_alloc_fail_after(int64_t n) { atomic_store(&fail_in, n); }

static int must_fail(void) {
    long long n = atomic_load(&fail_in);
    while (n > 0)
        if (atomic_compare_exchange_weak(&fail_in, &n, n - 1))
            return n == 1;
    return 0;
}

cdad_status cdad_size_mul(int64_t a, int64_t b, int64_t *product, cdad_error *err) {
    int64_t p;
    CDAD_FAIL_IF(a < 0 || b < 0 || __builtin_mul_overflow(a, b, &p) || p > INT64_MAX / 16, err, CDAD_SHAPE,
                 "a size of %lld x %lld does not fit", (long long)a, (long long)b);
    *product = p;
    return CDAD_OK;
}

cdad_status cdad_alloc(void **out, int64_t bytes, cdad_error *err) {
    *out = NULL;
    CDAD_FAIL_IF(bytes < 0, err, CDAD_SHAPE, "an allocation of %lld bytes", (long long)bytes);
    const int64_t rounded = bytes > INT64_MAX - CDAD_ALIGN ? 0 : cdad_align_up(bytes > 0 ? bytes : 1);
    if (rounded == 0 || must_fail()) {
        /* none */
    } else if (rounded >= LARGE && rounded <= INT64_MAX - PAGE) {
        *out = aligned_alloc(PAGE, (size_t)((rounded + PAGE - 1) / PAGE * PAGE));
#ifdef MADV_HUGEPAGE
        if (*out) /* whole ones: of the last nothing may ever be touched; where they are not to be had it is memory all the same */
            (void)madvise(*out, (size_t)(rounded / PAGE * PAGE), MADV_HUGEPAGE);
#endif
    } else {
        *out = aligned_alloc(CDAD_ALIGN, (size_t)rounded);
    }
    CDAD_FAIL_IF(!*out, err, CDAD_NO_MEMORY, "out of memory: %lld bytes are not to be had", (long long)bytes);
    return CDAD_OK;
}

cdad_status cdad_alloc_zero(void **out, int64_t bytes, cdad_error *err) {
    CDAD_TRY(cdad_alloc(out, bytes, err));
    memset(*out, 0, (size_t)bytes);
    return CDAD_OK;
}

void cdad_free(void *p) { free(p); }

cdad_status cdad_grow(void **array, int64_t count, int64_t *capacity, int64_t element_bytes, cdad_error *err) {
    if (count < *capacity)
        return CDAD_OK;
    const int64_t wanted = *capacity > 0 ? 2 * *capacity : 16;
    int64_t bytes = 0;
    void *grown;
    CDAD_TRY(cdad_size_mul(wanted, element_bytes, &bytes, err));
    CDAD_TRY(cdad_alloc(&grown, bytes, err));
    if (count > 0)
        memcpy(grown, *array, (size_t)(count * element_bytes));
    cdad_free(*array);
    *array = grown;
    *capacity = wanted;
    return CDAD_OK;
}

cdad_status cdad_strdup(char **out, const char *s, cdad_error *err) {
    const size_t bytes = strlen(s) + 1;
    void *copy;
    *out = NULL;
    CDAD_TRY(cdad_alloc(&copy, (int64_t)bytes, err));
    memcpy(copy, s, bytes);
    *out = copy;
    return CDAD_OK;
}

/* Aligned allocation and checked size arithmetic: the only place that calls the C allocator. */
#ifndef CDAD_BASE_MEMORY_H
#define CDAD_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define CDAD_ALIGN 64 /* bytes: a cache line, and one AVX-512 vector */

/* *product = a * b, or CDAD_SHAPE when a factor is negative or the product exceeds INT64_MAX / 16. */
CDAD_MUST_USE cdad_status cdad_size_mul(int64_t a, int64_t b, int64_t *product, cdad_error *err);

/* Rounds a byte count up to a multiple of CDAD_ALIGN. */
static inline int64_t cdad_align_up(int64_t bytes) { return (bytes + CDAD_ALIGN - 1) / CDAD_ALIGN * CDAD_ALIGN; }

/* CDAD_ALIGN-aligned memory; *out is NULL on failure. Freed by cdad_free. `bytes` 0 gives a valid pointer. */
CDAD_MUST_USE cdad_status cdad_alloc(void **out, int64_t bytes, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_alloc_zero(void **out, int64_t bytes, cdad_error *err);
void cdad_free(void *p); /* NULL is allowed */

/* Grows an array that holds `count` elements so that one more fits; doubles the capacity. */
CDAD_MUST_USE cdad_status cdad_grow(void **array, int64_t count, int64_t *capacity, int64_t element_bytes,
                                    cdad_error *err);

/* A copy of a string, freed by cdad_free. */
CDAD_MUST_USE cdad_status cdad_strdup(char **out, const char *s, cdad_error *err);

/* Tests: the n-th allocation from now fails (1 = the next); 0 switches this off. */
void cdad_alloc_fail_after(int64_t n);

#endif

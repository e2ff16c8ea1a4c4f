/* AdamW's moments: how they are kept, where each parameter's lies, and from one way into another. */
#ifndef CDAD_OPTIM_MOMENTS_H
#define CDAD_OPTIM_MOMENTS_H

#include "base/shared.h"

/* The parameters' moments lie one after the other, each from a multiple of CDAD_ALIGN bytes of float32 on, as the parameters
 * themselves do. FLOAT32, BFLOAT16 (its bits, uint16_t): a number an element. 8BIT (kernels/dynamic8.h): each from a multiple of
 * CDAD_ALIGN bytes on, its codes, one an element, and at the next such multiple the numbers of the largest magnitude of its blocks; those
 * of less than CDAD_SMALL8 elements, such as a bias's or a norm's, in float32. Blocks do not straddle parameters. */
typedef enum { CDAD_MOMENT_FLOAT32, CDAD_MOMENT_BFLOAT16, CDAD_MOMENT_8BIT } cdad_moment_format;

#define CDAD_SMALL8 4096

typedef struct cdad_moment {
    cdad_moment_format format;
    int is_signed;    /* the first moment is, the second is not */
    int64_t n;        /* parameters */
    int64_t *counts;  /* [n] elements of each */
    int64_t *at;      /* [n] bytes: where each begins */
    int64_t bytes;
    cdad_device *device;
    cdad_shared *memory;
} cdad_moment;

/* Bytes of the moment of n parameters with so many elements. */
int64_t cdad_moment_bytes(const int64_t *counts, int64_t n, cdad_moment_format format);
/* Bytes of one of `count` elements, without the blocks' largest. */
int64_t cdad_moment_element(int64_t count, cdad_moment_format format);

/* Zero; *out is taken over, and freed by cdad_moment_free, which allows what was never made, or freed. */
CDAD_MUST_USE cdad_status cdad_moment_new(cdad_moment *out, cdad_device *device, const int64_t *counts, int64_t n,
                                          cdad_moment_format format, int is_signed, cdad_error *err);
void cdad_moment_free(cdad_moment *m);

/* Whether it is there, and of parameters with so many elements. */
int cdad_moment_fits(const cdad_moment *m, const int64_t *counts);
/* Takes over from another of the same way those of the parameters of which it has as many elements. */
CDAD_MUST_USE cdad_status cdad_moment_take(cdad_moment *m, const cdad_moment *from, cdad_error *err);

void *cdad_moment_data(const cdad_moment *m);
/* Where parameter i's begins; *most: the largest of its blocks, or NULL where it is not in 8 bit. */
void *cdad_moment_of(const cdad_moment *m, int64_t i, float **most);

/* Takes over a whole block of the host, of as many elements of each parameter, kept in any of the ways: in its own to the same bits. */
CDAD_MUST_USE cdad_status cdad_moment_set(cdad_moment *m, cdad_moment_format format, const void *block, cdad_error *err);

#endif

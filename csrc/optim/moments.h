/* AdamW's moments: how they are kept, where each parameter's lies, and from one way into another. */
#ifndef CDAD_OPTIM_MOMENTS_H
#define CDAD_OPTIM_MOMENTS_H

#include "nn/params.h"

/* FLOAT32, BFLOAT16 (its bits, uint16_t): in the layout of params->values. 8BIT (kernels/dynamic8.h): the parameters one after the
 * other, each from a multiple of CDAD_ALIGN bytes on: its codes, one an element, and at the next such multiple the numbers of
 * the largest magnitude of its blocks; a parameter of less than CDAD_SMALL8 elements, such as a bias or a norm's, in float32. Blocks do not
 * straddle parameters. */
typedef enum { CDAD_MOMENT_FLOAT32, CDAD_MOMENT_BFLOAT16, CDAD_MOMENT_8BIT } cdad_moment_format;

#define CDAD_SMALL8 4096

typedef struct cdad_moment {
    const cdad_params *params;
    cdad_moment_format format;
    int is_signed; /* the first moment is, the second is not */
    void *data;    /* where the parameters lie */
    int64_t *at;   /* [params->n] bytes: where each parameter's begins */
} cdad_moment;

/* Bytes of all parameters' moment. */
int64_t cdad_moment_bytes(const cdad_params *params, cdad_moment_format format);
/* Bytes of an element of parameter i, without the blocks' largest. */
int64_t cdad_moment_element(const cdad_params *params, cdad_moment_format format, int64_t i);

/* Zero; *out is taken over, and freed by cdad_moment_free, which allows what was never made. */
CDAD_MUST_USE cdad_status cdad_moment_new(cdad_moment *out, const cdad_params *params, cdad_moment_format format, int is_signed,
                                          cdad_error *err);
void cdad_moment_free(cdad_moment *m);
CDAD_MUST_USE cdad_status cdad_moment_zero(cdad_moment *m, cdad_error *err);

/* Where parameter i's begins; *most: the largest of its blocks, or NULL where it is not in 8 bit. */
void *cdad_moment_of(const cdad_moment *m, int64_t i, float **most);

/* Takes over a whole block of the host, kept in any of the ways: in its own to the same bits. */
CDAD_MUST_USE cdad_status cdad_moment_set(cdad_moment *m, cdad_moment_format format, const void *block, cdad_error *err);

#endif

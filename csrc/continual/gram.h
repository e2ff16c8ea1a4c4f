/* The Gram matrix G = sum over all feature vectors x of x x^T: what exact streaming keeps.
 *
 * Products of up to 1536 rows (6144, of whole numbers) are summed in float32, in chains of 384; those sums in double. So the error of G is that of
 * single float32 products, about 1e-7 |G| shrinking with the number of sums, however many rows come; a singular value below
 * about 3e-4 of the largest (its square below float32's rounding of the square) is noise.
 *
 * What that costs at a threshold gamma: an eigenvalue is off by up to noise = 1.2e-7 trace / sqrt(d), and those
 * below it are not added to a basis. 1 - gamma is the share that may be missed, all d eigenvalues' noise together a
 * share of 1.2e-7 sqrt(d): 4e-6 at d = 1280, 8e-6 at 4608, little beside what gamma = 0.999 or 0.9999 leaves. Where
 * 1 - gamma is within four times of it, as at gamma = 0.99999, ranks are noise, and CDAD_STREAM_AUTO accumulates
 * incrementally.
 *
 * With bf16 features are rounded to bfloat16 first, a relative 2^-9 at most, some 2^-10 on average: G is the exact Gram
 * matrix, so to speak, of features that are X + E, |E|_F <= 2^-9 |X|_F, whose energy is some 1e-6 of theirs. What a basis
 * misses of X is, as a square root, within |E|_F of what it misses of X + E: at gamma = 0.999 a share of 1.13e-3 at the very
 * worst, if all roundings fell into line with what is missed; measured, 1e-6 more or less than it said. A singular value
 * below some 1e-3 of the root of the total is noise.
 *
 * In whole numbers of 7 bits (CDAD_GRAM_BYTES; see gram_bytes_pack in kernels.h) G is that of X but for errors off its diagonal that are
 * independent of X: their energy is up to 6e-4 of X's, but in the products they add up as roots do. What a basis then misses is beyond what it
 * says by about 0.55 * 6e-4 d / rows of the total at the worst measured (normal features of falling spread; half of it is lost in
 * directions, half in their number): 5.5e-5 with six rows a column, 1e-5 with thirty. Rows that make errors larger are multiplied as they are.
 *
 * Half of the symmetric matrix is stored and computed. */
#ifndef CDAD_CONTINUAL_GRAM_H
#define CDAD_CONTINUAL_GRAM_H

#include "kernels/kernels.h"

typedef enum cdad_gram_rounding { CDAD_GRAM_PLAIN, CDAD_GRAM_BFLOAT16, CDAD_GRAM_BYTES } cdad_gram_rounding;

typedef struct cdad_gram {
    int64_t d;
    cdad_gram_rounding rounding; /* of features before they are multiplied; on a device, bytes are plain */
    double *upper; /* tiles of 192 x 192 (what is left, at the edges) on and above the diagonal, row after row of them */
    cdad_device *device; /* where `there` lies */
    double *there;       /* NULL, or what was added on a device and is not in `upper` yet: [d,d], of which the upper half counts */
    int spoiled;         /* the device failed while it added: `there` holds anything */
} cdad_gram;

/* Whether rounding features to bfloat16 is worth it, and harmless to a basis of gamma, where the matrix is `side` wide. */
int cdad_gram_may_round(int64_t side, double gamma);
/* How `columns` (0: an unknown number of) features of width d are best rounded for a basis of gamma. */
cdad_gram_rounding cdad_gram_rounding_for(int64_t d, double gamma, int64_t columns);

/* About 4 d^2. */
int64_t cdad_gram_bytes(int64_t d);

/* Zero; cdad_gram_bytes(d). d is at least 1, and CDAD_LINALG_MAX at most. */
CDAD_MUST_USE cdad_status cdad_gram_init(cdad_gram *g, int64_t d, cdad_gram_rounding rounding, cdad_error *err);
void cdad_gram_reset(cdad_gram *g);

/* G += X^T X, X [rows,d], already checked; packed by tiles of rows, never unfolded whole. Where ctx is a device's, X lies there, and so
 * does the sum until cdad_gram_settle. Polls for a stop: after CDAD_CANCELLED part of X is in G. CDAD_NO_MEMORY leaves G as it was; a device that fails
 * meanwhile is CDAD_NO_DEVICE, and leaves G spoiled. */
CDAD_MUST_USE cdad_status cdad_gram_add(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows,
                                        cdad_error *err);

/* *g = X^T X, made here: init and add. On failure it is empty. */
CDAD_MUST_USE cdad_status cdad_gram_of(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows, int64_t d, cdad_error *err);

/* Brings the sum from the device. All that follows wants that, but for cdad_gram_unpack, which replaces it. CDAD_NO_MEMORY leaves all as it was; of another
 * failure a part is in `upper`. */
CDAD_MUST_USE cdad_status cdad_gram_settle(cdad_gram *g, cdad_error *err);

/* G += H, of the same width. */
void cdad_gram_merge(cdad_gram *g, const cdad_gram *h);

double cdad_gram_trace(const cdad_gram *g);

/* full [d,d] = G, both halves. */
void cdad_gram_expand(const cdad_gram *g, double *full);
/* The same rounded to float. */
void cdad_gram_expand_narrow(const cdad_gram *g, const cdad_context *ctx, float *full);

/* packed [d*(d+1)/2]: rows of the upper triangle, one after the other. */
void cdad_gram_pack(const cdad_gram *g, double *packed);
void cdad_gram_unpack(cdad_gram *g, const double *packed);

#endif

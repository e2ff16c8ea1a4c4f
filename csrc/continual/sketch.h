/* A sketch of the Gram matrix G of features too wide for G itself, in one pass: Y = Omega^T G, its products with random test vectors.
 *
 * Nystrom's approximation Y^T (Y Omega)^-1 Y lies below G, in every direction but for roundings, and its leading directions, up to two in three of the
 * number of test vectors, are nearly G's own (Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite
 * matrix from streaming data", NeurIPS 2017). So there are three test vectors for two directions that a basis may have; one that has
 * that many has about a tenth more than the fewest that hold as much, one of half as many some hundredth. They hold signs and zeros, eight
 * signs a feature (Nelson, Nguyen, "OSNAP", FOCS 2013), as products with them then take little time beside those that make Y of them. Of
 * sketches that could hold all of G, they are the unit vectors, and it is G.
 *
 * What the approximation misses is known as a whole, exactly: the energy of all features less its own. How much of that a basis keeps is
 * estimated by CDAD_SKETCH_CHECKS test vectors more, which the approximation does not know (cdad_factor, `tests`), as the share of it that
 * they tell: where many directions share what is missed, to some hundredths of it; otherwise a third of the directions would be there for
 * a bound alone.
 *
 * Sums are float32: an energy below some 1e-7 of the total is noise, how much is told by how far Omega^T G Omega is from symmetric, and it
 * grows with the number of adds, some 1e-6 after thousands. Of wide features and for gamma up to 0.999 sketch_add may round to 16 bits: the energy
 * that is taken for missed is then some 2e-4 of the total larger after 768 features, 2e-5 after 100000 (about 1 / sqrt of their number). */
#ifndef CDAD_CONTINUAL_SKETCH_H
#define CDAD_CONTINUAL_SKETCH_H

#include "continual/factor.h"

enum { CDAD_SKETCH_CHECKS = 32 };

typedef struct cdad_sketch {
    int64_t d, vectors; /* test vectors, beside the checks */
    float *Y;           /* [vectors + CHECKS, d] */
    double total;       /* the energy of all features */
    int32_t *signs;     /* the test vectors, as sketch_add takes them */
    int rounded;        /* sketch_add may round, and the factor is made in float32 */
    cdad_device *device;
    void *there;         /* NULL, or what was added on a device and is not in Y yet: Y's floats, after `total` in CDAD_ALIGN bytes */
    void *signs_there;
    int spoiled; /* the device failed while it added */
} cdad_sketch;

/* Memory of a sketch for bases of up to `rank` directions. */
int64_t cdad_sketch_bytes(int64_t d, int64_t rank);

/* gamma: of the bases that will be asked for. */
CDAD_MUST_USE cdad_status cdad_sketch_init(cdad_sketch *s, int64_t d, int64_t rank, double gamma, cdad_error *err);
void cdad_sketch_reset(cdad_sketch *s);

/* X [rows,d], already checked; where ctx is a device's, X lies there, and so does the sum until cdad_sketch_settle. Polls for a stop. Of a
 * failure before anything was added *begun is 0; of a device that fails meanwhile, CDAD_NO_DEVICE, the sketch is spoiled. */
CDAD_MUST_USE cdad_status cdad_sketch_add(cdad_sketch *s, const cdad_context *ctx, cdad_mat X, int64_t rows, int *begun,
                                          cdad_error *err);

/* Brings the sum from the device; all below wants that. CDAD_NO_MEMORY leaves all as it was. */
CDAD_MUST_USE cdad_status cdad_sketch_settle(cdad_sketch *s, cdad_error *err);

/* s also stands for what t, of the same width and number of test vectors, stands for: to float32's rounding as if all had come to one. */
void cdad_sketch_merge(cdad_sketch *s, const cdad_sketch *t);

/* The approximation as a factor, which cdad_sketch_factor_free frees. */
CDAD_MUST_USE cdad_status cdad_sketch_factor(const cdad_sketch *s, const cdad_context *ctx, cdad_factor *f, cdad_error *err);
void cdad_sketch_factor_free(cdad_factor *f);

/* Content as doubles, exact to the bit: total, then Y. */
int64_t cdad_sketch_packed(const cdad_sketch *s);
void cdad_sketch_pack(const cdad_sketch *s, double *packed);
/* CDAD_INVALID: `n` doubles that hold no such content; s is then as it was. */
CDAD_MUST_USE cdad_status cdad_sketch_unpack(cdad_sketch *s, const double *packed, int64_t n, cdad_error *err);

#endif

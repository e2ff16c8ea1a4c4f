/* A fixed autoencoder that needs no weights: the lowest frequencies of an orthonormal DCT-II over patches.
 *
 * Colours are turned into luma and two opponent axes (orthonormal); coefficients are ordered by frequency with
 * luma first at equal frequency (chroma counts as twice the frequency), and the first `latent_channels` are kept. */
#include "models/models.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

typedef struct coefficient {
    double order; /* sort key */
    int64_t u, v, colour;
} coefficient;

static int by_order(const void *a, const void *b) {
    const coefficient *x = a, *y = b;
    if (x->order != y->order)
        return x->order < y->order ? -1 : 1;
    const int64_t i = (x->colour * 1024 + x->u) * 1024 + x->v, j = (y->colour * 1024 + y->u) * 1024 + y->v;
    return i < j ? -1 : i > j;
}

static double cosine(int64_t frequency, int64_t x, int64_t n) {
    const double scale = frequency ? sqrt(2.0 / (double)n) : sqrt(1.0 / (double)n);
    return scale * cos(3.14159265358979324 * ((double)x + 0.5) * (double)frequency / (double)n);
}

/* basis [latent, patch*patch*3]: orthonormal rows. */
static cdad_status make_basis(const cdad_dct_config *c, float **basis, cdad_error *err) {
    static const double colours[3][3] = {{0.57735026918962576, 0.57735026918962576, 0.57735026918962576},
                                         {0.70710678118654752, 0.0, -0.70710678118654752},
                                         {-0.40824829046386302, 0.81649658092772603, -0.40824829046386302}};
    const int64_t p = c->patch, all = p * p * 3;
    cdad_status status = CDAD_OK;
    coefficient *order = NULL;
    *basis = NULL;
    CDAD_FAIL_IF(p > 64 || c->latent_channels > all, err, CDAD_INVALID,
                 "dct: patch %lld (at most 64) and %lld latent channels (at most 3 patch^2)", (long long)p,
                 (long long)c->latent_channels);
    CDAD_TRY_DONE(cdad_alloc((void **)&order, all * (int64_t)sizeof *order, err));
    CDAD_TRY_DONE(cdad_alloc((void **)basis, c->latent_channels * all * (int64_t)sizeof(float), err));
    for (int64_t k = 0; k < all; k++) {
        const int64_t u = k / 3 / p, v = k / 3 % p, colour = k % 3;
        const double f = sqrt((double)(u * u + v * v));
        order[k] = (coefficient){colour ? 2.0 * f + 1.0 : f, u, v, colour};
    }
    qsort(order, (size_t)all, sizeof *order, by_order);
    for (int64_t i = 0; i < c->latent_channels; i++)
        for (int64_t k = 0; k < all; k++)
            (*basis)[i * all + k] = (float)(cosine(order[i].u, k / 3 / p, p) * cosine(order[i].v, k / 3 % p, p) *
                                            colours[order[i].colour][k % 3]);
done:
    cdad_free(order);
    if (status != CDAD_OK) {
        cdad_free(*basis);
        *basis = NULL;
    }
    return status;
}

cdad_value cdad_dct_encode_build(cdad_builder *b, const cdad_dct_config *c, cdad_value image) {
    const cdad_shape *s = cdad_build_shape(b, image);
    float *basis = NULL;
    if (b->status == CDAD_OK && (s->dim[1] % c->patch || s->dim[2] % c->patch))
        cdad_build_fail(b, CDAD_SHAPE, "dct: an image of %lld x %lld is no multiple of %lld", (long long)s->dim[1],
                        (long long)s->dim[2], (long long)c->patch);
    if (b->status == CDAD_OK)
        b->status = make_basis(c, &basis, b->err);
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const cdad_value w =
        cdad_build_const(b, cdad_shape_make(4, c->latent_channels, c->patch, c->patch, (int64_t)3), basis);
    cdad_free(basis);
    return cdad_build_op(b, "conv2d", 3, CDAD_IN(image, w, CDAD_NONE), "stride", (double)c->patch, NULL);
}

cdad_value cdad_dct_decode_build(cdad_builder *b, const cdad_dct_config *c, cdad_value latent) {
    const int64_t all = c->patch * c->patch * 3;
    float *basis = NULL, *transposed = NULL;
    if (b->status == CDAD_OK)
        b->status = make_basis(c, &basis, b->err);
    if (b->status == CDAD_OK)
        b->status = cdad_alloc((void **)&transposed, all * c->latent_channels * (int64_t)sizeof(float), b->err);
    cdad_value y = CDAD_NONE;
    if (b->status == CDAD_OK) {
        for (int64_t i = 0; i < c->latent_channels; i++)
            for (int64_t k = 0; k < all; k++)
                transposed[k * c->latent_channels + i] = basis[i * all + k];
        const cdad_value w = cdad_build_const(b, cdad_shape_make(2, all, c->latent_channels), transposed);
        y = cdad_build_op(b, "linear", 3, CDAD_IN(latent, w, CDAD_NONE), NULL);
        y = cdad_build_op(b, "depth_to_space", 1, &y, "block", (double)c->patch, NULL);
    }
    cdad_free(basis);
    cdad_free(transposed);
    return y;
}

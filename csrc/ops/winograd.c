/* The choice between direct convolution and Winograd's, by what each costs. */
#include "ops/winograd.h"

#include "ops/narrow.h"

/* Fitted to times of both on AVX-512 (benchmarks/RESULTS.md). */
#define PIXEL_COST 20.0 /* a transformed element of x or y */
#define WEIGHT_COST 3.0 /* a transformed weight, by each of the samples that share it (about five) */
/* Up to this many input times output channels the narrow convolution is faster: Winograd's products are too short. */
#define NARROW_PRODUCTS 256

static int disabled;

void cdad_winograd_disable(void) { disabled = 1; }

cdad_status cdad_winograd_check(const char *op, int64_t attr, int64_t R, int64_t S, int64_t stride, cdad_error *err) {
    CDAD_FAIL_IF(attr != -1 && attr != 0 && attr != 2 && attr != 4, err, CDAD_INVALID,
                 "%s: winograd is %lld, -1, 0, 2 or 4 is wanted", op, (long long)attr);
    CDAD_FAIL_IF(attr > 0 && (R != 3 || S != 3 || stride != 1), err, CDAD_INVALID,
                 "%s: winograd %lld wants a 3 x 3 kernel and stride 1, not %lld x %lld and %lld", op, (long long)attr,
                 (long long)R, (long long)S, (long long)stride);
    return CDAD_OK;
}

/* Of F(m x m, 3 x 3) for a sample, in multiply-adds of a well-fed product: the products, and the transforms. */
static double cost(const cdad_unfold *u, int64_t O, int64_t m) {
    const double C = (double)u->C, places = (double)((m + 2) * (m + 2));
    const double tiles = (double)(((u->P + m - 1) / m) * ((u->Q + m - 1) / m));
    return places * (tiles * C * (double)O + PIXEL_COST * tiles * (C + (double)O) + WEIGHT_COST * C * (double)O);
}

int cdad_winograd_choose(int64_t attr, const cdad_unfold *u, int64_t O) {
    if (attr >= 0)
        return (int)attr;
    if (disabled || u->R != 3 || u->S != 3 || u->stride != 1)
        return 0;
    if (u->C * O <= NARROW_PRODUCTS && cdad_narrow_choose(u, O))
        return 0;
    const double direct = 9.0 * (double)(u->P * u->Q) * (double)u->C * (double)O;
    const double two = cost(u, O, 2), four = cost(u, O, 4);
    return direct <= two && direct <= four ? 0 : two < four ? 2 : 4;
}

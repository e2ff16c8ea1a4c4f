/* The choice between direct convolution and Winograd's, by what each costs. */
#include "ops/winograd.h"

#include "ops/narrow.h"

/* In multiply-adds of a well-fed product, fitted to times on AVX-512 (benchmarks/RESULTS.md). */
typedef struct costs {
    double pixel;  /* a transformed element of x or y */
    double weight; /* of a weight: transformed, by each of the samples that share it (about five) */
    /* Up to so many input times output channels the narrow convolution, where it is chosen, is faster: Winograd's
     * products are too short. */
    int64_t narrow;
    int (*is_narrow)(const cdad_kernels *kernels, const cdad_unfold *u, int64_t O);
} costs;

static const costs forward = {.pixel = 20.0, .weight = 3.0, .narrow = 256, .is_narrow = cdad_narrow_choose};
static const costs gradient = {.pixel = 40.0, .weight = 16.0, /* transformed once */
                               .narrow = 768, .is_narrow = cdad_narrow_choose_grad_weight};

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

/* Of F(m x m, 3 x 3) for so many samples: the products, and the transforms of pixels and of weights. */
static double cost(const cdad_unfold *u, int64_t O, int64_t m, double samples, const costs *each) {
    const double C = (double)u->C, places = (double)((m + 2) * (m + 2));
    const double tiles = samples * (double)(((u->P + m - 1) / m) * ((u->Q + m - 1) / m));
    return places * (tiles * C * (double)O + each->pixel * tiles * (C + (double)O) + each->weight * C * (double)O);
}

/* A device's table that has the CPU's ways runs them by the CPU's kernels. */
static double bf16_speed(const cdad_kernels *kernels) {
    return (kernels->bf16_speed ? kernels : cdad_kernels_select(NULL))->bf16_speed();
}

static int choose(const cdad_kernels *kernels, int64_t attr, int64_t precision, const cdad_unfold *u, int64_t O, double samples,
                  const costs *each) {
    if (!kernels->winograd)
        return 0;
    if (attr >= 0)
        return (int)attr;
    if (disabled || u->R != 3 || u->S != 3 || u->stride != 1)
        return 0;
    if (u->C * O <= each->narrow && each->is_narrow(kernels, u, O))
        return 0;
    const double direct = 9.0 / (precision == CDAD_BFLOAT16 ? bf16_speed(kernels) : 1.0) * samples * (double)(u->P * u->Q) * (double)u->C * (double)O;
    const double two = cost(u, O, 2, samples, each), four = cost(u, O, 4, samples, each);
    return direct <= two && direct <= four ? 0 : two < four ? 2 : 4;
}

int cdad_winograd_choose(const cdad_kernels *kernels, int64_t attr, int64_t precision, const cdad_unfold *u, int64_t O) {
    return choose(kernels, attr, precision, u, O, 1.0, &forward);
}

int cdad_winograd_choose_grad(const cdad_kernels *kernels, int64_t attr, int64_t precision, const cdad_unfold *u, int64_t O) {
    return choose(kernels, attr, precision, u, O, (double)u->N, &gradient);
}

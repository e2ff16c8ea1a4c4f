/* The choice of convolution straight from the image.
 *
 * Unfolding costs about as much as 16 to 20 multiply-adds an element, whatever there is to multiply it by. It is saved
 * where there are few output channels, or few input channels, whose short runs are slow to copy. With more of both, the
 * rows and weights that a tile reads no longer stay in the first-level cache; short rows are mostly edge. The bounds
 * are by times of both ways on AVX-512, within them 1.04 to 3.8 times as fast (AVX2: 1.03 at least). */
#include "ops/narrow.h"

enum {
    FEWEST_PIXELS = 16,  /* of a row */
    PRODUCTS = 3072,     /* of input and output channels at most, */
    OUTPUTS = 128,       /* and output channels */
    GRAD_PRODUCTS = 2048,
    GRAD_LANES = 16,     /* the gradient's lanes are channels of dy: not to be left empty, */
    SHORT_C = 4,         /* unless unfolding is so slow that it would still be worth it */
};

int cdad_narrow_choose(const cdad_kernels *kernels, const cdad_unfold *u, int64_t O) {
    return kernels->narrow_conv2d && u->up == 1 && u->R * u->S > 0 && u->Q >= FEWEST_PIXELS && O <= OUTPUTS && u->C * O <= PRODUCTS;
}

int cdad_narrow_choose_grad_weight(const cdad_kernels *kernels, const cdad_unfold *u, int64_t O) {
    return kernels->narrow_conv2d && u->up == 1 && u->Q >= FEWEST_PIXELS && u->C * O <= GRAD_PRODUCTS && (O % GRAD_LANES == 0 || u->C <= SHORT_C);
}

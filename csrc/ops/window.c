/* The window that a convolution slides over an image. */
#include "ops/window.h"

cdad_status cdad_window_positions(const char *op, const cdad_attr *attr, int64_t H, int64_t W, int64_t R,
                                  int64_t S, int64_t *P, int64_t *Q, cdad_error *err) {
    const int64_t stride = attr[CDAD_STRIDE].i;
    CDAD_FAIL_IF(stride < 1, err, CDAD_INVALID, "%s: stride is %lld, at least 1 is wanted", op,
                 (long long)stride);
    for (int i = CDAD_PAD_T; i <= CDAD_PAD_R; i++) {
        const int64_t pad = attr[i].i, side = i == CDAD_PAD_T || i == CDAD_PAD_B ? R : S;
        CDAD_FAIL_IF(pad < 0 || pad >= side, err, CDAD_INVALID,
                     "%s: padding of %lld, 0 to %lld are possible with a %lld x %lld kernel", op,
                     (long long)pad, (long long)side - 1, (long long)R, (long long)S);
    }
    const int64_t h = H + attr[CDAD_PAD_T].i + attr[CDAD_PAD_B].i,
                  w = W + attr[CDAD_PAD_L].i + attr[CDAD_PAD_R].i;
    CDAD_FAIL_IF(h < R || w < S, err, CDAD_SHAPE,
                 "%s: a padded image of %lld x %lld is smaller than a %lld x %lld kernel", op, (long long)h,
                 (long long)w, (long long)R, (long long)S);
    *P = (h - R) / stride + 1;
    *Q = (w - S) / stride + 1;
    return CDAD_OK;
}

cdad_unfold cdad_window_unfold(const cdad_attr *attr, const cdad_shape *x, const cdad_shape *y, int64_t R,
                               int64_t S, int64_t up) {
    return (cdad_unfold){.N = x->dim[0],
                         .H = x->dim[1],
                         .W = x->dim[2],
                         .C = x->dim[3],
                         .P = y->dim[1],
                         .Q = y->dim[2],
                         .R = R,
                         .S = S,
                         .stride = attr[CDAD_STRIDE].i,
                         .pad_t = attr[CDAD_PAD_T].i,
                         .pad_l = attr[CDAD_PAD_L].i,
                         .up = up};
}

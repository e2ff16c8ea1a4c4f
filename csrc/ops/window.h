/* The window that a convolution slides over an image: its attributes, checks, and how it unfolds. */
#ifndef CDAD_OPS_WINDOW_H
#define CDAD_OPS_WINDOW_H

#include "ops/support.h"

/* The attributes that every op with a window begins with. */
enum { CDAD_STRIDE, CDAD_PAD_T, CDAD_PAD_L, CDAD_PAD_B, CDAD_PAD_R, CDAD_WINDOW_END };
#define CDAD_WINDOW_ATTRS                                                                    \
    CDAD_INT("stride", 1), CDAD_INT("pad_t", 0), CDAD_INT("pad_l", 0), CDAD_INT("pad_b", 0), \
        CDAD_INT("pad_r", 0)

/* Windows of R x S over H x W pixels: checks the attributes, and gives the number of positions P x Q. */
CDAD_MUST_USE cdad_status cdad_window_positions(const char *op, const cdad_attr *attr, int64_t H, int64_t W,
                                                int64_t R, int64_t S, int64_t *P, int64_t *Q,
                                                cdad_error *err);

/* The unfolding of x [N,H,W,C], enlarged `up` times, for y [N,P,Q,...] and windows of R x S. */
cdad_unfold cdad_window_unfold(const cdad_attr *attr, const cdad_shape *x, const cdad_shape *y, int64_t R,
                               int64_t S, int64_t up);

/* The unfolding of a conv2d's input x [N,H,W,C] for its weight w [O,R,S,C] and output y [N,P,Q,O]. */
cdad_unfold cdad_conv2d_unfold(const cdad_attr *attr, const cdad_shape *x, const cdad_shape *w,
                               const cdad_shape *y);

#endif

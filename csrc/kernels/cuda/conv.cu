/* The convolutions that have slots of their own because of how CPUs compute them best (Winograd's, and those of few
 * channels): here all are products with the gathered image. */
#include "kernels/cuda/backend.h"

/* to [9*C,O]: a weight whose tap (r, s) lies r*tap_r + s*tap_s floats after w's. */
__global__ static void taps_kernel(float *to, cdad_mat w, int64_t tap_r, int64_t tap_s, int64_t C, int64_t O) {
    CUDA_EACH(i, 9 * C * O) {
        const int64_t o = i % O, c = i / O % C, tap = i / O / C;
        to[i] = w.data[tap / 3 * tap_r + tap % 3 * tap_s + c * w.rs + o * w.cs];
    }
}

static int64_t taps_bytes(const cdad_unfold *u, int64_t O) {
    return cdad_align_up(9 * u->C * O * (int64_t)sizeof(float));
}

static int64_t product_scratch(const cdad_unfold *u, int64_t O) {
    return cuda_gemm_scratch(u->N * u->P * u->Q, O, u->R * u->S * u->C, 1);
}

void cuda_winograd(const cdad_context *ctx, float *y, const float *x, cdad_mat w, int64_t tap_r, int64_t tap_s,
                   const cdad_epilogue *with, const cdad_unfold *u, int64_t O, int m, void *scratch) {
    float *taps = (float *)scratch;
    (void)m;
    CDAD_LAUNCH(taps_kernel, cuda_blocks(9 * u->C * O), CUDA_THREADS, cuda_stream(ctx), taps, w, tap_r, tap_s, u->C, O);
    cdad_epilogue exact = with ? *with : cdad_epilogue();
    exact.bf16 = 0; /* as on the CPU */
    cuda_gemm(ctx, u->N * u->P * u->Q, O, 9 * u->C, cdad_mat{x, 0, 0, u}, cdad_mat{taps, O, 1, NULL}, y, O, &exact,
              (char *)scratch + taps_bytes(u, O));
}

int64_t cuda_winograd_scratch(const cdad_unfold *u, int64_t O, int m, int threads) {
    (void)m;
    (void)threads;
    return taps_bytes(u, O) + product_scratch(u, O);
}

/* dw [O,R,S,C] = dy^T [O,N*P*Q] times the unfolded image. */
static void grad_weight(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold *u,
                        int64_t O, void *scratch) {
    const int64_t K = u->R * u->S * u->C;
    cuda_gemm(ctx, O, K, u->N * u->P * u->Q, cdad_mat{dy, 1, O, NULL}, cdad_mat{x, 0, 0, u}, dw, K, NULL, scratch);
}

/* For the product above. */
static int64_t grad_scratch(const cdad_unfold *u, int64_t O) {
    return cuda_gemm_scratch(O, u->R * u->S * u->C, u->N * u->P * u->Q, 1);
}

void cuda_winograd_grad(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold *u,
                        int64_t O, int m, void *scratch) {
    (void)m;
    grad_weight(ctx, dw, x, dy, u, O, scratch);
}

int64_t cuda_winograd_grad_scratch(const cdad_unfold *u, int64_t O, int m, int threads) {
    (void)m;
    (void)threads;
    return grad_scratch(u, O);
}

/* Places rows of O channels at their pixels; sum lies as y does. */
__global__ static void place_kernel(cdad_pixels y, const float *rows, int64_t count, int64_t P, int64_t Q, int64_t O,
                                    cdad_epilogue with) {
    CUDA_EACH(i, count) {
        const int64_t o = i % O, q = i / O % Q, p = i / O / Q % P, n = i / O / Q / P;
        const int64_t at = n * y.image + p * y.row + q * y.pixel + o;
        float v = rows[i];
        if (with.bias)
            v += with.bias[o];
        if (with.sum)
            v += with.sum[at];
        y.data[at] = cuda_activate(v, with.act);
    }
}

static int64_t rows_bytes(const cdad_unfold *u, int64_t O) {
    return cdad_align_up(u->N * u->P * u->Q * O * (int64_t)sizeof(float));
}

void cuda_narrow_conv2d(const cdad_context *ctx, cdad_pixels y, const float *x, cdad_mat w, const cdad_epilogue *with,
                        const cdad_unfold *u, int64_t O, void *scratch) {
    const int64_t rows = u->N * u->P * u->Q;
    const cdad_epilogue how = with ? *with : cdad_epilogue();
    float *plain = (float *)scratch; /* [N,P,Q,O] */
    cuda_gemm(ctx, rows, O, u->R * u->S * u->C, cdad_mat{x, 0, 0, u}, w, plain, O, NULL,
              (char *)scratch + rows_bytes(u, O));
    CDAD_LAUNCH(place_kernel, cuda_blocks(rows * O), CUDA_THREADS, cuda_stream(ctx), y, plain, rows * O, u->P, u->Q, O, how);
    cuda_launched(ctx, "narrow_conv2d");
}

int64_t cuda_narrow_conv2d_scratch(const cdad_unfold *u, int64_t O, int threads) {
    (void)threads;
    return rows_bytes(u, O) + product_scratch(u, O);
}

void cuda_narrow_conv2d_grad_weight(const cdad_context *ctx, float *dw, const float *dy, const float *x,
                                    const cdad_unfold *u, int64_t O, void *scratch) {
    grad_weight(ctx, dw, x, dy, u, O, scratch);
}

int64_t cuda_narrow_conv2d_grad_weight_scratch(const cdad_unfold *u, int64_t O, int threads) {
    (void)threads;
    return grad_scratch(u, O);
}

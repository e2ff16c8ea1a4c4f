/* Changing an image's size, copying runs, gathering rows, embedding timesteps. */
#include "kernels/cuda/backend.h"

template <typename I> __global__ static void upsample_kernel(float *y, const float *x, I n, I W, I C) {
    CUDA_EACH_OF(I, i, n) { /* an element of y [N*2H,2W,C] */
        const I c = i % C, q = i / C % (2 * W), row = i / C / (2 * W);
        y[i] = x[(row / 2 * W + q / 2) * C + c];
    }
}

void cuda_upsample2x(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W, int64_t C) {
    const int64_t n = 4 * N * H * W * C;
    CDAD_LAUNCH_EACH(upsample_kernel, n, cuda_stream(ctx), y, x, n, W, C);
    cuda_launched(ctx, "upsample2x");
}

template <typename I> __global__ static void upsample_grad_kernel(float *dx, const float *dy, I n, I W, I C) {
    CUDA_EACH_OF(I, i, n) { /* an element of dx [N*H,W,C] */
        const I c = i % C, w = i / C % W, row = i / C / W;
        const float *top = dy + ((int64_t)(4 * row) * W + 2 * w) * C + c, *bottom = top + 2 * W * C;
        dx[i] = (top[0] + top[C]) + (bottom[0] + bottom[C]);
    }
}

void cuda_upsample2x_grad(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H, int64_t W,
                          int64_t C) {
    const int64_t n = N * H * W * C;
    CDAD_LAUNCH_INDEXED(upsample_grad_kernel, 4 * n, n, cuda_stream(ctx), dx, dy, n, W, C);
    cuda_launched(ctx, "upsample2x_grad");
}

/* Where output i of `out` reads among `in`: two neighbours and the second one's weight (align_corners = False). */
__device__ static void source(int64_t i, int64_t in, int64_t out, int64_t *lo, int64_t *hi, float *weight) {
    double at = ((double)i + 0.5) * (double)in / (double)out - 0.5;
    at = at < 0.0 ? 0.0 : at;
    *lo = (int64_t)at < in - 1 ? (int64_t)at : in - 1;
    *hi = *lo + 1 < in - 1 ? *lo + 1 : in - 1;
    *weight = (float)(at - (double)*lo);
}

template <typename I> __global__ static void resize_kernel(float *y, const float *x, I n, I H, I W, I C, I P, I Q) {
    CUDA_EACH_OF(I, i, n) { /* an element of y [N,P,Q,C] */
        const I c = i % C, q = i / C % Q, p = i / C / Q % P;
        const float *image = x + (int64_t)(i / C / Q / P) * H * W * C + c;
        int64_t h0, h1, w0, w1;
        float a, b;
        source(p, H, P, &h0, &h1, &a);
        source(q, W, Q, &w0, &w1, &b);
        const float *top = image + h0 * W * C, *bottom = image + h1 * W * C;
        const float t = top[w0 * C] + b * (top[w1 * C] - top[w0 * C]);
        const float u = bottom[w0 * C] + b * (bottom[w1 * C] - bottom[w0 * C]);
        y[i] = t + a * (u - t);
    }
}

void cuda_resize_bilinear(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W, int64_t C,
                          int64_t P, int64_t Q) {
    const int64_t n = N * P * Q * C;
    CDAD_LAUNCH_EACH(resize_kernel, n, cuda_stream(ctx), y, x, n, H, W, C, P, Q);
    cuda_launched(ctx, "resize_bilinear");
}

/* T: what a thread copies, a float or four; the runs are counted in it. */
template <typename I, typename T> __device__ static void copy_units(T *dst, const T *src, const cdad_runs &r, I n) {
    const I w = (I)r.w, n1 = (I)r.n[1], n2 = (I)r.n[2];
    CUDA_EACH_OF(I, i, n) {
        const I run = i / w, at = i % w, c = run % n2, b = run / n2 % n1, a = run / n2 / n1;
        dst[a * r.to[0] + b * r.to[1] + c * r.to[2] + at] = src[a * r.from[0] + b * r.from[1] + c * r.from[2] + at];
    }
}
template <typename I> __global__ static void copy_kernel(float *dst, const float *src, cdad_runs r, I n) {
    copy_units<I, float>(dst, src, r, n);
}
template <typename I> __global__ static void copy4_kernel(float *dst, const float *src, cdad_runs r, I n) {
    copy_units<I, float4>((float4 *)dst, (const float4 *)src, r, n);
}

void cuda_copy_runs(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs) {
    cdad_runs r = *runs;
    const int64_t n = r.n[0] * r.n[1] * r.n[2] * r.w;
    bool by_four = r.w % 4 == 0 && ((uintptr_t)dst | (uintptr_t)src) % 16 == 0;
    for (int k = 0; k < 3; k++)
        by_four = by_four && (r.to[k] | r.from[k]) % 4 == 0;
    if (by_four) {
        r.w /= 4;
        for (int k = 0; k < 3; k++) {
            r.to[k] /= 4;
            r.from[k] /= 4;
        }
        CDAD_LAUNCH_EACH(copy4_kernel, n / 4, cuda_stream(ctx), dst, src, r, n / 4);
    } else {
        CDAD_LAUNCH_EACH(copy_kernel, n, cuda_stream(ctx), dst, src, r, n);
    }
    cuda_launched(ctx, "copy_runs");
}

/* A block counts the ids that are no row's. */
__global__ static void count_kernel(double *sums, const float *ids, int64_t n, int64_t rows) {
    double bad = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += CUDA_THREADS)
        bad += ids[i] >= 0.0f && ids[i] < (float)rows && ids[i] == truncf(ids[i]) ? 0.0 : 1.0;
    bad = cuda_block_sum(bad);
    if (threadIdx.x == 0)
        sums[0] = bad;
}

/* Waits for the device. Negative: it failed, which the next check tells. */
static int are_rows(const cdad_context *ctx, const float *ids, int64_t n, int64_t rows, const char *what) {
    cudaStream_t stream = cuda_stream(ctx);
    double *sums = cuda_sums_take(ctx);
    CDAD_LAUNCH_JOINED(count_kernel, 1, CUDA_THREADS, stream, sums, ids, n, rows);
    const double bad = cuda_sums_read(ctx, what);
    return bad >= 0.0 ? bad == 0.0 : -1;
}

__global__ static void gather_kernel(float *y, const float *table, const float *ids, int64_t n, int64_t C) {
    CUDA_EACH(i, n * C) y[i] = table[(int64_t)ids[i / C] * C + i % C];
}

int cuda_gather_rows(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n, int64_t rows,
                     int64_t C) {
    const int valid = are_rows(ctx, ids, n, rows, "gather_rows");
    if (valid <= 0)
        return valid < 0;
    CDAD_LAUNCH(gather_kernel, cuda_blocks(n * C), CUDA_THREADS, cuda_stream(ctx), y, table, ids, n, C);
    cuda_launched(ctx, "gather_rows");
    return 1;
}

/* A thread sums a column, so that the order is that of the ids. */
__global__ static void scatter_kernel(float *dtable, const float *dy, const float *ids, int64_t n, int64_t C) {
    CUDA_EACH(c, C) {
        for (int64_t i = 0; i < n; i++)
            dtable[(int64_t)ids[i] * C + c] += dy[i * C + c];
    }
}

int cuda_scatter_rows(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n, int64_t rows,
                      int64_t C) {
    const int valid = are_rows(ctx, ids, n, rows, "scatter_rows");
    if (valid <= 0)
        return valid < 0;
    cudaMemsetAsync(dtable, 0, (size_t)(rows * C) * sizeof(float), cuda_stream(ctx)); /* its failure is the launch's */
    CDAD_LAUNCH(scatter_kernel, cuda_blocks(C), CUDA_THREADS, cuda_stream(ctx), dtable, dy, ids, n, C);
    cuda_launched(ctx, "scatter_rows");
    return 1;
}

__global__ static void embedding_kernel(float *y, const float *t, int64_t N, int64_t D) {
    const int64_t half = D / 2;
    CUDA_EACH(i, N * D) {
        const int64_t k = i % D;
        const double number = (double)(k < half ? k : k - half);
        const float f = (float)exp(-log(10000.0) * number / (double)half); /* rounded to float first, as PyTorch's is */
        const float angle = t[i / D] * f;
        y[i] = k < half ? (float)cos((double)angle) : k < 2 * half ? (float)sin((double)angle) : 0.0f;
    }
}

void cuda_timestep_embedding(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D) {
    CDAD_LAUNCH(embedding_kernel, cuda_blocks(N * D), CUDA_THREADS, cuda_stream(ctx), y, t, N, D);
    cuda_launched(ctx, "timestep_embedding");
}

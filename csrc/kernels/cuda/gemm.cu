/* Products by cuBLAS. An operand that is unfolded from an image is gathered into scratch, so many rows at a time that a
 * tile stays within TILE_BYTES, and multiplied from there. */
#include "kernels/cuda/backend.h"

enum { TILE_BYTES = 64 << 20 };

/* to [rows,R*S*C]: rows `first` and following of the unfolded image. T: what a thread copies, floats or runs of four channels;
 * C in its units, as `count`. */
template <typename I, typename T>
__device__ static void gather_units(T *to, const T *x, const cdad_unfold &u, I C, int64_t first, I count) {
    const I S = (I)u.S, Q = (I)u.Q, P = (I)u.P, width = (I)u.R * S * C;
    CUDA_EACH_OF(I, i, count) {
        const I k = i % width, c = k % C, tap = k / C, row = (I)first + i / width;
        const int64_t h = (int64_t)(row / Q % P) * u.stride + tap / S - u.pad_t;
        const int64_t w = (int64_t)(row % Q) * u.stride + tap % S - u.pad_l;
        const int inside = h >= 0 && h < u.H * u.up && w >= 0 && w < u.W * u.up;
        const int64_t y = u.up == 2 ? h / 2 : h, v = u.up == 2 ? w / 2 : w;
        to[i] = inside ? x[(((int64_t)(row / Q / P) * u.H + y) * u.W + v) * C + c] : T();
    }
}

template <typename I> __global__ static void gather_kernel(float *to, const float *x, cdad_unfold u, int64_t first, I count) {
    gather_units<I, float>(to, x, u, (I)u.C, first, count);
}
template <typename I> __global__ static void gather4_kernel(float *to, const float *x, cdad_unfold u, int64_t first, I count) {
    gather_units<I, float4>((float4 *)to, (const float4 *)x, u, (I)u.C / 4, first, count);
}

void cuda_gather(const cdad_context *ctx, float *to, const cdad_mat &X, int64_t first, int64_t rows) {
    const cdad_unfold u = *X.unfold;
    const int64_t count = rows * u.R * u.S * u.C;
    const int64_t most = cuda_max(count, u.N * u.P * u.Q); /* of an index */
    if (u.C % 4 == 0 && ((uintptr_t)X.data | (uintptr_t)to) % 16 == 0)
        CDAD_LAUNCH_INDEXED(gather4_kernel, most, count / 4, cuda_stream(ctx), to, X.data, u, first, count / 4);
    else
        CDAD_LAUNCH_INDEXED(gather_kernel, most, count, cuda_stream(ctx), to, X.data, u, first, count);
}

/* Rows of `width` floats (a phase of a convolution may have none) that make a tile. */
static int64_t tile_rows(int64_t rows, int64_t width) {
    return width == 0 ? 0 : cuda_max(1, cuda_min(rows, TILE_BYTES / (width * (int64_t)sizeof(float))));
}

template <typename I> __global__ static void epilogue_kernel(float *C, int64_t ldc, I count, I N, cdad_epilogue with) {
    CUDA_EACH_OF(I, i, count) {
        const I n = i % N;
        const int64_t at = i / N * ldc + n;
        float x = C[at];
        if (with.bias)
            x += with.bias[n];
        if (with.sum)
            x += with.sum[at];
        C[at] = cuda_activate(x, with.act);
    }
}

void cuda_gemm(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, int64_t ldc,
               const cdad_epilogue *with, void *scratch) {
    float *tile = (float *)scratch;
    cuda_product p = {M, N, K, 1, A, B, C, ldc, 0, 0, 0, 1.0f, with && with->accumulate ? 1.0f : 0.0f,
                      with ? with->precision : CDAD_FLOAT32};
    if (A.unfold) {
        const int64_t step = tile_rows(M, K);
        for (int64_t m = 0; m < M; m += step) {
            p.M = cuda_min(step, M - m);
            cuda_gather(ctx, tile, A, m, p.M);
            p.A = cdad_mat{tile, K, 1, NULL};
            p.C = C + m * ldc;
            cuda_multiply(ctx, &p, "gemm");
        }
    } else if (B.unfold) {
        const int64_t step = tile_rows(K, N);
        for (int64_t k = 0; k < K; k += step) {
            p.K = cuda_min(step, K - k);
            cuda_gather(ctx, tile, B, k, p.K);
            p.A.data = A.data + k * A.cs;
            p.B = cdad_mat{tile, N, 1, NULL};
            cuda_multiply(ctx, &p, "gemm");
            p.beta = 1.0f;
        }
    } else {
        cuda_multiply(ctx, &p, "gemm");
    }
    if (with && (with->bias || with->sum || with->act)) {
        const cdad_epilogue how = *with;
        CDAD_LAUNCH_EACH(epilogue_kernel, M * N, cuda_stream(ctx), C, ldc, M * N, N, how);
    }
    cuda_launched(ctx, "gemm");
}

/* For either operand gathered. */
int64_t cuda_gemm_scratch(int64_t M, int64_t N, int64_t K, int threads) {
    (void)threads;
    return cuda_max(tile_rows(M, K) * K, tile_rows(K, N) * N) * (int64_t)sizeof(float);
}

/* Products by cuBLAS. An operand that is unfolded from an image is gathered into scratch, so many rows at a time that a
 * tile stays within TILE_BYTES, and multiplied from there. */
#include "kernels/cuda/backend.h"

enum { TILE_BYTES = 64 << 20 };

/* to [rows,R*S*C]: rows `first` and following of the unfolded image. */
__global__ static void gather_kernel(float *to, const float *x, cdad_unfold u, int64_t first, int64_t count) {
    const int64_t width = u.R * u.S * u.C;
    CUDA_EACH(i, count) {
        const int64_t k = i % width, c = k % u.C, s = k / u.C % u.S, r = k / u.C / u.S;
        const int64_t row = first + i / width, q = row % u.Q, p = row / u.Q % u.P, n = row / u.Q / u.P;
        const int64_t h = p * u.stride + r - u.pad_t, w = q * u.stride + s - u.pad_l;
        const int inside = h >= 0 && h < u.H * u.up && w >= 0 && w < u.W * u.up;
        to[i] = inside ? x[((n * u.H + h / u.up) * u.W + w / u.up) * u.C + c] : 0.0f;
    }
}

static void gather(const cdad_context *ctx, float *to, const cdad_mat &X, int64_t first, int64_t rows) {
    const cdad_unfold u = *X.unfold;
    const int64_t count = rows * u.R * u.S * u.C;
    CDAD_LAUNCH(gather_kernel, cuda_blocks(count), CUDA_THREADS, cuda_stream(ctx), to, X.data, u, first, count);
}

/* Rows of `width` floats (a phase of a convolution may have none) that make a tile. */
static int64_t tile_rows(int64_t rows, int64_t width) {
    return width == 0 ? 0 : cuda_max(1, cuda_min(rows, TILE_BYTES / (width * (int64_t)sizeof(float))));
}

__global__ static void epilogue_kernel(float *C, int64_t ldc, int64_t count, int64_t N, cdad_epilogue with) {
    CUDA_EACH(i, count) {
        const int64_t n = i % N, at = i / N * ldc + n;
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
            gather(ctx, tile, A, m, p.M);
            p.A = cdad_mat{tile, K, 1, NULL};
            p.C = C + m * ldc;
            cuda_multiply(ctx, &p, "gemm");
        }
    } else if (B.unfold) {
        const int64_t step = tile_rows(K, N);
        for (int64_t k = 0; k < K; k += step) {
            p.K = cuda_min(step, K - k);
            gather(ctx, tile, B, k, p.K);
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
        CDAD_LAUNCH(epilogue_kernel, cuda_blocks(M * N), CUDA_THREADS, cuda_stream(ctx), C, ldc, M * N, N, how);
    }
    cuda_launched(ctx, "gemm");
}

/* For either operand gathered. */
int64_t cuda_gemm_scratch(int64_t M, int64_t N, int64_t K, int threads) {
    (void)threads;
    return cuda_max(tile_rows(M, K) * K, tile_rows(K, N) * N) * (int64_t)sizeof(float);
}

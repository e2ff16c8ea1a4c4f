/* Products with sparse test vectors, and what they add to a sketch. */
#include "kernels/cuda/backend.h"

/* z[t*rows + r]: a block's threads take test vectors of one row, whose features lie in the cache. */
__global__ static void test_kernel(float *z, const float *x, const int32_t *signs, int64_t rows, int64_t d, int64_t M) {
    const int32_t *ends = signs, *places = signs + 2 * M;
    CUDA_EACH(i, rows * M) {
        const int64_t r = i / M, t = i - r * M;
        const float *row = x + r * d;
        int32_t at = t > 0 ? ends[2 * t - 1] : 0;
        float sum = 0;
        for (const int32_t end = ends[2 * t]; at < end; at++)
            sum += row[places[at]];
        for (const int32_t end = ends[2 * t + 1]; at < end; at++)
            sum -= row[places[at]];
        z[t * rows + r] = sum;
    }
}

__global__ static void total_kernel(double *total, const double *sum) { *total += *sum; }

void cuda_sketch_add(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                     const int32_t *signs, int64_t M, int rounded, void *scratch) {
    (void)rounded; /* float32 takes no time here */
    double *sum = (double *)scratch;
    float *z = (float *)(sum + 2), *gathered = z + (M * rows + 3) / 4 * 4;
    const float *x = gathered;
    if (X.unfold)
        cuda_gather(ctx, gathered, X, first, rows);
    else
        x = X.data + first * d;
    cuda_sum_squares(ctx, sum, x, rows * d);
    CDAD_LAUNCH(total_kernel, 1, 1, cuda_stream(ctx), squares, sum);
    CDAD_LAUNCH(test_kernel, cuda_blocks(rows * M), CUDA_THREADS, cuda_stream(ctx), z, x, signs, rows, d, M);
    const cuda_product p = {M, d, rows, 1, cdad_mat_rows(z, rows), cdad_mat_rows(x, d), Y, d, 0, 0, 0, 1.0f, 1.0f, CDAD_FLOAT32, false};
    cuda_multiply(ctx, &p, "sketch_add");
    cuda_launched(ctx, "sketch_add");
}

int64_t cuda_sketch_scratch(int64_t rows, int64_t d, int64_t M, int rounded, int threads) {
    (void)rounded;
    (void)threads;
    return 2 * (int64_t)sizeof(double) + ((M * rows + 3) / 4 * 4 + rows * d) * (int64_t)sizeof(float);
}

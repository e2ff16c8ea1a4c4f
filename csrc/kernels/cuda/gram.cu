/* Gram matrices: float32 products of strips of columns with all columns before and in them, which double takes in. */
#include "kernels/cuda/backend.h"

enum { STRIP = 1024 };

/* G [.,d] += strip [n / width, width], whose first column is G's column `first`. */
template <typename I> __global__ static void add_kernel(double *G, const float *strip, int64_t d, int64_t first, I width, I n) {
    CUDA_EACH_OF(I, i, n)
        G[(int64_t)(i / width) * d + first + i % width] += (double)strip[i];
}

void cuda_gram_add(const cdad_context *ctx, double *G, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16, void *scratch) {
    float *strip = (float *)scratch, *gathered = strip + d * cuda_min(STRIP, d);
    cdad_mat Y = X;
    if (X.unfold) {
        cuda_gather(ctx, gathered, X, first, rows);
        Y = cdad_mat{gathered, d, 1, NULL};
    } else {
        Y.data += first * Y.rs;
    }
    for (int64_t j = 0; j < d; j += STRIP) {
        const int64_t width = cuda_min(STRIP, d - j), above = j + width, n = above * width;
        const cdad_mat transposed = {Y.data, 1, Y.rs, NULL}, columns = {Y.data + j, Y.rs, 1, NULL};
        const cuda_product p = {above, width, rows, 1, transposed, columns, strip, width, 0, 0, 0, 1.0f, 0.0f,
                                bf16 ? CDAD_BFLOAT16 : CDAD_FLOAT32, false};
        cuda_multiply(ctx, &p, "gram_add");
        CDAD_LAUNCH_EACH(add_kernel, n, cuda_stream(ctx), G, strip, d, j, width, n);
    }
    cuda_launched(ctx, "gram_add");
}

int64_t cuda_gram_scratch(int64_t rows, int64_t d, int bf16) {
    (void)bf16;
    return (d * cuda_min(STRIP, d) + rows * d) * (int64_t)sizeof(float);
}

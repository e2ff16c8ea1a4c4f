/* Sums over the indices in which an operand was repeated: a block takes an element of the result. */
#include "kernels/cuda/backend.h"

/* The dimensions that stay, with their strides in y, and those that are summed over; strides in x of both. */
typedef struct sums_plan {
    int64_t kept[5], kept_x[5], kept_y[5], summed[5], summed_x[5];
    int64_t repeats;
} sums_plan;

__global__ static void reduce_kernel(float *y, const float *x, sums_plan p) {
    int64_t rest = blockIdx.x, to = 0, from = 0;
    for (int k = 4; k >= 0; k--) {
        const int64_t i = rest % p.kept[k];
        rest /= p.kept[k];
        to += i * p.kept_y[k];
        from += i * p.kept_x[k];
    }
    double sum = 0.0;
    for (int64_t j = threadIdx.x; j < p.repeats; j += CUDA_THREADS) {
        int64_t left = j, at = from;
        for (int k = 4; k >= 0; k--) {
            at += left % p.summed[k] * p.summed_x[k];
            left /= p.summed[k];
        }
        sum += (double)x[at];
    }
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        y[to] = (float)sum;
}

void cuda_reduce(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch) {
    sums_plan p;
    int64_t results = 1, stride = 1;
    (void)scratch;
    p.repeats = 1;
    for (int k = 4; k >= 0; k--) {
        const int stays = bc->stride[k] != 0;
        p.kept[k] = stays ? bc->dim[k] : 1;
        p.kept_y[k] = bc->stride[k];
        p.summed[k] = stays ? 1 : bc->dim[k];
        p.kept_x[k] = p.summed_x[k] = stride;
        stride *= bc->dim[k];
        results *= p.kept[k];
        p.repeats *= p.summed[k];
    }
    CDAD_LAUNCH_JOINED(reduce_kernel, (unsigned)results, CUDA_THREADS, cuda_stream(ctx), y, x, p);
    cuda_launched(ctx, "reduce");
}

int64_t cuda_reduce_scratch(const cdad_broadcast *bc) {
    (void)bc;
    return 0;
}

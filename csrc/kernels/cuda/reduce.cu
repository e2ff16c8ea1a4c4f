/* Sums over the indices in which an operand was repeated: a block takes an element of the result. The sums of a dense matrix's
 * columns, which are the gradients of biases, go by tiles of rows, and then over the tiles. */
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

enum { LANES = 32, TILE_ROWS = 256 };

/* [rows,C] with C the last dimensions, or C = 0: no such matrix. */
static int64_t columns_of(const cdad_broadcast *bc, int64_t *rows) {
    int64_t C = 1;
    int k = 4;
    for (; k >= 0 && (bc->dim[k] == 1 || bc->stride[k] == C); k--)
        C *= bc->dim[k];
    *rows = 1;
    for (; k >= 0; k--) {
        if (bc->dim[k] != 1 && bc->stride[k] != 0)
            return 0;
        *rows *= bc->dim[k];
    }
    return C > 1 && *rows > TILE_ROWS ? C : 0;
}

/* sums [tiles,C]; a block takes LANES columns of a tile. */
__global__ static void columns_kernel(double *sums, const float *x, int64_t rows, int64_t C) {
    __shared__ double parts[CUDA_THREADS];
    const int64_t blocks = (C + LANES - 1) / LANES, tile = blockIdx.x / blocks;
    const int64_t c = (int64_t)(blockIdx.x % blocks) * LANES + threadIdx.x % LANES;
    const int64_t end = (tile + 1) * TILE_ROWS < rows ? (tile + 1) * TILE_ROWS : rows;
    double sum = 0.0;
    for (int64_t i = tile * TILE_ROWS + threadIdx.x / LANES; c < C && i < end; i += CUDA_THREADS / LANES)
        sum += (double)x[i * C + c];
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= LANES || c >= C)
        return;
    for (int k = LANES + (int)threadIdx.x; k < CUDA_THREADS; k += LANES)
        sum += parts[k];
    sums[tile * C + c] = sum;
}

__global__ static void tiles_kernel(float *y, const double *sums, int64_t tiles, int64_t C) {
    CUDA_EACH(c, C) {
        double sum = 0.0;
        for (int64_t t = 0; t < tiles; t++)
            sum += sums[t * C + c];
        y[c] = (float)sum;
    }
}

void cuda_reduce(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch) {
    sums_plan p;
    int64_t results = 1, stride = 1, rows;
    const int64_t C = columns_of(bc, &rows);
    if (C > 0) {
        const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
        double *sums = (double *)scratch;
        CDAD_LAUNCH_JOINED(columns_kernel, (unsigned)(tiles * ((C + LANES - 1) / LANES)), CUDA_THREADS, cuda_stream(ctx), sums, x,
                           rows, C);
        CDAD_LAUNCH(tiles_kernel, cuda_blocks(C), CUDA_THREADS, cuda_stream(ctx), y, sums, tiles, C);
        cuda_launched(ctx, "reduce");
        return;
    }
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
    int64_t rows;
    const int64_t C = columns_of(bc, &rows);
    return C > 0 ? (rows + TILE_ROWS - 1) / TILE_ROWS * C * (int64_t)sizeof(double) : 0;
}

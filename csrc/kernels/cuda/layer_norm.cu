/* Layer norm: a warp takes a row and holds it, so that memory is read once; rows that it cannot hold, or not by four values at a time,
 * are a block's. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/norm.h"

enum { WARP = 32, WARPS = 4, GRAD_WARPS = 8 }; /* of a block */
enum { FOURS = 4 * WARP };                     /* values of a row that a warp takes at a time */
/* Of the gradient: so many tiles have one row a warp, then tiles grow up to MOST_ROWS a warp; rows of a tile where rows are a block's. */
enum { FEW_TILES = CUDA_THREADS, MOST_ROWS = 16, TILE = 64 };

/* How many times a warp holds FOURS values for rows of C, as the kernels below are made for; 0: it does not hold them. */
static int times_held(int64_t C) {
    static const int made[] = {1, 2, 3, 5, 8, 10};
    for (int times : made)
        if (C <= times * FOURS)
            return times;
    return 0;
}
#define LAUNCH_HELD(kernel, C, ...)                        \
    do {                                                   \
        switch (times_held(C)) {                           \
        case 1:                                            \
            CDAD_LAUNCH_JOINED(kernel<1>, __VA_ARGS__);    \
            break;                                         \
        case 2:                                            \
            CDAD_LAUNCH_JOINED(kernel<2>, __VA_ARGS__);    \
            break;                                         \
        case 3:                                            \
            CDAD_LAUNCH_JOINED(kernel<3>, __VA_ARGS__);    \
            break;                                         \
        case 5:                                            \
            CDAD_LAUNCH_JOINED(kernel<5>, __VA_ARGS__);    \
            break;                                         \
        case 8:                                            \
            CDAD_LAUNCH_JOINED(kernel<8>, __VA_ARGS__);    \
            break;                                         \
        default:                                           \
            CDAD_LAUNCH_JOINED(kernel<10>, __VA_ARGS__);   \
        }                                                  \
    } while (0)

template <int TIMES>
__global__ static void __launch_bounds__(WARPS *WARP)
    warp_kernel(float *y, float *mean, float *rstd, const float *x, const float *gamma, const float *beta, int64_t n, int C, float eps) {
    const int lane = (int)threadIdx.x % WARP;
    const int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    float v[TIMES][4], sum = 0.0f, left = 0.0f, squares = 0.0f;
    if (row >= n)
        return;
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++) {
        const int c = k * FOURS + 4 * lane;
        v[k][0] = v[k][1] = v[k][2] = v[k][3] = 0.0f;
        if (c < C)
            norm_load<4>(v[k], x + row * C + c);
    }
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++)
        sum += (v[k][0] + v[k][1]) + (v[k][2] + v[k][3]);
    const float near = norm_warp_sum(sum) / (float)C;
    /* What rounding left of the mean is found among the distances from it. */
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++) {
        if (k * FOURS + 4 * lane < C) {
            CUDA_UNROLL
            for (int j = 0; j < 4; j++) {
                const float d = v[k][j] - near;
                left += d;
                squares += d * d;
            }
        }
    }
    left = norm_warp_sum(left) / (float)C;
    squares = norm_warp_sum(squares) / (float)C;
    const float m = near + left, r = 1.0f / sqrtf(fmaxf(squares - left * left, 0.0f) + eps);
    if (lane == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++) {
        const int c = k * FOURS + 4 * lane;
        float g[4] = {1.0f, 1.0f, 1.0f, 1.0f}, b[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (c >= C)
            continue;
        if (gamma) {
            norm_load<4>(g, gamma + c);
            norm_load<4>(b, beta + c);
        }
        CUDA_UNROLL
        for (int j = 0; j < 4; j++)
            v[k][j] = (v[k][j] - m) * r * g[j] + b[j];
        norm_store<4>(y + row * C + c, v[k]);
    }
}

__global__ static void block_kernel(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                    const float *beta, int64_t C, float eps) {
    const float *row = x + (int64_t)blockIdx.x * C;
    float *to = y + (int64_t)blockIdx.x * C;
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS)
        sum += (double)row[c];
    const double middle = cuda_block_sum(sum) / (double)C;
    sum = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const double d = (double)row[c] - middle;
        sum += d * d;
    }
    const float m = (float)middle, r = (float)(1.0 / sqrt(cuda_block_sum(sum) / (double)C + (double)eps));
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = r;
    }
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const float hat = (row[c] - m) * r;
        to[c] = gamma ? hat * gamma[c] + beta[c] : hat;
    }
}

void cuda_layer_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                     const float *beta, int64_t n, int64_t C, float eps) {
    cudaStream_t stream = cuda_stream(ctx);
    if (times_held(C) && norm_fours(C, x, y, gamma, beta))
        LAUNCH_HELD(warp_kernel, C, (unsigned)((n + WARPS - 1) / WARPS), WARPS * WARP, stream, y, mean, rstd, x, gamma, beta, n,
                    (int)C, eps);
    else
        CDAD_LAUNCH_JOINED(block_kernel, (unsigned)n, CUDA_THREADS, stream, y, mean, rstd, x, gamma, beta, C, eps);
    cuda_launched(ctx, "layer_norm");
}

/* A block takes `rows` rows a warp, and keeps in sums [blocks,2,C], unless that is NULL, what the columns of dy and of dy * x^ add up
 * to: in float for the rows of a warp. */
template <int TIMES>
__global__ static void __launch_bounds__(GRAD_WARPS *WARP, TIMES <= 5 ? 2 : 1)
    warp_grad_kernel(float *dx, double *sums, const float *x, const float *mean, const float *rstd, const float *gamma,
                     const float *dy, int64_t n, int C, int rows) {
    __shared__ __align__(16) float parts[2][GRAD_WARPS][FOURS];
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    float plain[TIMES][4], scaled[TIMES][4];
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++) {
        CUDA_UNROLL
        for (int j = 0; j < 4; j++)
            plain[k][j] = scaled[k][j] = 0.0f;
    }
    for (int i = 0; i < rows; i++) {
        const int64_t row = ((int64_t)blockIdx.x * rows + i) * GRAD_WARPS + warp;
        float hat[TIMES][4], d[TIMES][4], a = 0.0f, b = 0.0f;
        if (row >= n)
            break;
        const float m = mean[row], r = rstd[row];
        CUDA_UNROLL
        for (int k = 0; k < TIMES; k++) {
            const int c = k * FOURS + 4 * lane;
            CUDA_UNROLL
            for (int j = 0; j < 4; j++)
                hat[k][j] = d[k][j] = 0.0f;
            if (c < C) {
                norm_load<4>(hat[k], x + row * C + c);
                norm_load<4>(d[k], dy + row * C + c);
            }
        }
        CUDA_UNROLL
        for (int k = 0; k < TIMES; k++) {
            const int c = k * FOURS + 4 * lane;
            float g[4] = {1.0f, 1.0f, 1.0f, 1.0f};
            if (gamma && c < C)
                norm_load<4>(g, gamma + c);
            CUDA_UNROLL
            for (int j = 0; j < 4; j++) {
                hat[k][j] = (hat[k][j] - m) * r;
                plain[k][j] += d[k][j];
                scaled[k][j] += d[k][j] * hat[k][j];
                d[k][j] *= g[j];
                a += d[k][j];
                b += d[k][j] * hat[k][j];
            }
        }
        a = norm_warp_sum(a) / (float)C;
        b = norm_warp_sum(b) / (float)C;
        CUDA_UNROLL
        for (int k = 0; k < TIMES; k++) {
            const int c = k * FOURS + 4 * lane;
            CUDA_UNROLL
            for (int j = 0; j < 4; j++)
                d[k][j] = r * (d[k][j] - a - hat[k][j] * b);
            if (c < C)
                norm_store<4>(dx + row * C + c, d[k]);
        }
    }
    if (!sums)
        return;
    CUDA_UNROLL
    for (int k = 0; k < TIMES; k++) {
        const int which = (int)threadIdx.x / FOURS, own = (int)threadIdx.x % FOURS, c = k * FOURS + own;
        double sum = 0.0;
        __syncthreads(); /* those before may still be read */
        norm_store<4>(&parts[0][warp][4 * lane], plain[k]);
        norm_store<4>(&parts[1][warp][4 * lane], scaled[k]);
        __syncthreads();
        for (int w = 0; w < GRAD_WARPS; w++)
            sum += (double)parts[which][w][own];
        if (c < C)
            sums[(2 * (int64_t)blockIdx.x + which) * C + c] = sum;
    }
}
static_assert(GRAD_WARPS * WARP == 2 * FOURS, "a thread takes a column of a sum");

__global__ static void block_grad_kernel(float *dx, const float *x, const float *mean, const float *rstd, const float *gamma,
                                         const float *dy, int64_t C) {
    const int64_t row = (int64_t)blockIdx.x * C;
    const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
    double plain = 0.0, scaled = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const double d = (double)(gamma ? dy[row + c] * gamma[c] : dy[row + c]);
        plain += d;
        scaled += d * (double)((x[row + c] - m) * r);
    }
    const float a = (float)(cuda_block_sum(plain) / (double)C), b = (float)(cuda_block_sum(scaled) / (double)C);
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const float d = gamma ? dy[row + c] * gamma[c] : dy[row + c];
        dx[row + c] = r * (d - a - (x[row + c] - m) * r * b);
    }
}

/* sums [tiles,2,C]: of dy and of dy * x^ over the TILE rows of a tile. */
__global__ static void sums_kernel(double *sums, const float *x, const float *mean, const float *rstd, const float *dy,
                                   int64_t n, int64_t C) {
    const int64_t chunks = (C + WARP - 1) / WARP, tile = blockIdx.x / chunks;
    const int64_t c = (int64_t)(blockIdx.x % chunks) * WARP + threadIdx.x % WARP;
    double a[1] = {0.0}, b[1] = {0.0};
    for (int64_t i = tile * TILE + threadIdx.x / WARP; c < C && i < n && i < (tile + 1) * TILE; i += CUDA_THREADS / WARP) {
        const float d = dy[i * C + c];
        a[0] += (double)d;
        b[0] += (double)d * (double)((x[i * C + c] - mean[i]) * rstd[i]);
    }
    norm_keep_sums<1>(sums, a, b, tile, c, C, WARP);
}

/* Rows of a warp for the gradient. */
static int64_t grad_rows(int64_t n) {
    const int64_t few = GRAD_WARPS * FEW_TILES;
    return cuda_min((n + few - 1) / few, MOST_ROWS);
}

/* The sums come first where rows are a block's: dx may be dy. */
void cuda_layer_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                          const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n, int64_t C,
                          void *scratch) {
    cudaStream_t stream = cuda_stream(ctx);
    double *sums = dgamma ? (double *)scratch : NULL;
    int64_t tiles;
    if (times_held(C) && norm_fours(C, x, dx, gamma, dy)) {
        const int64_t rows = grad_rows(n);
        tiles = (n + GRAD_WARPS * rows - 1) / (GRAD_WARPS * rows);
        LAUNCH_HELD(warp_grad_kernel, C, (unsigned)tiles, GRAD_WARPS * WARP, stream, dx, sums, x, mean, rstd, gamma, dy, n, (int)C,
                    (int)rows);
    } else {
        tiles = (n + TILE - 1) / TILE;
        if (sums)
            CDAD_LAUNCH_JOINED(sums_kernel, (unsigned)(tiles * ((C + WARP - 1) / WARP)), CUDA_THREADS, stream, sums, x, mean, rstd,
                               dy, n, C);
        CDAD_LAUNCH_JOINED(block_grad_kernel, (unsigned)n, CUDA_THREADS, stream, dx, x, mean, rstd, gamma, dy, C);
    }
    if (sums)
        norm_affine_grad(stream, dgamma, dbeta, sums, tiles, C);
    cuda_launched(ctx, "layer_norm_grad");
}

int64_t cuda_layer_norm_grad_scratch(int64_t n, int64_t C) {
    const int64_t least = cuda_min(GRAD_WARPS * grad_rows(n), TILE); /* rows of a tile */
    return (n + least - 1) / least * 2 * C * (int64_t)sizeof(double);
}

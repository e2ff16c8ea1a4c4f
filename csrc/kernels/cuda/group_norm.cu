/* Group norm: sums by channels of the tiles of a sample's pixels, then what the groups' are, then a pass that uses them. So rows of
 * channels are read as they lie, however narrow a group is, and a group is the work of many blocks. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/norm.h"

enum { TILE = 64, AT_ONCE = 4, GRADS_AT_ONCE = 2 }; /* pixels: of the smallest tile; whose values a thread asks for together */

/* A block takes `lanes` (a power of two) times V channels, of which there are `chunks`, of `rows` pixels; width: of a group. */
typedef struct norm_plan {
    int64_t N, HW, C, rows;
    unsigned tiles, chunks, groups, width, lanes;
} norm_plan;

/* fours: V is 4. Tiles depend on the sample's shape alone; large samples have more, and larger ones. */
static norm_plan plan_of(int64_t N, int64_t HW, int64_t C, int64_t G, bool fours) {
    const int64_t columns = fours ? C / 4 : C;
    int64_t rows = TILE;
    unsigned lanes = 1;
    while (rows * rows < 4 * HW)
        rows *= 2;
    while (lanes < (fours ? 16 : 32) && lanes < columns)
        lanes *= 2;
    const unsigned tiles = (unsigned)((HW + rows - 1) / rows), chunks = (unsigned)((columns + lanes - 1) / lanes);
    return norm_plan{N, HW, C, rows, tiles, chunks, (unsigned)G, (unsigned)(C / G), lanes};
}
static unsigned blocks_of(const norm_plan &p) { return (unsigned)(p.N * p.tiles * p.chunks); }

/* What block number `block` has: channels c and following of a sample's pixels `first` (the thread's own, each `step`-th) to `end`. */
typedef struct norm_part {
    int64_t n, tile, c, first, end, step;
} norm_part;
template <int V> __device__ static norm_part part_of(const norm_plan &p, unsigned block) {
    norm_part at;
    at.c = (int64_t)(block % p.chunks * p.lanes + threadIdx.x % p.lanes) * V;
    at.tile = block / p.chunks % p.tiles;
    at.n = block / p.chunks / p.tiles;
    at.first = at.tile * p.rows + threadIdx.x / p.lanes;
    at.end = (at.tile + 1) * p.rows < p.HW ? (at.tile + 1) * p.rows : p.HW;
    at.end = at.c < p.C ? at.end : 0;
    at.step = CUDA_THREADS / p.lanes;
    return at;
}

/* sums [N,tiles,2,C]: of x and of its squares, which in double are as good as those of distances from the mean. */
template <int V> __global__ static void moments_kernel(double *sums, const float *x, norm_plan p) {
    const norm_part at = part_of<V>(p, blockIdx.x);
    double a[V] = {}, b[V] = {};
    for (int64_t i = at.first; i < at.end; i += at.step) {
        float v[V];
        norm_load<V>(v, x + (at.n * p.HW + i) * p.C + at.c);
        CUDA_UNROLL
        for (int k = 0; k < V; k++) {
            a[k] += (double)v[k];
            b[k] += (double)v[k] * (double)v[k];
        }
    }
    norm_keep_sums<V>(sums, a, b, at.n * p.tiles + at.tile, at.c, p.C, p.lanes);
}

/* The two sums of the block's group of a sample, each channel's times `weight` unless that is NULL, over their number. */
__device__ static void group_means(const double *sums, const float *weight, const norm_plan &p, double *a, double *b) {
    const int64_t n = blockIdx.x / p.groups, first = (int64_t)(blockIdx.x % p.groups) * p.width;
    const double count = (double)p.HW * (double)p.width;
    double plain = 0.0, scaled = 0.0;
    for (unsigned i = threadIdx.x; i < p.tiles * p.width; i += CUDA_THREADS) {
        const int64_t c = first + i % p.width;
        const double *of_tile = sums + (n * p.tiles + i / p.width) * 2 * p.C;
        const double w = weight ? (double)weight[c] : 1.0;
        plain += w * of_tile[c];
        scaled += w * of_tile[p.C + c];
    }
    *a = cuda_block_sum(plain) / count;
    *b = cuda_block_sum(scaled) / count;
}

__global__ static void statistics_kernel(float *mean, float *rstd, const double *sums, norm_plan p, float eps) {
    double m, square;
    group_means(sums, NULL, p, &m, &square);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = (float)m;
        rstd[blockIdx.x] = (float)(1.0 / sqrt(fmax(square - m * m, 0.0) + (double)eps));
    }
}

/* What the threads of channels c and following need of them and of their groups. */
template <int V> struct norm_channels {
    float m[V], r[V], gamma[V], beta[V];
};
template <int V>
__device__ static void load_channels(norm_channels<V> &of, const norm_plan &p, const norm_part &at, const float *mean,
                                     const float *rstd, const float *gamma, const float *beta) {
    CUDA_UNROLL
    for (int k = 0; k < V; k++) {
        const int64_t c = at.c < p.C ? at.c + k : 0, group = at.n * p.groups + (unsigned)c / p.width;
        of.m[k] = mean[group];
        of.r[k] = rstd[group];
        of.gamma[k] = gamma[c];
        of.beta[k] = beta[c];
    }
}

/* The last blocks come first: what was read last may still be in the cache. */
template <int V>
__global__ static void apply_kernel(float *y, const float *x, const float *mean, const float *rstd, const float *gamma,
                                    const float *beta, norm_plan p, int silu) {
    const norm_part at = part_of<V>(p, gridDim.x - 1 - blockIdx.x);
    norm_channels<V> of;
    load_channels<V>(of, p, at, mean, rstd, gamma, beta);
    for (int64_t i = at.first; i < at.end; i += AT_ONCE * at.step) {
        float v[AT_ONCE][V];
        CUDA_UNROLL
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * at.step < at.end)
                norm_load<V>(v[j], x + (at.n * p.HW + i + j * at.step) * p.C + at.c);
        CUDA_UNROLL
        for (int j = 0; j < AT_ONCE; j++) {
            if (i + j * at.step >= at.end)
                break;
            CUDA_UNROLL
            for (int k = 0; k < V; k++) {
                const float z = (v[j][k] - of.m[k]) * of.r[k] * of.gamma[k] + of.beta[k];
                v[j][k] = silu ? cuda_activate(z, CDAD_ACT_SILU) : z;
            }
            norm_store<V>(y + (at.n * p.HW + i + j * at.step) * p.C + at.c, v[j]);
        }
    }
}

template <int V>
static void norm(cudaStream_t stream, float *y, float *mean, float *rstd, const float *x, const float *gamma, const float *beta,
                 const norm_plan &p, float eps, int silu, double *sums) {
    CDAD_LAUNCH_JOINED(moments_kernel<V>, blocks_of(p), CUDA_THREADS, stream, sums, x, p);
    CDAD_LAUNCH_JOINED(statistics_kernel, (unsigned)p.N * p.groups, CUDA_THREADS, stream, mean, rstd, sums, p, eps);
    CDAD_LAUNCH(apply_kernel<V>, blocks_of(p), CUDA_THREADS, stream, y, x, mean, rstd, gamma, beta, p, silu);
}

void cuda_group_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                     const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu, void *scratch) {
    const bool fours = norm_fours(C, x, y, NULL, NULL);
    const norm_plan p = plan_of(N, HW, C, G, fours);
    (fours ? norm<4> : norm<1>)(cuda_stream(ctx), y, mean, rstd, x, gamma, beta, p, eps, silu, (double *)scratch);
    cuda_launched(ctx, "group_norm");
}

/* The gradient of what the norm gives before SiLU. */
__device__ static float before_silu(float dy, float hat, float gamma, float beta, int silu) {
    if (!silu)
        return dy;
    const float z = hat * gamma + beta, s = cuda_sigmoid(z);
    return dy * (s + z * s * (1.0f - s));
}

/* Calls use(where it begins, its x^, its dz) for the thread's channels of each of its pixels. */
template <int V, typename F>
__device__ static void each_slope(const norm_plan &p, const norm_part &at, const norm_channels<V> &of, const float *x, const float *dy,
                                  int silu, const F &use) {
    for (int64_t i = at.first; i < at.end; i += GRADS_AT_ONCE * at.step) {
        float hat[GRADS_AT_ONCE][V], dz[GRADS_AT_ONCE][V];
        const int64_t pixel = (at.n * p.HW + i) * p.C + at.c;
        CUDA_UNROLL
        for (int j = 0; j < GRADS_AT_ONCE; j++) {
            if (i + j * at.step < at.end) {
                norm_load<V>(hat[j], x + pixel + j * at.step * p.C);
                norm_load<V>(dz[j], dy + pixel + j * at.step * p.C);
            }
        }
        CUDA_UNROLL
        for (int j = 0; j < GRADS_AT_ONCE; j++) {
            if (i + j * at.step >= at.end)
                break;
            CUDA_UNROLL
            for (int k = 0; k < V; k++) {
                hat[j][k] = (hat[j][k] - of.m[k]) * of.r[k];
                dz[j][k] = before_silu(dz[j][k], hat[j][k], of.gamma[k], of.beta[k], silu);
            }
            use(pixel + j * at.step * p.C, hat[j], dz[j]);
        }
    }
}

/* sums [N,tiles,2,C]: of dz and of dz * x^. */
template <int V>
__global__ static void sums_kernel(double *sums, const float *x, const float *mean, const float *rstd, const float *gamma,
                                   const float *beta, const float *dy, norm_plan p, int silu) {
    const norm_part at = part_of<V>(p, blockIdx.x);
    norm_channels<V> of;
    load_channels<V>(of, p, at, mean, rstd, gamma, beta);
    double a[V] = {}, b[V] = {};
    each_slope<V>(p, at, of, x, dy, silu, [&](int64_t, const float hat[V], float dz[V]) {
        CUDA_UNROLL
        for (int k = 0; k < V; k++) {
            a[k] += (double)dz[k];
            b[k] += (double)dz[k] * (double)hat[k];
        }
    });
    norm_keep_sums<V>(sums, a, b, at.n * p.tiles + at.tile, at.c, p.C, p.lanes);
}

/* means [N,G,2]: of gamma * dz and of gamma * dz * x^. */
__global__ static void means_kernel(float *means, const double *sums, const float *gamma, norm_plan p) {
    double a, b;
    group_means(sums, gamma, p, &a, &b);
    if (threadIdx.x == 0) {
        means[2 * blockIdx.x] = (float)a;
        means[2 * blockIdx.x + 1] = (float)b;
    }
}

/* dx may be dy. */
template <int V>
__global__ static void grad_kernel(float *dx, const float *means, const float *x, const float *mean, const float *rstd,
                                   const float *gamma, const float *beta, const float *dy, norm_plan p, int silu) {
    const norm_part at = part_of<V>(p, gridDim.x - 1 - blockIdx.x);
    norm_channels<V> of;
    load_channels<V>(of, p, at, mean, rstd, gamma, beta);
    float a[V], b[V];
    CUDA_UNROLL
    for (int k = 0; k < V; k++) {
        const int64_t group = at.n * p.groups + (at.c < p.C ? (unsigned)(at.c + k) / p.width : 0);
        a[k] = means[2 * group];
        b[k] = means[2 * group + 1];
    }
    each_slope<V>(p, at, of, x, dy, silu, [&](int64_t pixel, const float hat[V], float dz[V]) {
        CUDA_UNROLL
        for (int k = 0; k < V; k++)
            dz[k] = of.r[k] * (dz[k] * of.gamma[k] - a[k] - hat[k] * b[k]);
        norm_store<V>(dx + pixel, dz);
    });
}

template <int V>
static void norm_grad(cudaStream_t stream, float *dx, const float *x, const float *mean, const float *rstd, const float *gamma,
                      const float *beta, const float *dy, const norm_plan &p, int silu, double *sums, float *means) {
    CDAD_LAUNCH_JOINED(sums_kernel<V>, blocks_of(p), CUDA_THREADS, stream, sums, x, mean, rstd, gamma, beta, dy, p, silu);
    CDAD_LAUNCH_JOINED(means_kernel, (unsigned)p.N * p.groups, CUDA_THREADS, stream, means, sums, gamma, p);
    CDAD_LAUNCH(grad_kernel<V>, blocks_of(p), CUDA_THREADS, stream, dx, means, x, mean, rstd, gamma, beta, dy, p, silu);
}

void cuda_group_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                          const float *mean, const float *rstd, const float *gamma, const float *beta, const float *dy,
                          int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch) {
    cudaStream_t stream = cuda_stream(ctx);
    const bool fours = norm_fours(C, x, dx, dy, NULL);
    const norm_plan p = plan_of(N, HW, C, G, fours);
    double *sums = (double *)scratch;
    float *means = (float *)(sums + 2 * N * p.tiles * C);
    (fours ? norm_grad<4> : norm_grad<1>)(stream, dx, x, mean, rstd, gamma, beta, dy, p, silu, sums, means);
    norm_affine_grad(stream, dgamma, dbeta, sums, N * p.tiles, C);
    cuda_launched(ctx, "group_norm_grad");
}

int64_t cuda_group_norm_scratch(int64_t N, int64_t HW, int64_t C, int64_t G) {
    const norm_plan p = plan_of(N, HW, C, G, false);
    return 2 * N * p.tiles * C * (int64_t)sizeof(double) + 2 * N * G * (int64_t)sizeof(float);
}

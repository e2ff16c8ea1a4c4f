/* Fused attention on tensor cores, in TF32, whose scores exist in shared memory alone (Dao 2023, FlashAttention-2). A warp keeps
 * ROWS rows of its own in registers, queries or, for dk and dv, keys; the block goes through the rows that they meet, COLUMNS at a
 * time. DP: features of a head, padded with zeros. */
#include "kernels/cuda/attention.h"

#include <type_traits>

#ifdef CDAD_CUDA_ON_HOST
#include "kernels/cuda/on_host_mma.h"
#define CDAD_UNROLL
#else
#include <mma.h>
#define CDAD_UNROLL _Pragma("unroll") /* so that fragments stay in registers */
#endif

namespace wmma = nvcuda::wmma;

enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    ROWS = 16,             /* of a warp, and of a product of tensor cores: 16 x 16, 8 at a time */
    BLOCK_ROWS = WARPS * ROWS,
    COLUMNS = 32,
    PAD = 4,               /* floats between rows in shared memory, so that they begin in other banks */
    SCORE_RS = COLUMNS + PAD
};

typedef wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> left;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> right;
typedef wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major> right_transposed;
typedef wmma::fragment<wmma::accumulator, 16, 16, 8, float> sums;

/* One head of one sample: row r begins at data[r * rs]. */
struct head_rows {
    const float *data;
    int64_t rs;
    int n, width;
};

/* tile [n,DP] in shared memory = the rows `first` and following, zeros beyond. The whole block takes part. */
template <int DP> __device__ static void stage(float *tile, const head_rows &x, int first, int n) {
    for (int i = (int)threadIdx.x; i < n * DP; i += THREADS) {
        const int r = i / DP, j = i % DP;
        const bool there = first + r < x.n && j < x.width;
        tile[r * (DP + PAD) + j] = there ? wmma::__float_to_tf32(x.data[(first + r) * x.rs + j]) : 0.0f;
    }
}

/* The warp's own rows, by way of a tile of BLOCK_ROWS. */
template <int DP> __device__ static void take_own(left own[DP / 8], float *tile, const head_rows &x, int first) {
    __syncthreads(); /* the tile was read */
    stage<DP>(tile, x, first, BLOCK_ROWS);
    __syncthreads();
    CDAD_UNROLL
    for (int k = 0; k < DP / 8; k++)
        wmma::load_matrix_sync(own[k], tile + threadIdx.x / 32 * ROWS * (DP + PAD) + 8 * k, DP + PAD);
}

/* to [ROWS,COLUMNS] = own rows x rows of the tile. */
template <int DP> __device__ static void meet(float *to, const left own[DP / 8], const float *tile) {
    CDAD_UNROLL
    for (int j = 0; j < COLUMNS; j += 16) {
        sums s;
        wmma::fill_fragment(s, 0.0f);
        CDAD_UNROLL
        for (int k = 0; k < DP / 8; k++) {
            right_transposed b;
            wmma::load_matrix_sync(b, tile + j * (DP + PAD) + 8 * k, DP + PAD);
            wmma::mma_sync(s, own[k], b, s);
        }
        wmma::store_matrix_sync(to + j, s, SCORE_RS, wmma::mem_row_major);
    }
}

/* to [ROWS,DP] += weights [ROWS,COLUMNS] x the tile. */
template <int DP> __device__ static void add_weighted(sums to[DP / 16], const float *weights, const float *tile) {
    CDAD_UNROLL
    for (int k = 0; k < COLUMNS; k += 8) {
        left a;
        wmma::load_matrix_sync(a, weights + k, SCORE_RS);
        CDAD_UNROLL
        for (int j = 0; j < DP / 16; j++) {
            right b;
            wmma::load_matrix_sync(b, tile + k * (DP + PAD) + 16 * j, DP + PAD);
            wmma::mma_sync(to[j], a, b, to[j]);
        }
    }
}

/* Multiplies each row by its own factor, by way of factors [ROWS,16] in shared memory: which element of `to` a thread holds is the
 * hardware's secret, but it is the same for all of this type. */
template <int DP> __device__ static void scale_rows(sums to[DP / 16], float *factors, float factor) {
    const int lane = (int)threadIdx.x % 32;
    for (int c = 0; c < 8; c++)
        factors[lane % ROWS * 16 + lane / ROWS * 8 + c] = factor;
    __syncwarp();
    sums f;
    wmma::load_matrix_sync(f, factors, 16, wmma::mem_row_major);
    CDAD_UNROLL
    for (int j = 0; j < DP / 16; j++)
        for (int i = 0; i < f.num_elements; i++)
            to[j].x[i] *= f.x[i];
    __syncwarp();
}

/* Rows `first` and following of `to` [n,E], this head's columns, by way of shared memory of [ROWS,SCORE_RS]. */
template <int DP>
__device__ static void put(float *to, int64_t rs, int n, int width, int first, const sums from[DP / 16], float *shared) {
    CDAD_UNROLL
    for (int j = 0; j < DP / 16; j++) {
        __syncwarp();
        wmma::store_matrix_sync(shared, from[j], SCORE_RS, wmma::mem_row_major);
        __syncwarp();
        for (int i = (int)threadIdx.x % 32; i < ROWS * 16; i += 32) {
            const int r = first + i / 16, c = 16 * j + i % 16;
            if (r < n && c < width)
                to[r * rs + c] = shared[i / 16 * SCORE_RS + i % 16];
        }
    }
}

/* Which rows of which head a block has. */
struct block_place {
    int64_t n, l;
    int first;
};
__device__ static block_place place_of(const cdad_attention_dims &d, int64_t rows) {
    const unsigned blocks = (unsigned)((rows + BLOCK_ROWS - 1) / BLOCK_ROWS), head = blockIdx.x / blocks;
    return {head / (unsigned)d.L, head % (unsigned)d.L, (int)(blockIdx.x % blocks) * BLOCK_ROWS};
}
__device__ static head_rows rows_of(const float *x, int64_t rs, int64_t rows, const cdad_attention_dims &d, const block_place &at) {
    return {x + at.n * rows * rs + at.l * d.D, rs, (int)rows, (int)d.D};
}

template <int DP>
__global__ static void __launch_bounds__(THREADS) forward_kernel(float *out, float *lse, const float *q, const float *k,
                                                                 const float *v, cdad_attention_dims d) {
    __shared__ __align__(32) float tile[BLOCK_ROWS * (DP + PAD)]; /* of keys, then of values */
    __shared__ __align__(32) float scores[WARPS * ROWS * SCORE_RS], factors[WARPS * ROWS * 16];
    __shared__ float halves[WARPS * 32];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, row = lane % ROWS, half = lane / ROWS;
    const block_place at = place_of(d, d.T);
    const head_rows Q = rows_of(q, d.q_rs, d.T, d, at), K = rows_of(k, d.k_rs, d.S, d, at), V = rows_of(v, d.v_rs, d.S, d, at);
    const int first = at.first + warp * ROWS, t = first + row;
    float *mine = scores + warp * ROWS * SCORE_RS, *my_scores = mine + row * SCORE_RS + half * COLUMNS / 2;
    float *my_factors = factors + warp * ROWS * 16, *my_half = halves + warp * 32;
    float most = -INFINITY, total = 0.0f; /* of the row so far; total: of this thread's half of the columns */
    left own[DP / 8];
    sums o[DP / 16];
    take_own<DP>(own, tile, Q, at.first);
    CDAD_UNROLL
    for (int j = 0; j < DP / 16; j++)
        wmma::fill_fragment(o[j], 0.0f);
    for (int begin = 0; begin < (int)d.S; begin += COLUMNS) {
        __syncthreads(); /* the tile was read */
        stage<DP>(tile, K, begin, COLUMNS);
        stage<DP>(tile + COLUMNS * (DP + PAD), V, begin, COLUMNS);
        __syncthreads();
        meet<DP>(mine, own, tile);
        __syncwarp();
        float highest = most;
        for (int c = 0; c < COLUMNS / 2; c++) {
            const int s = begin + half * COLUMNS / 2 + c;
            my_scores[c] = s < (int)d.S && !cuda_attention_hidden(d, t, s) ? d.scale * my_scores[c] : -INFINITY;
            highest = fmaxf(highest, my_scores[c]);
        }
        my_half[lane] = highest;
        __syncwarp();
        highest = fmaxf(my_half[row], my_half[row + ROWS]);
        const float since = highest == -INFINITY ? 1.0f : expf(most - highest);
        most = highest;
        total *= since;
        for (int c = 0; c < COLUMNS / 2; c++) {
            my_scores[c] = my_scores[c] == -INFINITY ? 0.0f : wmma::__float_to_tf32(expf(my_scores[c] - most));
            total += my_scores[c];
        }
        scale_rows<DP>(o, my_factors, since);
        add_weighted<DP>(o, mine, tile + COLUMNS * (DP + PAD));
    }
    __syncwarp(); /* the halves were read */
    my_half[lane] = total;
    __syncwarp();
    total = my_half[row] + my_half[row + ROWS];
    scale_rows<DP>(o, my_factors, total > 0.0f ? 1.0f / total : 0.0f);
    put<DP>(out + at.n * d.T * d.L * d.D + at.l * d.D, d.L * d.D, (int)d.T, (int)d.D, first, o, mine);
    if (half == 0 && t < (int)d.T)
        lse[(at.n * d.L + at.l) * d.T + t] = total > 0.0f ? most + logf(total) : -INFINITY;
}

/* OF_KEYS: dk and dv, of blocks of keys that go through the queries; else dq (in `d1`), of queries through the keys. */
template <int DP, bool OF_KEYS>
__global__ static void __launch_bounds__(THREADS) grad_kernel(float *d1, float *d2, const float *q, const float *k, const float *v,
                                                              const float *lse, const float *delta, const float *dout,
                                                              cdad_attention_dims d) {
    __shared__ __align__(32) float tile[BLOCK_ROWS * (DP + PAD)]; /* of keys, then of values; of queries, then of dout */
    __shared__ __align__(32) float scores[WARPS * ROWS * SCORE_RS], slopes[WARPS * ROWS * SCORE_RS];
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, row = lane % ROWS, half = lane / ROWS;
    const int64_t E = d.L * d.D, mine_n = OF_KEYS ? d.S : d.T, others_n = OF_KEYS ? d.T : d.S;
    const block_place at = place_of(d, mine_n);
    const head_rows Q = rows_of(q, d.q_rs, d.T, d, at), K = rows_of(k, d.k_rs, d.S, d, at), V = rows_of(v, d.v_rs, d.S, d, at);
    const head_rows dO = rows_of(dout, E, d.T, d, at);
    const int first = at.first + warp * ROWS;
    float *p = scores + warp * ROWS * SCORE_RS, *dp = slopes + warp * ROWS * SCORE_RS;
    const int mine = row * SCORE_RS + half * COLUMNS / 2;
    lse += (at.n * d.L + at.l) * d.T;
    delta += (at.n * d.L + at.l) * d.T;
    float *second = tile + COLUMNS * (DP + PAD);
    left own[DP / 8], own_slope[DP / 8];
    sums g1[DP / 16], g2[OF_KEYS ? DP / 16 : 1];
    take_own<DP>(own, tile, OF_KEYS ? K : Q, at.first);
    take_own<DP>(own_slope, tile, OF_KEYS ? V : dO, at.first);
    CDAD_UNROLL
    for (int j = 0; j < DP / 16; j++) {
        wmma::fill_fragment(g1[j], 0.0f);
        wmma::fill_fragment(g2[OF_KEYS ? j : 0], 0.0f);
    }
    for (int begin = 0; begin < (int)others_n; begin += COLUMNS) {
        __syncthreads(); /* the tile was read */
        stage<DP>(tile, OF_KEYS ? Q : K, begin, COLUMNS);
        stage<DP>(second, OF_KEYS ? dO : V, begin, COLUMNS);
        __syncthreads();
        meet<DP>(p, own, tile);
        meet<DP>(dp, own_slope, second);
        __syncwarp();
        for (int c = 0; c < COLUMNS / 2; c++) {
            const int other = begin + half * COLUMNS / 2 + c;
            const int t = OF_KEYS ? other : first + row, s = OF_KEYS ? first + row : other;
            float probability = 0.0f, slope = 0.0f;
            if (t < (int)d.T && s < (int)d.S && !cuda_attention_hidden(d, t, s)) {
                probability = expf(d.scale * p[mine + c] - lse[t]); /* the row sees s, so that its lse is finite */
                slope = d.scale * probability * (dp[mine + c] - delta[t]);
            }
            p[mine + c] = wmma::__float_to_tf32(probability);
            dp[mine + c] = wmma::__float_to_tf32(slope);
        }
        __syncwarp();
        add_weighted<DP>(g1, dp, tile);
        if constexpr (OF_KEYS)
            add_weighted<DP>(g2, p, second);
    }
    const int64_t begin = at.n * mine_n * E + at.l * d.D;
    put<DP>(d1 + begin, E, (int)mine_n, (int)d.D, first, g1, p);
    if constexpr (OF_KEYS)
        put<DP>(d2 + begin, E, (int)mine_n, (int)d.D, first, g2, p);
}

static unsigned blocks_of(const cdad_attention_dims &d, int64_t rows) {
    return (unsigned)(d.N * d.L * ((rows + BLOCK_ROWS - 1) / BLOCK_ROWS));
}

/* Calls `run` with the least DP that holds a head. */
template <typename F> static void padded(int64_t D, const F &run) {
    if (D <= 32)
        run(std::integral_constant<int, 32>());
    else if (D <= 48)
        run(std::integral_constant<int, 48>());
    else if (D <= 64)
        run(std::integral_constant<int, 64>());
    else
        run(std::integral_constant<int, 80>());
}

/* Wider heads would want more registers than a thread has; they come with few tokens. */
bool cuda_attention_fuses(const cdad_attention_dims *d) { return d->tf32 && d->D <= 80; }

void cuda_attention_fused(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                          const cdad_attention_dims *dims) {
    const cdad_attention_dims d = *dims;
    padded(d.D, [&](auto dp) {
        CDAD_LAUNCH_JOINED(forward_kernel<decltype(dp)::value>, blocks_of(d, d.T), THREADS, cuda_stream(ctx), out, lse, q, k, v, d);
    });
    cuda_launched(ctx, "attention");
}

void cuda_attention_fused_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                               const float *v, const float *lse, const float *delta, const float *dout,
                               const cdad_attention_dims *dims) {
    const cdad_attention_dims d = *dims;
    padded(d.D, [&](auto dp) {
        const auto of_queries = grad_kernel<decltype(dp)::value, false>, of_keys = grad_kernel<decltype(dp)::value, true>;
        float *none = NULL;
        CDAD_LAUNCH_JOINED(of_queries, blocks_of(d, d.T), THREADS, cuda_stream(ctx), dq, none, q, k, v, lse, delta, dout, d);
        CDAD_LAUNCH_JOINED(of_keys, blocks_of(d, d.S), THREADS, cuda_stream(ctx), dk, dv, q, k, v, lse, delta, dout, d);
    });
    cuda_launched(ctx, "attention_grad");
}

/* Fused attention on tensor cores, in every precision, whose scores never leave registers (Dao 2023, FlashAttention-2). A warp has rows
 * of its own, queries or, for dk and dv, keys; the block goes through the rows that they meet, which come to shared memory a tile ahead.
 * Scores of own rows with 8 others are a C fragment; the same registers are the A fragment of the product that follows: in TF32 its
 * column t stands for the other row 2t and column t+4 for 2t+1; in bfloat16 those of 16 others, packed by twos, are one as they lie.
 * Powers are of 2: queries are multiplied by scale * log2(e) before they are rounded; in float32 by the scale alone, and what a score is
 * above lse by log2(e), so that large scores, the same bits in both directions, cancel. Masks are looked at where rows are near. */
#include "kernels/cuda/attention_tiles.h"

#include <initializer_list>

#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

/* The unit of scores, and the power of a difference of them. */
template <typename P> __device__ static float unit(void) { return P::SPLIT ? 1.0f : LOG2_E; }
template <typename P> __device__ static float power(float x) { return cuda_exp2(P::SPLIT ? x * LOG2_E : x); }

/* One row, g or g+8, of the fragments. */
template <typename P>
__device__ static void put_row(float *row, const float from[P::FEATURE_GROUPS][4], int half, float factor, int width, bool aligned) {
    CUDA_UNROLL
    for (int f = 0; f < P::FEATURE_GROUPS; f++) {
        const int c = 8 * f + (int)threadIdx.x % 4 * 2;
        const floats<2> x = {factor * from[f][2 * half], factor * from[f][2 * half + 1]};
        if (aligned && c < width)
            *(floats<2> *)(row + c) = x;
        if (!aligned && c < width)
            row[c] = x.x[0];
        if (!aligned && c + 1 < width)
            row[c + 1] = x.x[1];
    }
}

/* Calls use(row tile, group, i, whether one may not see the other) for the thread's scores in a chunk: of own rows `row` and following
 * with others `column` and following. Keys beyond S are hidden. */
template <typename P, bool OF_KEYS = false, typename F>
__device__ static void each_hidden(const cuda_attention_mask &mask, int row, int column, int S, const F &use) {
    cuda_token own[2 * P::ROW_TILES];
    CUDA_UNROLL
    for (int i = 0; i < 2 * P::ROW_TILES; i++)
        own[i] = cuda_token_of(mask, row + 8 * i);
    CUDA_UNROLL
    for (int n = 0; n < 2 * P::GROUPS; n++) {
        const cuda_token other = cuda_token_of(mask, column + n / 2 * 8 + n % 2);
        CUDA_UNROLL
        for (int i = 0; i < 2 * P::ROW_TILES; i++) {
            const bool beyond = (OF_KEYS ? own[i].t : other.t) >= S;
            use(i / 2, n / 2, i % 2 * 2 + n % 2, beyond || cuda_hides(mask, OF_KEYS ? other : own[i], OF_KEYS ? own[i] : other));
        }
    }
}

/* Which rows of which head a block has. */
struct block_place {
    int64_t n, l;
    int first;
};
template <typename P> __device__ static block_place place_of(const cdad_attention_dims &d, int64_t rows) {
    const unsigned blocks = (unsigned)((rows + P::BLOCK_ROWS - 1) / P::BLOCK_ROWS), head = blockIdx.x / blocks;
    return {head / (unsigned)d.L, head % (unsigned)d.L, (int)(blockIdx.x % blocks) * P::BLOCK_ROWS};
}
__device__ static head_rows rows_of(const float *x, int64_t rs, int64_t rows, const cdad_attention_dims &d, const block_place &at,
                                    float factor) {
    return {x + at.n * rows * rs + at.l * d.D, rs, (int)rows, (int)d.D, factor};
}

/* `aligned`: rows come and go 16 bytes at a time. */
template <typename P>
__global__ static void __launch_bounds__(P::THREADS, P::BLOCKS)
    forward_kernel(float *out, float *lse, const float *q, const float *k, const float *v, cdad_attention_dims d, bool aligned) {
    CUDA_SHARED(shared);
    typedef typename P::element element;
    element *tiles = (element *)shared;
    const int g = (int)threadIdx.x % 32 / 4, c = (int)threadIdx.x % 4 * 2, S = (int)d.S, T = (int)d.T;
    const block_place at = place_of<P>(d, d.T);
    const head_rows Q = rows_of(q, d.q_rs, d.T, d, at, d.scale * unit<P>());
    const head_rows K = rows_of(k, d.k_rs, d.S, d, at, 1.0f), V = rows_of(v, d.v_rs, d.S, d, at, 1.0f);
    const int first = at.first + (int)threadIdx.x / 32 * P::ROWS;
    const cuda_attention_mask mask = cuda_mask_of(d);
    float o[P::ROW_TILES][P::FEATURE_GROUPS][4] = {};
    float most[P::ROW_TILES][2], total[P::ROW_TILES][2] = {}; /* of rows g and g+8 so far; total: of this lane's columns */
    own_rows<P> own;
    begin_with<P>(tiles, K, V, aligned);
    take_own<P>(own, tiles, 0, Q, at.first, aligned);
    CUDA_UNROLL
    for (int m = 0; m < P::ROW_TILES; m++)
        most[m][0] = most[m][1] = -INFINITY;
    go_through<P>(tiles, K, V, aligned, [&](int begin, const element *keys, const element *values, int) {
        for (int at_row = 0; at_row < P::STAGED && begin + at_row < S && first < T; at_row += P::CHUNK) {
            float s[P::ROW_TILES][P::GROUPS][4];
            meet<P, false>(s, own, keys + at_row * P::RS);
            if (begin + at_row + P::CHUNK > S || cuda_hides_some(mask, first, P::ROWS, begin + at_row, P::CHUNK))
                each_hidden<P>(mask, first + g, begin + at_row + c, S, [&](int m, int j, int i, bool hidden) {
                    if (hidden)
                        s[m][j][i] = -INFINITY;
                });
            CUDA_UNROLL
            for (int m = 0; m < P::ROW_TILES; m++)
                CUDA_UNROLL
                for (int half = 0; half < 2; half++) {
                    float highest = most[m][half];
                    CUDA_UNROLL
                    for (int j = 0; j < P::GROUPS; j++)
                        highest = fmaxf(highest, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
                    highest = fmaxf(highest, cuda_swap(highest, 1));
                    highest = fmaxf(highest, cuda_swap(highest, 2));
                    const float base = highest == -INFINITY ? 0.0f : highest, since = power<P>(most[m][half] - base);
                    most[m][half] = highest;
                    total[m][half] *= since;
                    CUDA_UNROLL
                    for (int i = 0; i < 2 * P::GROUPS; i++) {
                        float *x = &s[m][i / 2][2 * half + i % 2];
                        *x = power<P>(*x - base);
                        total[m][half] += *x;
                    }
                    CUDA_UNROLL
                    for (int f = 0; f < P::FEATURE_GROUPS; f++) {
                        o[m][f][2 * half] *= since;
                        o[m][f][2 * half + 1] *= since;
                    }
                }
            add_weighted<P>(o, s, values + at_row * P::RS);
        }
    });
    CUDA_UNROLL
    for (int m = 0; m < P::ROW_TILES; m++)
        CUDA_UNROLL
        for (int half = 0; half < 2; half++) {
            const int t = first + 16 * m + 8 * half + g;
            float sum = total[m][half] + cuda_swap(total[m][half], 1);
            sum += cuda_swap(sum, 2);
            if (t >= T)
                continue;
            put_row<P>(out + ((at.n * T + t) * d.L + at.l) * d.D, o[m], half, sum == 0.0f ? 0.0f : 1.0f / sum, (int)d.D, aligned);
            if (c == 0)
                lse[(at.n * d.L + at.l) * T + t] = sum == 0.0f ? -INFINITY : (P::SPLIT ? 1.0f : LN_2) * most[m][half] + logf(sum);
        }
}

/* What a query needs for its probabilities and their slopes. */
template <typename P> __device__ static floats<2> line_of(const float *lse, const float *delta, int t, int T) {
    floats<2> line = {};
    if (t < T)
        line = {lse[t] * unit<P>(), delta[t]};
    return line;
}

/* OF_KEYS: dk and dv, of blocks of keys that go through the queries; else dq (in `d1`), of queries through the keys. */
template <typename P, bool OF_KEYS>
__global__ static void __launch_bounds__(P::THREADS, P::BLOCKS)
    grad_kernel(float *d1, float *d2, const float *q, const float *k, const float *v, const float *lse, const float *delta,
                const float *dout, cdad_attention_dims d, bool aligned) {
    CUDA_SHARED(shared);
    typedef typename P::element element;
    element *tiles = (element *)shared;
    floats<2> *lines = (floats<2> *)(shared + P::BYTES); /* of two tiles of queries */
    const int g = (int)threadIdx.x % 32 / 4, c = (int)threadIdx.x % 4 * 2, S = (int)d.S, T = (int)d.T, E = (int)(d.L * d.D);
    const int64_t mine_n = OF_KEYS ? d.S : d.T;
    const block_place at = place_of<P>(d, mine_n);
    const head_rows Q = rows_of(q, d.q_rs, d.T, d, at, d.scale * unit<P>()), dO = rows_of(dout, E, d.T, d, at, 1.0f);
    const head_rows K = rows_of(k, d.k_rs, d.S, d, at, 1.0f), V = rows_of(v, d.v_rs, d.S, d, at, 1.0f);
    const int first = at.first + (int)threadIdx.x / 32 * P::ROWS;
    const cuda_attention_mask mask = cuda_mask_of(d);
    own_rows<P> own, own_slope;
    float g1[P::ROW_TILES][P::FEATURE_GROUPS][4] = {}, g2[OF_KEYS ? P::ROW_TILES : 1][OF_KEYS ? P::FEATURE_GROUPS : 1][4] = {};
    floats<2> mine[P::ROW_TILES][2]; /* lines of rows g and g+8 */
    const head_rows &others = OF_KEYS ? Q : K, &others_slope = OF_KEYS ? dO : V;
    lse += (at.n * d.L + at.l) * T;
    delta += (at.n * d.L + at.l) * T;
    begin_with<P>(tiles, others, others_slope, aligned);
    take_own<P>(own, tiles, 0, OF_KEYS ? K : Q, at.first, aligned);
    take_own<P>(own_slope, tiles, 1, OF_KEYS ? V : dO, at.first, aligned);
    if (P::BF16 && !P::KEPT)
        __syncthreads();
    if constexpr (OF_KEYS) {
        if (threadIdx.x < P::STAGED)
            lines[threadIdx.x] = line_of<P>(lse, delta, (int)threadIdx.x, T);
    } else {
        CUDA_UNROLL
        for (int i = 0; i < 2 * P::ROW_TILES; i++)
            mine[i / 2][i % 2] = line_of<P>(lse, delta, first + 8 * i + g, T);
    }
    go_through<P>(tiles, others, others_slope, aligned, [&](int begin, const element *tile, const element *tile_slope, int turn) {
        floats<2> next = {}; /* on its way while we compute */
        if (OF_KEYS && threadIdx.x < P::STAGED)
            next = line_of<P>(lse, delta, begin + P::STAGED + (int)threadIdx.x, T);
        for (int at_row = 0; at_row < P::STAGED && begin + at_row < others.n && first < mine_n; at_row += P::CHUNK) {
            float p[P::ROW_TILES][P::GROUPS][4], slope[P::ROW_TILES][P::GROUPS][4];
            meet<P, OF_KEYS>(p, own, tile + at_row * P::RS);
            meet<P, OF_KEYS>(slope, own_slope, tile_slope + at_row * P::RS);
            CUDA_UNROLL
            for (int j = 0; j < P::GROUPS; j++) {
                floats<4> both = {}; /* lines of columns c and c+1 */
                if constexpr (OF_KEYS)
                    both = *(const floats<4> *)(lines + turn * P::STAGED + at_row + 8 * j + c);
                CUDA_UNROLL
                for (int i = 0; i < 4 * P::ROW_TILES; i++) {
                    const floats<2> own_line = mine[i / 4][i % 4 / 2];
                    float *s = &p[i / 4][j][i % 4], *ds = &slope[i / 4][j][i % 4];
                    const float above = *s - (OF_KEYS ? both.x[i % 2 * 2] : own_line.x[0]); /* by rounding alone; NaN stays */
                    *s = power<P>(above > 0.0f ? 0.0f : above);
                    *ds = *s * (*ds - (OF_KEYS ? both.x[i % 2 * 2 + 1] : own_line.x[1]));
                }
            }
            /* Queries beyond the last need no care: they and their dout are zeros. */
            const bool hides = OF_KEYS ? cuda_hides_some(mask, begin + at_row, P::CHUNK, first, P::ROWS)
                                       : cuda_hides_some(mask, first, P::ROWS, begin + at_row, P::CHUNK);
            if (hides || (!OF_KEYS && begin + at_row + P::CHUNK > S))
                each_hidden<P, OF_KEYS>(mask, first + g, begin + at_row + c, S, [&](int m, int j, int i, bool hidden) {
                    if (hidden)
                        p[m][j][i] = slope[m][j][i] = 0.0f;
                });
            if constexpr (OF_KEYS)
                add_weighted<P>(g2, p, tile_slope + at_row * P::RS);
            add_weighted<P>(g1, slope, tile + at_row * P::RS);
        }
        if (OF_KEYS && threadIdx.x < P::STAGED)
            lines[(turn ^ 1) * P::STAGED + (int)threadIdx.x] = next;
    });
    CUDA_UNROLL
    for (int m = 0; m < P::ROW_TILES; m++)
        CUDA_UNROLL
        for (int half = 0; half < 2; half++) {
            const int row = first + 16 * m + 8 * half + g;
            const int64_t to = (at.n * mine_n + row) * E + at.l * d.D;
            if (row >= mine_n)
                continue;
            /* The queries' factor was the scale in that unit. */
            put_row<P>(d1 + to, g1[m], half, !OF_KEYS ? d.scale : P::SPLIT ? 1.0f : LN_2, (int)d.D, aligned);
            if constexpr (OF_KEYS)
                put_row<P>(d2 + to, g2[m], half, 1.0f, (int)d.D, aligned);
        }
}

/* Whether rows of all of these begin at multiples of 16 bytes. */
static bool all_aligned(const cdad_attention_dims &d, std::initializer_list<const float *> all) {
    uintptr_t bits = 0;
    for (const float *x : all)
        bits |= (uintptr_t)x;
    return bits % 16 == 0 && (d.D | d.q_rs | d.k_rs | d.v_rs) % 4 == 0;
}

template <typename P> static unsigned blocks_of(const cdad_attention_dims &d, int64_t rows) {
    return (unsigned)(d.N * d.L * ((rows + P::BLOCK_ROWS - 1) / P::BLOCK_ROWS));
}

/* Calls `run` with the shapes of the least DP that holds a head. */
template <int PRECISION, typename F> static void with_width(int64_t D, const F &run) {
    if (D <= 40)
        run(shapes<PRECISION, 40>());
    else if (D <= 64)
        run(shapes<PRECISION, 64>());
    else if (D <= 80)
        run(shapes<PRECISION, 80>());
    else
        run(shapes<PRECISION, 160>());
}
template <typename F> static void specialised(const cdad_attention_dims &d, const F &run) {
    if (d.precision == CDAD_BFLOAT16)
        with_width<CDAD_BFLOAT16>(d.D, run);
    else if (d.precision == CDAD_TFLOAT32)
        with_width<CDAD_TFLOAT32>(d.D, run);
    else
        with_width<CDAD_FLOAT32>(d.D, run);
}

/* Wider heads would want more registers than a thread has. */
bool cuda_attention_fuses(const cdad_attention_dims *d) { return d->D <= 160; }

void cuda_attention_fused(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                          const cdad_attention_dims *dims) {
    const cdad_attention_dims d = *dims;
    const bool aligned = all_aligned(d, {out, q, k, v});
    specialised(d, [&](auto shapes_of) {
        typedef typename decltype(shapes_of)::forward P;
        const auto kernel = forward_kernel<P>;
        CDAD_LAUNCH_SHARED(kernel, blocks_of<P>(d, d.T), P::THREADS, P::BYTES, cuda_stream(ctx), out, lse, q, k, v, d, aligned);
    });
    cuda_launched(ctx, "attention");
}

void cuda_attention_fused_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                               const float *v, const float *lse, const float *delta, const float *dout,
                               const cdad_attention_dims *dims) {
    const cdad_attention_dims d = *dims;
    const bool aligned = all_aligned(d, {dq, dk, dv, q, k, v, dout});
    specialised(d, [&](auto shapes_of) {
        typedef typename decltype(shapes_of)::of_queries A;
        typedef typename decltype(shapes_of)::of_keys B;
        const auto of_queries = grad_kernel<A, false>, of_keys = grad_kernel<B, true>;
        float *none = NULL;
        CDAD_LAUNCH_SHARED(of_queries, blocks_of<A>(d, d.T), A::THREADS, A::BYTES, cuda_stream(ctx), dq, none, q, k, v, lse, delta, dout,
                           d, aligned);
        CDAD_LAUNCH_SHARED(of_keys, blocks_of<B>(d, d.S), B::THREADS, B::BYTES + B::LINES * 4, cuda_stream(ctx), dk, dv, q, k, v, lse,
                           delta, dout, d, aligned);
    });
    cuda_launched(ctx, "attention_grad");
}

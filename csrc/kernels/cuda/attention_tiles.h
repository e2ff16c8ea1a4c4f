/* What fused attention is made of: how its kernels share out work, tiles of rows in shared memory, and products of their fragments, in TF32
 * or bfloat16, or in float32 as three products in TF32, of what factors are rounded to and of what that leaves of them; but for the product
 * of two such rests, 2^-22 of the whole. */
#ifndef CDAD_KERNELS_CUDA_ATTENTION_TILES_H
#define CDAD_KERNELS_CUDA_ATTENTION_TILES_H

#include "kernels/cuda/attention.h"
#include "kernels/cuda/warp.h"

#include <type_traits>

typedef uint16_t bf16;

/* How a kernel shares out its work. PRECISION: cdad_precision; factors in shared memory are bf16 or else float, in TF32 rounded ones.
 * DP: features of a head, padded with zeros. A warp has ROW_TILES times 16 rows, whose fragments are KEPT in registers or else read from
 * shared memory; STAGED others come to shared memory at once, of which CHUNK are met at once. BLOCKS: for how many a multiprocessor is to
 * have registers. */
template <int PRECISION, int DP_, int WARPS_, int ROW_TILES_, int STAGED_, int CHUNK_, bool KEPT_, int BLOCKS_> struct shape {
    typedef std::conditional_t<PRECISION == CDAD_BFLOAT16, bf16, float> element;
    enum {
        BF16 = PRECISION == CDAD_BFLOAT16,
        SPLIT = PRECISION == CDAD_FLOAT32,
        DP = DP_,
        PIECE = 16 / sizeof(element), /* elements */
        DEPTH = 2 * PIECE,      /* of a fragment of A */
        FRAGMENTS = (DP + DEPTH - 1) / DEPTH,
        WIDE = FRAGMENTS * DEPTH, /* features that are multiplied */
        RS = WIDE + PIECE,        /* of rows in shared memory: an odd number of pieces, so that fragments lie in different banks */
        RS_FLOATS = DP + 4,       /* of rows that come and are not rounded yet: the same */
        FEATURE_GROUPS = DP / 8,
        WARPS = WARPS_,
        THREADS = 32 * WARPS,
        ROW_TILES = ROW_TILES_,
        ROWS = 16 * ROW_TILES,
        BLOCK_ROWS = WARPS * ROWS,
        STAGED = STAGED_,
        CHUNK = CHUNK_,
        GROUPS = CHUNK / 8,
        KEPT = KEPT_,
        BLOCKS = BLOCKS_,
        TILES = 4 * STAGED * RS,                    /* two tiles in use, two that are on their way or, in bfloat16, the next rounded ones */
        OWN = KEPT ? 0 : 2 * BLOCK_ROWS * RS,       /* of two kinds of own rows */
        COMING = BF16 ? 2 * STAGED * RS_FLOATS : 0, /* floats on their way to be rounded: in TF32 they come to their tiles */
        LINES = 4 * STAGED,                         /* floats: of lse and delta of two tiles */
        BYTES = (TILES + OWN) * sizeof(element) + COMING * 4 /* without LINES */
    };
    static_assert(CHUNK % 16 == 0 && STAGED % CHUNK == 0, "others are met 16 at a time");
    static_assert(BYTES + LINES * 4 <= 99 << 10, "more shared memory than every GPU has");
    static_assert(KEPT || !BF16 || (WIDE == DP && BLOCK_ROWS * RS_FLOATS * 4 <= TILES * 2), "own rows' floats lie in the tiles' place");
};
template <int PRECISION, int DP> struct shapes {
    enum { WARPS = DP <= 80 ? 4 : 2, STAGED = DP <= 40 ? 64 : DP <= 80 ? 32 : 16 };
    typedef shape<PRECISION, DP, 4, DP <= 40 ? 2 : 1, DP <= 40 ? 64 : 32, 32, true, DP <= 80 ? 3 : 1> forward;
    typedef shape<PRECISION, DP, WARPS, DP <= 40 ? 2 : 1, STAGED, 16, DP <= 80, 2> of_queries;
    typedef shape<PRECISION, DP, WARPS, 1, STAGED, 16, DP <= 80, DP <= 40 ? 3 : DP <= 80 ? 2 : 1> of_keys;
};
/* Own rows take twice the registers, as what rounding leaves of them is kept, too. */
template <int DP> struct shapes<CDAD_FLOAT32, DP> {
    enum { WARPS = DP <= 80 ? 4 : 2, STAGED = DP <= 40 ? 64 : DP <= 80 ? 32 : 16, CHUNK = DP <= 80 ? 32 : 16, BLOCKS = DP <= 80 ? 2 : 1 };
    typedef shape<CDAD_FLOAT32, DP, WARPS, 1, STAGED, CHUNK, DP <= 80, DP <= 40 ? 3 : BLOCKS> forward;
    typedef shape<CDAD_FLOAT32, DP, WARPS, 1, STAGED, 16, DP <= 40, BLOCKS> of_queries;
    typedef shape<CDAD_FLOAT32, DP, WARPS, 1, STAGED, 16, DP <= 40, BLOCKS> of_keys;
};
/* And half of them. */
template <int DP> struct shapes<CDAD_BFLOAT16, DP> {
    enum { WARPS = DP <= 80 ? 4 : 2, ROW_TILES = DP <= 40 ? 2 : 1, STAGED = DP <= 40 ? 64 : 32 };
    typedef shape<CDAD_BFLOAT16, DP, 4, ROW_TILES, STAGED, 32, true, DP <= 80 ? 3 : 1> forward;
    typedef shape<CDAD_BFLOAT16, DP, WARPS, ROW_TILES, STAGED, 16, true, DP <= 80 ? 3 : 1> of_queries;
    typedef shape<CDAD_BFLOAT16, DP, WARPS, ROW_TILES, DP <= 80 ? STAGED : 16, 16, DP <= 80, DP <= 40 ? 2 : DP <= 80 ? 3 : 1> of_keys;
};

/* One head of one sample: row r begins at data[r * rs]. They are multiplied by `factor`. */
struct head_rows {
    const float *data;
    int64_t rs;
    int n, width;
    float factor;
};

template <int N> struct alignas(4 * N) floats {
    float x[N];
};
template <int N> struct alignas(4 * N) words {
    uint32_t x[N];
};

/* A factor, as its products in TF32 take it, and what they leave of it. */
template <typename P> __device__ static float as_staged(float x) { return P::SPLIT ? x : __uint_as_float(cuda_tf32(x)); }

/* N registers of a fragment. */
template <typename P, int N> struct factors {
    uint32_t x[N], rest[P::SPLIT ? N : 1];
};
/* Of registers that hold what lies in shared memory. */
template <typename P, int N> __device__ static factors<P, N> factors_of(const uint32_t *x) {
    factors<P, N> f = {};
    CUDA_UNROLL
    for (int i = 0; i < N; i++) {
        f.x[i] = P::SPLIT ? cuda_tf32(__uint_as_float(x[i])) : x[i];
        if constexpr (P::SPLIT)
            f.rest[i] = __float_as_uint(__uint_as_float(x[i]) - __uint_as_float(f.x[i])); /* the product drops the last bits */
    }
    return f;
}

/* c += A B. TURNED: to the bits that it has as B^T A^T. */
template <typename P, bool TURNED = false> __device__ static void multiply(float c[4], const factors<P, 4> &a, const factors<P, 2> &b) {
    if constexpr (P::SPLIT) {
        if (!TURNED)
            cuda_mma_tf32(c, a.rest, b.x);
        cuda_mma_tf32(c, a.x, b.rest);
        if (TURNED)
            cuda_mma_tf32(c, a.rest, b.x);
    }
    if constexpr (P::BF16)
        cuda_mma_bf16(c, a.x, b.x);
    else
        cuda_mma_tf32(c, a.x, b.x);
}

/* What a thread stages of N rows, and rounds once it is there: COUNT times 4 features of one row, STEP floats apart. Of 8 threads that the
 * hardware serves at once, each 4 features lie in other banks, as rows that follow each other among theirs are LANES apart. */
template <typename P, int N> struct share {
    enum { LANES = P::THREADS / N, STEP = 4 * LANES, COUNT = P::DP / STEP };
    static_assert((LANES == 2 || LANES == 4) && P::DP % STEP == 0, "rows are shared out evenly");
    int row, column;
};
template <typename P, int N> __device__ static share<P, N> my_share(void) {
    enum { LANES = share<P, N>::LANES };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, eight = lane / 8;
    return {warp * (32 / LANES) + eight / LANES * 8 + eight % LANES + lane % 8 / LANES * LANES, lane % LANES * 4};
}

/* Copies to `place` [N,DP] the rows `first` and following, zeros beyond. The whole block takes part. */
template <typename P, int N> __device__ static void stage(float *place, const head_rows &x, int first, bool aligned) {
    typedef share<P, N> part;
    const part at = my_share<P, N>();
    const bool there = first + at.row < x.n;
    const float *from = x.data + (first + at.row) * x.rs + at.column;
    float *to = place + at.row * P::RS_FLOATS + at.column;
    if (aligned) {
        CUDA_UNROLL
        for (int i = 0; i < part::COUNT; i++)
            cuda_copy_async(to + part::STEP * i, from + part::STEP * i, there && at.column + part::STEP * i < x.width);
        return;
    }
    for (int i = 0; i < part::COUNT; i++)
        for (int c = part::STEP * i; c < part::STEP * i + 4; c++)
            to[c] = there && at.column + c < x.width ? from[c] : 0.0f;
}
/* What this thread staged: to `tile`, which but for bfloat16 is the same place. */
template <typename P, int N> __device__ static void round_staged(typename P::element *tile, const float *place, float factor) {
    typedef share<P, N> part;
    const part at = my_share<P, N>();
    CUDA_UNROLL
    for (int i = 0; i < part::COUNT; i++) {
        const int column = at.column + part::STEP * i;
        const floats<4> x = *(const floats<4> *)(place + at.row * P::RS_FLOATS + column);
        typename P::element *to = tile + at.row * P::RS + column;
        if constexpr (P::BF16)
            *(words<2> *)to = {cuda_bf16x2(factor * x.x[0], factor * x.x[1]), cuda_bf16x2(factor * x.x[2], factor * x.x[3])};
        else
            *(floats<4> *)to = {as_staged<P>(factor * x.x[0]), as_staged<P>(factor * x.x[1]), as_staged<P>(factor * x.x[2]),
                                as_staged<P>(factor * x.x[3])};
    }
}

/* The rows `first` and following of both, to places that lie one after the other. */
template <typename P>
__device__ static void stage_both(float *place, const head_rows &x, const head_rows &y, int first, bool aligned) {
    stage<P, P::STAGED>(place, x, first, aligned);
    stage<P, P::STAGED>(place + P::STAGED * P::RS_FLOATS, y, first, aligned);
}
/* Where the rows of `turn` come to. In bfloat16 it is the same for both turns, as a thread reads what itself has staged. */
template <typename P> __device__ static float *coming(typename P::element *tiles, int turn) {
    if constexpr (P::BF16)
        return (float *)(tiles + P::TILES + P::OWN);
    else
        return tiles + turn * (P::TILES / 2);
}

/* Features between DP and WIDE are zeros, in all tiles; ready after the next barrier. */
template <typename P> __device__ static void clear_padding(typename P::element *tiles) {
    if constexpr (P::WIDE > P::DP)
        for (int row = (int)threadIdx.x; row < 4 * P::STAGED; row += P::THREADS)
            *(words<4> *)(tiles + row * P::RS + P::DP) = {};
}

/* Stages the first tiles of both. */
template <typename P>
__device__ static void begin_with(typename P::element *tiles, const head_rows &x, const head_rows &y, bool aligned) {
    stage_both<P>(coming<P>(tiles, 0), x, y, 0, aligned);
    cuda_copies_close();
    clear_padding<P>(tiles);
}
/* Calls use(begin, tile of x, tile of y, turn) for all tiles, after begin_with. `turn` is 0, 1, 0, 1.. */
template <typename P, typename F>
__device__ static void go_through(typename P::element *tiles, const head_rows &x, const head_rows &y, bool aligned, const F &use) {
    int turn = 0;
    for (int begin = 0; begin < x.n; begin += P::STAGED, turn ^= 1) {
        typename P::element *now = tiles + turn * (P::TILES / 2);
        const float *come = coming<P>(tiles, turn);
        cuda_copies_wait<0>();
        round_staged<P, P::STAGED>(now, come, x.factor);
        round_staged<P, P::STAGED>(now + P::STAGED * P::RS, come + P::STAGED * P::RS_FLOATS, y.factor);
        __syncthreads(); /* these tiles are there, and the next ones' place was read */
        if (begin + P::STAGED < x.n)
            stage_both<P>(coming<P>(tiles, turn ^ 1), x, y, begin + P::STAGED, aligned);
        cuda_copies_close();
        use(begin, now, now + P::STAGED * P::RS, turn);
    }
}

/* The A fragments of the warp's own rows. */
template <typename P> struct own_rows {
    uint32_t kept[P::KEPT ? P::FRAGMENTS : 1][P::ROW_TILES][4];
    const typename P::element *tile; /* this lane's part, unless they are kept */
};

/* Feature c of row r, times the factor; and, in bfloat16, the next feature with it. */
template <typename P> __device__ static uint32_t factors_at(const head_rows &x, int r, int c) {
    const float *at = x.data + r * x.rs + c;
    const float one = r < x.n && c < x.width ? x.factor * at[0] : 0.0f;
    if constexpr (P::BF16)
        return cuda_bf16x2(one, r < x.n && c + 1 < x.width ? x.factor * at[1] : 0.0f);
    else
        return __float_as_uint(as_staged<P>(one));
}

/* Of the block's own rows, which begin at `first`. If they are not kept, they go to tile `which` of the own ones, ready after the next
 * barrier; in bfloat16 by way of the tiles' place, so that a barrier comes before that is used. */
template <typename P>
__device__ static void take_own(own_rows<P> &own, typename P::element *tiles, int which, const head_rows &x, int first, bool aligned) {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    if constexpr (P::KEPT) {
        const int row = first + warp * P::ROWS + lane / 4, column = lane % 4 * (4 / (int)sizeof(typename P::element));
        CUDA_UNROLL
        for (int k = 0; k < P::FRAGMENTS; k++)
            CUDA_UNROLL
            for (int i = 0; i < 4 * P::ROW_TILES; i++)
                own.kept[k][i / 4][i % 4] = factors_at<P>(x, row + i / 4 * 16 + i % 2 * 8, P::DEPTH * k + column + i % 4 / 2 * P::PIECE);
    } else {
        typename P::element *tile = tiles + P::TILES + which * (P::OWN / 2);
        float *place = (float *)(P::BF16 ? tiles : tile);
        stage<P, P::BLOCK_ROWS>(place, x, first, aligned);
        cuda_copies_close();
        cuda_copies_wait<0>();
        round_staged<P, P::BLOCK_ROWS>(tile, place, x.factor);
        own.tile = tile + (warp * P::ROWS + lane % 16) * P::RS + lane / 16 * P::PIECE;
    }
}

/* to = own rows x CHUNK rows of the tile. */
template <typename P, bool TURNED>
__device__ static void meet(float to[P::ROW_TILES][P::GROUPS][4], const own_rows<P> &own, const typename P::element *tile) {
    const int lane = (int)threadIdx.x % 32;
    const typename P::element *row = tile + (lane / 16 * 8 + lane % 8) * P::RS + lane / 8 % 2 * P::PIECE;
    CUDA_UNROLL
    for (int m = 0; m < P::ROW_TILES; m++)
        CUDA_UNROLL
        for (int i = 0; i < 4 * P::GROUPS; i++)
            to[m][i / 4][i % 4] = 0.0f;
    CUDA_UNROLL
    for (int k = 0; k < P::FRAGMENTS; k++) {
        factors<P, 4> a[P::ROW_TILES];
        CUDA_UNROLL
        for (int m = 0; m < P::ROW_TILES; m++) {
            if constexpr (P::KEPT) {
                a[m] = factors_of<P, 4>(own.kept[k][m]);
            } else {
                uint32_t x[4];
                cuda_load_matrices(x, own.tile + m * 16 * P::RS + P::DEPTH * k);
                a[m] = factors_of<P, 4>(x);
            }
        }
        CUDA_UNROLL
        for (int j = 0; j < P::GROUPS; j += 2) {
            uint32_t x[4]; /* of rows 8j and following, and of 8 more */
            cuda_load_matrices(x, row + 8 * j * P::RS + P::DEPTH * k);
            const factors<P, 2> b = factors_of<P, 2>(x), more = factors_of<P, 2>(x + 2);
            CUDA_UNROLL
            for (int m = 0; m < P::ROW_TILES; m++) {
                multiply<P, TURNED>(to[m][j], a[m], b);
                multiply<P, TURNED>(to[m][j + 1], a[m], more);
            }
        }
    }
}

/* to += weights x CHUNK rows of the tile; weights are rounded here. */
template <typename P>
__device__ static void add_weighted(float to[P::ROW_TILES][P::FEATURE_GROUPS][4], const float weights[P::ROW_TILES][P::GROUPS][4],
                                    const typename P::element *tile) {
    const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if constexpr (P::BF16) {
        const bf16 *row = tile + lane % 16 * P::RS + lane / 16 * 8;
        CUDA_UNROLL
        for (int j = 0; j < P::GROUPS; j += 2) {
            factors<P, 4> a[P::ROW_TILES] = {};
            CUDA_UNROLL
            for (int m = 0; m < P::ROW_TILES; m++)
                CUDA_UNROLL
                for (int i = 0; i < 4; i++)
                    a[m].x[i] = cuda_bf16x2(weights[m][j + i / 2][i % 2 * 2], weights[m][j + i / 2][i % 2 * 2 + 1]);
            CUDA_UNROLL
            for (int f = 0; f < P::FEATURE_GROUPS; f += 2) {
                uint32_t x[4]; /* of features 8f and following, and of 8 more, which may be padding */
                cuda_load_matrices_turned(x, row + 8 * j * P::RS + 8 * f);
                const factors<P, 2> b = factors_of<P, 2>(x), more = factors_of<P, 2>(x + 2);
                CUDA_UNROLL
                for (int m = 0; m < P::ROW_TILES; m++) {
                    multiply<P>(to[m][f], a[m], b);
                    if (f + 1 < P::FEATURE_GROUPS)
                        multiply<P>(to[m][f + 1], a[m], more);
                }
            }
        }
    } else {
        CUDA_UNROLL
        for (int j = 0; j < P::GROUPS; j++) {
            const float *row = tile + (8 * j + 2 * t) * P::RS + g;
            factors<P, 4> a[P::ROW_TILES];
            CUDA_UNROLL
            for (int m = 0; m < P::ROW_TILES; m++) {
                uint32_t x[4];
                CUDA_UNROLL
                for (int i = 0; i < 4; i++)
                    x[i] = __float_as_uint(as_staged<P>(weights[m][j][i % 2 * 2 + i / 2]));
                a[m] = factors_of<P, 4>(x);
            }
            CUDA_UNROLL
            for (int f = 0; f < P::FEATURE_GROUPS; f++) {
                const uint32_t x[2] = {__float_as_uint(row[8 * f]), __float_as_uint(row[P::RS + 8 * f])};
                const factors<P, 2> b = factors_of<P, 2>(x);
                CUDA_UNROLL
                for (int m = 0; m < P::ROW_TILES; m++)
                    multiply<P>(to[m][f], a[m], b);
            }
        }
    }
}

#endif

/* Products with an unfolded image on tensor cores ("implicit GEMM"): a block copies the pieces of the image that its tile meets to
 * shared memory, four channels at a time, while it multiplies what came before. The image is never unfolded in memory.
 *
 * A ring of STAGES slots in shared memory holds as many chunks of BK values of k. Pieces of 16 bytes lie within a row of a slot in
 * an order that depends on the row, so that the eight rows that a warp reads at once are in different banks.
 *
 * A thread copies the same piece of several rows in every chunk. Where these are found in the image changes with the tap alone, so that
 * it keeps their places in a line of shared memory of its own; a copy takes an addition and a comparison. Copies and loads of factors
 * are spread among the products, whose results nobody waits for. */
#include <limits.h>
#include <stdlib.h>

#include "kernels/cuda/conv_tile.h"

/* A block's tile of C, BM x BN, of warps that have 16 TM x 8 TN each. */
template <int WARPS_M_, int WARPS_N_, int TM_, int TN_, int BK_, int STAGES_, int RESIDENT_> struct tile_shape {
    enum {
        WARPS_N = WARPS_N_,
        WARPS = WARPS_M_ * WARPS_N_,
        THREADS = 32 * WARPS,
        TM = TM_,
        TN = TN_,
        BK = BK_,
        STAGES = STAGES_,
        RESIDENT = RESIDENT_, /* blocks that a multiprocessor has registers and shared memory for */
        BM = WARPS_M_ * 16 * TM,
        BN = WARPS_N_ * 8 * TN,
        STEPS = BK / 8,      /* tensor cores take eight values of k at a time */
        LOADS = TM + TN / 2, /* of a step's factors */
        PIECES = BK / 4,
        A_COPIES = BM * PIECES / THREADS, /* of a thread in a chunk */
        B_COPIES = (BN * PIECES + THREADS - 1) / THREADS,
        QUADS = (A_COPIES + B_COPIES + 3) / 4,
        STEP_QUADS = (QUADS + STEPS - 2) / (STEPS - 1), /* copied in a step; in the last one they would come too late */
        A_BYTES = BM * BK * 4,
        SLOT_BYTES = A_BYTES + BN * BK * 4,
        SLAB_RS = 8 * TN + 8, /* floats between rows of a warp's results in shared memory: those of a store in different banks */
        ROWS_AT = STAGES * SLOT_BYTES,
        PLACES_AT = ROWS_AT + BM * 8,
        BYTES = PLACES_AT + QUADS * THREADS * 16
    };
    static_assert(WARPS * CUDA_SLAB_ROWS * SLAB_RS * 4 <= ROWS_AT && BYTES <= 160 << 10, "more shared memory than there is");
    static_assert(BM * PIECES % THREADS == 0 && BN % 32 == 0 && (THREADS / 8 % BK == 0 || BK % (THREADS / 8) == 0), "copies are uneven");
};
typedef tile_shape<4, 2, 4, 8, 32, 3, 1> tile_256x128;
typedef tile_shape<4, 2, 3, 10, 32, 3, 1> tile_192x160; /* for 320 columns */
typedef tile_shape<2, 2, 4, 6, 16, 5, 2> tile_128x96;
typedef tile_shape<2, 2, 4, 4, 16, 4, 3> tile_128x64;
typedef tile_shape<4, 1, 4, 4, 16, 3, 3> tile_256x32;

struct conv_args {
    const float *x, *b;
    conv_results to;
    int M, N, K;
    int tiles_m, tiles_n, chunks; /* chunks: of a part of the sum */
    int b_rs;                     /* floats between B's rows or, where k is contiguous, columns */
    int C, W, image, S, P, Q, stride, pad_t, pad_l;
    int up_h, up_w, shift; /* the image as it is read: enlarged by 1 << shift */
};

/* Where the windows of a row of A begin: in which image, and (h, w) in the enlarged one, 16 bits each. */
struct row_place {
    int image, hw;
};
/* What a thread copies of A: four channels from `c` on of the tap (r, s), in several rows. */
struct piece_place {
    int r, s, c;
};
/* Where a thread finds four of its pieces, in floats from those of the chunk's first row and channel; negative where zeros are. */
struct __align__(16) quad {
    int from[4];
};
enum { NOWHERE = -4 };

template <typename T> __device__ static int swizzled(int piece, int row) { return piece ^ (row / (8 / T::PIECES) % T::PIECES); }

template <typename T> __device__ static void place_rows(row_place *rows, const conv_args &a, int first) {
    for (int i = (int)threadIdx.x; i < T::BM; i += T::THREADS) {
        const unsigned m = (unsigned)(first + i), Q = (unsigned)a.Q, P = (unsigned)a.P;
        const int h = (int)(m / Q % P) * a.stride - a.pad_t, w = (int)(m % Q) * a.stride - a.pad_l;
        const bool there = m < (unsigned)a.M;
        rows[i].image = there ? (int)(m / Q / P) * a.image : 0;
        rows[i].hw = there ? (int)((unsigned)h << 16 | ((unsigned)w & 0xFFFFu)) : INT_MIN; /* far outside */
    }
}

/* The thread's places of A in a tap. */
template <typename T> __device__ static void place_a(quad *mine, const row_place *rows, const conv_args &a, const piece_place &at) {
    row_place row[T::A_COPIES]; /* all are read before the first place is written, or each would wait for the one before */
    CUDA_UNROLL
    for (int e = 0; e < T::A_COPIES; e++)
        row[e] = rows[(int)threadIdx.x / T::PIECES + e * (T::THREADS / T::PIECES)];
    CUDA_UNROLL
    for (int e = 0; e < T::A_COPIES; e++) {
        const row_place p = row[e];
        const int h = (p.hw >> 16) + at.r, w = (int16_t)p.hw + at.s;
        const bool there = (unsigned)h < (unsigned)a.up_h && (unsigned)w < (unsigned)a.up_w;
        const unsigned pixel = (unsigned)(h >> a.shift) * (unsigned)a.W + (unsigned)(w >> a.shift);
        mine[e / 4 * T::THREADS].from[e % 4] = there ? (int)((unsigned)p.image + pixel * (unsigned)a.C) : (int)NOWHERE;
    }
}

/* Of a thread's copy number e of B where rows are contiguous, of which eight threads copy 128 bytes: the line of the chunk, and which
 * eight pieces of it. */
template <typename T> __device__ static int line_of(int e) { return (int)threadIdx.x / 8 % T::BK + e * (T::THREADS / 8) % T::BK; }
template <typename T> __device__ static int eight_of(int e) { return (int)threadIdx.x / 8 / T::BK + e * (T::THREADS / 8) / T::BK; }

/* The thread's places of B, which stay. */
template <typename T, bool K_ROWS> __device__ static void place_b(quad *mine, const conv_args &a, int n) {
    CUDA_UNROLL
    for (int i = 0; i < T::B_COPIES; i++) {
        const int e = T::A_COPIES + i;
        int from = NOWHERE;
        if (K_ROWS) {
            const int line = line_of<T>(i), column = n + 32 * eight_of<T>(i) + (int)threadIdx.x % 8 * 4;
            if (line < a.K && column < a.N)
                from = line * a.b_rs + column;
        } else {
            const int column = n + (int)threadIdx.x / T::PIECES + i * (T::THREADS / T::PIECES);
            if (column < a.N)
                from = column * a.b_rs;
        }
        mine[e / 4 * T::THREADS].from[e % 4] = from;
    }
}

/* Goes BK further; true where that is another tap. */
template <typename T> __device__ static bool advance(piece_place &at, const conv_args &a) {
    at.c += T::BK;
    if (at.c < a.C)
        return false;
    do {
        at.c -= a.C;
        if (++at.s == a.S) {
            at.s = 0;
            at.r++;
        }
    } while (at.c >= a.C);
    return true;
}

/* A chunk that a thread copies: to a slot, from floats `channel` and `weight` on of x and b, of which `left` values of k are left. Sums
 * with places stay within 32 bits; what is past the end is not read. */
struct chunk_copy {
    unsigned char *slot;
    const float *x, *b;
    int channel, left;
    unsigned weight;
};
template <typename T, bool K_ROWS>
__device__ static chunk_copy copy_of(unsigned char *slot, const conv_args &a, const piece_place &at, int k, int k_end) {
    const unsigned weight = K_ROWS ? (unsigned)k * (unsigned)a.b_rs : (unsigned)k + threadIdx.x % T::PIECES * 4;
    return {slot, a.x, a.b, at.c, k_end - k, weight};
}

/* Queues the thread's copy number e, from its place. */
template <typename T, bool K_ROWS> __device__ static void copy_piece(const chunk_copy &to, int e, int from) {
    const int thread = (int)threadIdx.x, row = thread / T::PIECES, piece = thread % T::PIECES;
    const int at = (row * T::PIECES + swizzled<T>(piece, row)) * 16, i = e - T::A_COPIES;
    const bool there = from >= 0 && 4 * piece < to.left;
    const float *weight = to.b + (int)((unsigned)from + to.weight);
    if (e < T::A_COPIES) {
        cuda_copy_async(to.slot + at + e * T::THREADS * 16, to.x + (from + to.channel), there);
    } else if (i < T::B_COPIES) {
        unsigned char *slot = to.slot + T::A_BYTES;
        if (!K_ROWS) {
            if (T::BN * T::PIECES % T::THREADS == 0 || row + i * (T::THREADS / T::PIECES) < T::BN)
                cuda_copy_async(slot + at + i * T::THREADS * 16, weight, there);
        } else if (T::BN * T::PIECES % T::THREADS == 0 || eight_of<T>(i) < T::BN / 32) {
            const int line = line_of<T>(i), column = eight_of<T>(i) * 8 + (thread % 8 ^ 2 * (line & 3));
            cuda_copy_async(slot + (line * (T::BN / 4) + column) * 16, weight, from >= 0 && line < to.left);
        }
    }
}

template <typename T, bool K_ROWS> __device__ static void copy_chunk(const chunk_copy &to, const quad *mine) {
    CUDA_UNROLL
    for (int q = 0; q < T::QUADS; q++) {
        const quad places = mine[q * T::THREADS];
        CUDA_UNROLL
        for (int l = 0; l < 4; l++)
            copy_piece<T, K_ROWS>(to, 4 * q + l, places.from[l]);
    }
}

/* What a warp multiplies at once, eight values of k. */
template <typename T> struct factors {
    uint32_t a[T::TM][4], b[T::TN][2];
};

/* Where a warp reads a step's factors. at_a, at_b: the lane's first: bytes of a row, or, of K_ROWS, B's column. */
struct factors_place {
    const unsigned char *slot;
    int at_a, at_b, step;
};

/* The load number `load` of them. */
template <typename T, bool K_ROWS> __device__ static void take(factors<T> &f, const factors_place &from, int load) {
    const int t = (int)threadIdx.x % 4, j = 2 * (load - T::TM);
    if (load < T::TM) {
        cuda_load_matrices(f.a[load], from.slot + (from.at_a ^ 32 * from.step) + load * 16 * T::BK * 4);
        return;
    }
    const unsigned char *slot = from.slot + T::A_BYTES;
    uint32_t both[4];
    if (K_ROWS)
        CUDA_UNROLL
        for (int l = 0; l < 4; l++)
            both[l] = ((const uint32_t *)slot)[(8 * from.step + t + l % 2 * 4) * T::BN + ((from.at_b + 8 * (j + l / 2)) ^ 8 * t)];
    else
        cuda_load_matrices(both, slot + (from.at_b ^ 32 * from.step) + j * 8 * T::BK * 4);
    f.b[j][0] = both[0];
    f.b[j][1] = both[1];
    f.b[j + 1][0] = both[2];
    f.b[j + 1][1] = both[3];
}

__device__ static uint32_t rounded(uint32_t low, uint32_t high) {
    float x[2];
    memcpy(&x[0], &low, sizeof low);
    memcpy(&x[1], &high, sizeof high);
    return cuda_bf16x2(x[0], x[1]);
}

/* A step: multiplies f while it takes the next factors and copies `quads` of the thread's places from number q on. BF16: two steps are
 * multiplied once both are `packed`: in the order t, t+4 of each half of their 16 values of k, the same in A and B. */
template <typename T, bool K_ROWS, bool BF16>
__device__ static void multiply(float c[T::TM][T::TN][4], factors<T> &f, factors<T> &packed, int half, factors<T> &next,
                                const factors_place &from, const chunk_copy &to, const quad *mine, int q, int quads) {
    quad places[T::STEP_QUADS];
    CUDA_UNROLL
    for (int i = 0; i < quads; i++)
        places[i] = mine[(q + i) * T::THREADS];
    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++) {
        if (BF16) {
            packed.a[i][2 * half] = rounded(f.a[i][0], f.a[i][2]);
            packed.a[i][2 * half + 1] = rounded(f.a[i][1], f.a[i][3]);
        } else {
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                f.a[i][l] = cuda_raised(f.a[i][l]);
        }
    }
    CUDA_UNROLL
    for (int j = 0; j < T::TN; j++) {
        if (BF16) {
            packed.b[j][half] = rounded(f.b[j][0], f.b[j][1]);
        } else {
            f.b[j][0] = cuda_raised(f.b[j][0]);
            f.b[j][1] = cuda_raised(f.b[j][1]);
        }
        CUDA_UNROLL
        for (int load = j * T::LOADS / T::TN; load < (j + 1) * T::LOADS / T::TN; load++)
            take<T, K_ROWS>(next, from, load);
        CUDA_UNROLL
        for (int e = j * 4 * quads / T::TN; e < (j + 1) * 4 * quads / T::TN; e++)
            copy_piece<T, K_ROWS>(to, 4 * q + e, places[e / 4].from[e % 4]);
        CUDA_UNROLL
        for (int i = 0; i < T::TM; i++) {
            if (!BF16)
                cuda_mma_tf32(c[i][j], f.a[i], f.b[j]);
            else if (half == 1)
                cuda_mma_bf16(c[i][j], packed.a[i], packed.b[j]);
        }
    }
}

/* K_ROWS: B's rows are contiguous, not its columns. BF16: factors are rounded to it, else to TF32. A part of the sum goes to out + part *
 * M * ldc. */
template <typename T, bool K_ROWS, bool BF16> __global__ static void __launch_bounds__(T::THREADS, T::RESIDENT) conv_kernel(conv_args a) {
    CUDA_SHARED(shared);
    row_place *rows = (row_place *)(shared + T::ROWS_AT);
    quad *mine = (quad *)(shared + T::PLACES_AT) + threadIdx.x;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    /* Blocks that work at the same time are of the same rows: these are read from memory once. */
    const int tile_n = (int)(blockIdx.x % (unsigned)a.tiles_n), tile_m = (int)(blockIdx.x / (unsigned)a.tiles_n % (unsigned)a.tiles_m);
    const int part = (int)(blockIdx.x / (unsigned)a.tiles_n / (unsigned)a.tiles_m);
    const int first_n = tile_n * T::BN, warp_m = warp / T::WARPS_N * 16 * T::TM, warp_n = warp % T::WARPS_N * 8 * T::TN;
    const int begin = part * a.chunks * T::BK, end = a.K - begin < a.chunks * T::BK ? a.K : begin + a.chunks * T::BK;
    float c[T::TM][T::TN][4];
    factors<T> f[2], packed;

    place_rows<T>(rows, a, tile_m * T::BM);
    piece_place at;
    const int first_k = begin + (int)threadIdx.x % T::PIECES * 4, tap = first_k / a.C;
    at.c = first_k % a.C;
    at.s = tap % a.S;
    at.r = tap / a.S;
    place_b<T, K_ROWS>(mine, a, first_n);
    __syncthreads(); /* rows are there */
    place_a<T>(mine, rows, a, at);

    /* Of A, matrices are rows 0-7 and 8-15 of one piece, then of the next; of B, two pieces of columns 0-7, then of 8-15. */
    const int row_a = warp_m + lane % 16, row_b = warp_n + lane % 8 + lane / 16 * 8;
    const int at_a = row_a * T::BK * 4 + swizzled<T>(lane / 16, row_a) * 16;
    const int at_b = K_ROWS ? warp_n + lane / 4 : row_b * T::BK * 4 + swizzled<T>(lane / 8 % 2, row_b) * 16;

    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++)
        CUDA_UNROLL
        for (int j = 0; j < T::TN; j++)
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                c[i][j][l] = 0.0f;

    /* Past the end zeros are copied, so that groups of copies behind the one waited for are always as many. */
    int copied = begin;
    CUDA_NO_UNROLL
    for (int i = 0; i < T::STAGES - 1; i++) {
        copy_chunk<T, K_ROWS>(copy_of<T, K_ROWS>(shared + i * T::SLOT_BYTES, a, at, copied, end), mine);
        cuda_copies_close();
        copied += T::BK;
        if (advance<T>(at, a))
            place_a<T>(mine, rows, a, at);
    }
    cuda_copies_wait<T::STAGES - 2>();
    __syncthreads();
    CUDA_UNROLL
    for (int load = 0; load < T::LOADS; load++)
        take<T, K_ROWS>(f[0], {shared, at_a, at_b, 0}, load);
    int slot = 0;
    CUDA_NO_UNROLL
    for (int k = begin; k < end; k += T::BK) {
        const int before = slot == 0 ? T::STAGES - 1 : slot - 1, next = slot == T::STAGES - 1 ? 0 : slot + 1;
        /* The slot before was free since the last barrier. */
        const chunk_copy to = copy_of<T, K_ROWS>(shared + before * T::SLOT_BYTES, a, at, copied, end);
        CUDA_UNROLL
        for (int step = 0; step < T::STEPS; step++) {
            const bool last = step == T::STEPS - 1;
            const int q = step * T::STEP_QUADS, rest = last || q > T::QUADS ? 0 : T::QUADS - q;
            if (last) {
                cuda_copies_close();
                cuda_copies_wait<T::STAGES - 2>();
                __syncthreads(); /* the next chunk is there, and all of this one is in registers */
            }
            /* At the very end this takes what nobody needs. */
            const factors_place from = {shared + (last ? next : slot) * T::SLOT_BYTES, at_a, at_b, (step + 1) % T::STEPS};
            multiply<T, K_ROWS, BF16>(c, f[step % 2], packed, step % 2, f[(step + 1) % 2], from, to, mine, q,
                                      rest < T::STEP_QUADS ? rest : (int)T::STEP_QUADS);
        }
        slot = next;
        copied += T::BK;
        if (advance<T>(at, a))
            place_a<T>(mine, rows, a, at);
    }
    cuda_copies_wait<0>();
    __syncthreads(); /* slots are read no more */
    const int first_m = tile_m * T::BM + warp_m;
    a.to.out += (int64_t)part * a.M * a.to.ldc;
    cuda_conv_put<T>(a.to, first_n + warp_n, c, (float *)shared + warp * CUDA_SLAB_ROWS * T::SLAB_RS, [&](int i, int row) {
        const int m = first_m + 16 * i + row;
        return m < a.M ? m : -1;
    });
}

/* out = the sum of the parts, in order, and what ends a product. */
__global__ static void add_parts_kernel(float *out, int64_t ldc, const float *sums, uint32_t count, uint32_t N, int parts,
                                        cdad_epilogue with) {
    CUDA_EACH_OF(uint32_t, i, count) {
        const uint32_t n = i % N;
        const int64_t at = i / N * ldc + n;
        float x = sums[i];
        for (int part = 1; part < parts; part++)
            x += sums[(int64_t)part * count + i];
        out[at] = cuda_finished(x, at, (int)n, out, with);
    }
}

/* What a tile is to the choice among them. */
struct tile_costs {
    int BM, BN, BK, warps, resident, bytes;
};
template <typename T> static constexpr tile_costs costs_of(void) { return {T::BM, T::BN, T::BK, T::WARPS, T::RESIDENT, T::BYTES}; }
static constexpr tile_costs tiles[] = {costs_of<tile_256x128>(), costs_of<tile_192x160>(), costs_of<tile_128x96>(),
                                       costs_of<tile_128x64>(), costs_of<tile_256x32>()};
enum { TILES = sizeof tiles / sizeof *tiles, MOST_PARTS = 16, LEAST_K = 256, LEAST_SHARED = 99 << 10 }; /* LEAST_K: of a part */

struct conv_plan {
    int tile, parts;
    int64_t chunks; /* of a part */
    double clocks;
};

/* About the clocks that it takes, by what an H100 and each of its processors do in one: not by the GPU that is there, so that sums are
 * the same on all that have the shared memory. */
static double clocks(const tile_costs &t, int64_t M, int64_t N, int64_t k, int64_t parts) {
    const double products = 450, cache_bytes = 26 * CUDA_CONV_PROCESSORS, memory_bytes = 19 * CUDA_CONV_PROCESSORS, start = 3000, launch = 4000;
    const int64_t blocks = cuda_over(M, t.BM) * cuda_over(N, t.BN) * parts, most = cuda_over(blocks, CUDA_CONV_PROCESSORS);
    const int64_t resident = cuda_min(most, t.resident);
    const double multiply = (double)(most * t.BM * t.BN * k) / products * (resident * t.warps < 8 ? 1.5 : 1.0);
    const double read = (double)(blocks * (t.BM + t.BN) * k * 4) / cache_bytes;
    const double add = parts > 1 ? launch + (double)(8 * parts * M * N) / memory_bytes : 0.0;
    return (multiply > read ? multiply : read) + start * (double)cuda_over(most, t.resident) + add;
}

/* `shared`: bytes of shared memory that a block may have. */
static conv_plan plan_of(int64_t M, int64_t N, int64_t K, int64_t shared) {
    const int64_t most = M * N < INT64_C(1) << 30 ? cuda_max(1, cuda_min(MOST_PARTS, K / LEAST_K)) : 1; /* sums within 32 bits */
    conv_plan plan = {};
    plan.clocks = INFINITY;
    for (int i = 0; i < TILES; i++)
        for (int64_t wanted = 1; wanted <= most && tiles[i].bytes <= shared; wanted++) {
            const int64_t all = cuda_over(K, tiles[i].BK), chunks = cuda_over(all, wanted), parts = cuda_over(all, chunks);
            const double cost = clocks(tiles[i], M, N, chunks * tiles[i].BK, parts);
            if (cost < plan.clocks)
                plan = {i, (int)parts, chunks, cost};
        }
    return plan;
}

/* For large GPUs and small ones. */
int64_t cuda_conv_scratch(int64_t M, int64_t N, int64_t K) {
    const int parts = K > 0 ? (int)cuda_max(plan_of(M, N, K, INT64_MAX).parts, plan_of(M, N, K, LEAST_SHARED).parts) : 1;
    return cuda_max(parts > 1 ? parts * M * N * (int64_t)sizeof(float) : 0, cuda_conv_hopper_scratch(M, N, K));
}

bool cuda_conv_fits(int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, const cdad_epilogue *with) {
    const int64_t many = INT64_C(1) << 30, far = 1 << 13; /* elements within 32 bits, places within 16 */
    if (!A.unfold || B.unfold || with->precision == CDAD_FLOAT32 || ((uintptr_t)A.data | (uintptr_t)B.data) % 16 != 0)
        return false;
    const cdad_unfold &u = *A.unfold;
    const bool columns = B.rs == 1 && B.cs % 4 == 0 && N * B.cs < many, rows = B.cs == 1 && (B.rs | N) % 4 == 0 && K * B.rs < many;
    return (columns || rows) && u.C % 4 == 0 && u.N * u.H * u.W * u.C <= INT_MAX && M < many && N < many && K > 0 && K < many &&
           u.H * u.up < far && u.W * u.up < far && u.P * u.stride < far && u.Q * u.stride < far && u.R < far && u.S < far &&
           llabs(u.pad_t) < far && llabs(u.pad_l) < far;
}

template <typename T> static void launch(const cdad_context *ctx, const conv_args &a, int64_t blocks, bool k_rows, bool bf16) {
    const auto kernel = bf16 ? k_rows ? conv_kernel<T, true, true> : conv_kernel<T, false, true>
                             : k_rows ? conv_kernel<T, true, false> : conv_kernel<T, false, false>;
    CDAD_LAUNCH_SHARED(kernel, (unsigned)blocks, T::THREADS, T::BYTES, cuda_stream(ctx), a);
}

void cuda_conv(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, float *C, int64_t ldc,
               const cdad_epilogue *with, void *scratch) {
    const cdad_unfold &u = *A.unfold;
    const conv_plan plan = plan_of(M, N, K, cuda_shared_bytes(ctx));
    const tile_costs &t = tiles[plan.tile];
    const bool k_rows = B.rs != 1, bf16 = with->precision == CDAD_BFLOAT16;
    if (!bf16 && cuda_conv_hopper_clocks(ctx, M, N, K, A, with) < plan.clocks) {
        cuda_conv_hopper(ctx, N, K, A, A.data, B, C, ldc, with, scratch);
        return;
    }
    conv_args a = {};
    a.x = A.data;
    a.b = B.data;
    a.M = (int)M, a.N = (int)N, a.K = (int)K;
    a.tiles_m = (int)cuda_over(M, t.BM), a.tiles_n = (int)cuda_over(N, t.BN), a.chunks = (int)plan.chunks;
    a.b_rs = (int)(k_rows ? B.rs : B.cs);
    a.C = (int)u.C, a.W = (int)u.W, a.image = (int)(u.H * u.W * u.C);
    a.S = (int)u.S, a.P = (int)u.P, a.Q = (int)u.Q;
    a.stride = (int)u.stride, a.pad_t = (int)u.pad_t, a.pad_l = (int)u.pad_l;
    a.up_h = (int)(u.H * u.up), a.up_w = (int)(u.W * u.up), a.shift = u.up == 2;
    if (plan.parts > 1) {
        a.to = {(float *)scratch, N, (int)N, N % 4 == 0, {}};
    } else {
        a.to = cuda_conv_results(N, C, ldc, with);
    }
    const int64_t blocks = (int64_t)a.tiles_m * a.tiles_n * plan.parts;
    switch (plan.tile) {
    case 0:
        launch<tile_256x128>(ctx, a, blocks, k_rows, bf16);
        break;
    case 1:
        launch<tile_192x160>(ctx, a, blocks, k_rows, bf16);
        break;
    case 2:
        launch<tile_128x96>(ctx, a, blocks, k_rows, bf16);
        break;
    case 3:
        launch<tile_128x64>(ctx, a, blocks, k_rows, bf16);
        break;
    case 4:
        launch<tile_256x32>(ctx, a, blocks, k_rows, bf16);
        break;
    }
    if (plan.parts > 1) {
        const cdad_epilogue how = *with;
        CDAD_LAUNCH(add_parts_kernel, cuda_blocks(M * N), CUDA_THREADS, cuda_stream(ctx), C, ldc, (const float *)scratch, (uint32_t)(M * N),
                    (uint32_t)N, plan.parts, how);
    }
    cuda_launched(ctx, "gemm");
}

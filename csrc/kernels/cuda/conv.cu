/* Products with an unfolded image on tensor cores ("implicit GEMM"): a block copies the pieces of the image that its tile meets to
 * shared memory, four channels at a time, while it multiplies what came before. The image is never unfolded in memory.
 *
 * A ring of STAGES slots in shared memory holds as many chunks of BK values of k. Pieces of 16 bytes lie within a row of a slot in
 * an order that depends on the row, so that the eight rows that a warp reads at once are in different banks. */
#include <limits.h>
#include <string.h>

#include "kernels/cuda/conv.h"
#include "kernels/cuda/warp.h"

#ifdef CDAD_CUDA_ON_HOST
#define CUDA_NO_UNROLL
#else
#define CUDA_NO_UNROLL _Pragma("unroll 1")
#endif

enum { BK = 16, PIECES = BK / 4, STEPS = BK / 8 }; /* STEPS: tensor cores take eight values of k at a time */

/* A block's tile of C, BM x BN, of warps that have 16 TM x 8 TN each. */
template <int WARPS_M_, int WARPS_N_, int TM_, int TN_, int STAGES_, int RESIDENT_> struct tile_shape {
    enum {
        WARPS_N = WARPS_N_,
        WARPS = WARPS_M_ * WARPS_N_,
        THREADS = 32 * WARPS,
        TM = TM_,
        TN = TN_,
        STAGES = STAGES_,
        RESIDENT = RESIDENT_, /* blocks that a multiprocessor has registers and shared memory for */
        BM = WARPS_M_ * 16 * TM,
        BN = WARPS_N_ * 8 * TN,
        A_BYTES = BM * BK * 4,
        SLOT_BYTES = A_BYTES + BN * BK * 4,
        SLAB_RS = 8 * TN + 8, /* floats between rows of a warp's results in shared memory: those of a store in different banks */
        ROWS_AT = STAGES * SLOT_BYTES,
        BYTES = ROWS_AT + BM * 8
    };
    static_assert(WARPS * 16 * SLAB_RS * 4 <= ROWS_AT && BYTES <= 99 << 10, "more shared memory than every GPU has");
};
typedef tile_shape<4, 2, 4, 8, 4, 1> tile_256x128;
typedef tile_shape<4, 2, 3, 10, 4, 1> tile_192x160; /* for 320 columns */
typedef tile_shape<2, 2, 4, 4, 5, 3> tile_128x64;

struct conv_args {
    const float *x, *b;
    float *out;
    int64_t ldc;
    int M, N, K;
    int tiles_m, tiles_n, chunks; /* chunks: of a part of the sum */
    int b_rs;                     /* floats between B's rows or, where k is contiguous, columns */
    int C, W, image, S, P, Q, stride, pad_t, pad_l, R;
    int up_h, up_w, shift; /* the image as it is read: enlarged by 1 << shift */
    int quads;             /* whether results are read and written by four */
    cdad_epilogue with;
};

/* Where the windows of a row of A begin: in which image, and (h, w) in the enlarged one, 16 bits each. */
struct row_place {
    int image, hw;
};
/* What a thread copies of A: four channels from `c` on of the tap (r, s), in several rows. */
struct piece_place {
    int r, s, c;
};

__device__ static int swizzled(int piece, int row) { return piece ^ (row >> 1 & 3); }

template <typename T> __device__ static void place_rows(row_place *rows, const conv_args &a, int first) {
    for (int i = (int)threadIdx.x; i < T::BM; i += T::THREADS) {
        const unsigned m = (unsigned)(first + i), Q = (unsigned)a.Q, P = (unsigned)a.P;
        const int h = (int)(m / Q % P) * a.stride - a.pad_t, w = (int)(m % Q) * a.stride - a.pad_l;
        const bool there = m < (unsigned)a.M;
        rows[i].image = there ? (int)(m / Q / P) * a.image : 0;
        rows[i].hw = there ? (int)((unsigned)h << 16 | ((unsigned)w & 0xFFFFu)) : INT_MIN; /* far outside */
    }
}

__device__ static void advance(piece_place &at, const conv_args &a, int k) {
    at.c += k;
    while (at.c >= a.C) {
        at.c -= a.C;
        if (++at.s == a.S) {
            at.s = 0;
            at.r++;
        }
    }
}

/* Queues the copies of the chunk that begins at k. */
template <typename T, bool K_ROWS>
__device__ static void copy_chunk(unsigned char *slot, const row_place *rows, const conv_args &a, const piece_place &at, int k, int n) {
    const int thread = (int)threadIdx.x, row = thread / PIECES, piece = thread % PIECES;
    const unsigned height = at.r < a.R ? (unsigned)a.up_h : 0; /* past the last tap nothing is inside */
    unsigned char *to = slot + (row * PIECES + swizzled(piece, row)) * 16;
    CUDA_UNROLL
    for (int i = 0; i < T::BM; i += T::THREADS / PIECES) {
        const row_place p = rows[row + i];
        const int h = (p.hw >> 16) + at.r, w = (int16_t)p.hw + at.s;
        const bool there = (unsigned)h < height && (unsigned)w < (unsigned)a.up_w;
        const unsigned pixel = (unsigned)(h >> a.shift) * (unsigned)a.W + (unsigned)(w >> a.shift);
        const unsigned from = (unsigned)p.image + pixel * (unsigned)a.C + (unsigned)at.c;
        cuda_copy_async(to + i * PIECES * 16, a.x + (there ? from : 0), there);
    }
    slot += T::A_BYTES;
    if (K_ROWS) {
        const int width = T::BN / 4;
        CUDA_UNROLL
        for (int i = 0; i < BK * width; i += T::THREADS) {
            const int line = (thread + i) / width, column = (thread + i) % width;
            const bool there = k + line < a.K && n + 4 * column < a.N;
            if (BK * width % T::THREADS == 0 || line < BK)
                cuda_copy_async(slot + (line * width + (column ^ 2 * (line & 3))) * 16,
                                a.b + (there ? (k + line) * a.b_rs + n + 4 * column : 0), there);
        }
    } else {
        to = slot + (row * PIECES + swizzled(piece, row)) * 16;
        CUDA_UNROLL
        for (int i = 0; i < T::BN; i += T::THREADS / PIECES) {
            const bool there = k + 4 * piece < a.K && n + row + i < a.N;
            if (T::BN * PIECES % T::THREADS == 0 || row + i < T::BN)
                cuda_copy_async(to + i * PIECES * 16, a.b + (there ? (n + row + i) * a.b_rs + k + 4 * piece : 0), there);
        }
    }
}

/* What a warp multiplies at once, eight values of k. */
template <typename T> struct factors {
    uint32_t a[T::TM][4], b[T::TN][2];
};

/* at_a, at_b: where the lane reads the warp's first factors: bytes of a row, or, of K_ROWS, B's column. */
template <typename T, bool K_ROWS> __device__ static void take(factors<T> &f, const unsigned char *slot, int at_a, int at_b, int step) {
    const int t = (int)threadIdx.x % 4;
    const uint32_t *b = (const uint32_t *)(slot + T::A_BYTES) + (8 * step + t) * T::BN;
    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++)
        cuda_load_matrices(f.a[i], slot + (at_a ^ 32 * step) + i * 16 * BK * 4);
    CUDA_UNROLL
    for (int j = 0; j < T::TN; j += 2) {
        uint32_t both[4];
        if (K_ROWS)
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                both[l] = b[((at_b + 8 * (j + l / 2)) ^ 8 * t) + l % 2 * 4 * T::BN];
        else
            cuda_load_matrices(both, slot + T::A_BYTES + (at_b ^ 32 * step) + j * 8 * BK * 4);
        f.b[j][0] = both[0];
        f.b[j][1] = both[1];
        f.b[j + 1][0] = both[2];
        f.b[j + 1][1] = both[3];
    }
}

/* The hardware drops what a factor has beyond TF32. This much larger before, it is rounded without bias: what TF32 holds stays, errors
 * have the size that they have with rounding to nearest but for 6 %, and NaNs are left. One instruction, where cvt.rna.tf32 is three. */
__device__ static uint32_t raised(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 1.0003522f;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

template <typename T> __device__ static void multiply_tf32(float c[T::TM][T::TN][4], factors<T> &f) {
    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++)
        CUDA_UNROLL
        for (int l = 0; l < 4; l++)
            f.a[i][l] = raised(f.a[i][l]);
    CUDA_UNROLL
    for (int j = 0; j < T::TN; j++) {
        f.b[j][0] = raised(f.b[j][0]);
        f.b[j][1] = raised(f.b[j][1]);
        CUDA_UNROLL
        for (int i = 0; i < T::TM; i++)
            cuda_mma_tf32(c[i][j], f.a[i], f.b[j]);
    }
}

__device__ static uint32_t rounded(uint32_t low, uint32_t high) {
    float x[2];
    memcpy(&x[0], &low, sizeof low);
    memcpy(&x[1], &high, sizeof high);
    return cuda_bf16x2(x[0], x[1]);
}

/* Half of a chunk of 16 values of k, which are multiplied once both are `packed`: in the order t, t+4 of each half, the same in A and B. */
template <typename T> __device__ static void multiply_bf16(float c[T::TM][T::TN][4], factors<T> &packed, const factors<T> &f, int half) {
    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++) {
        packed.a[i][2 * half] = rounded(f.a[i][0], f.a[i][2]);
        packed.a[i][2 * half + 1] = rounded(f.a[i][1], f.a[i][3]);
    }
    CUDA_UNROLL
    for (int j = 0; j < T::TN; j++) {
        packed.b[j][half] = rounded(f.b[j][0], f.b[j][1]);
        if (half == 1)
            CUDA_UNROLL
            for (int i = 0; i < T::TM; i++)
                cuda_mma_bf16(c[i][j], packed.a[i], packed.b[j]);
    }
}

__device__ static float finished(float x, int64_t at, int n, const float *out, const cdad_epilogue &with) {
    if (with.accumulate)
        x += out[at];
    if (with.bias)
        x += with.bias[n];
    if (with.sum)
        x += with.sum[at];
    return cuda_activate(x, with.act);
}

__device__ static float4 plus(const float4 &a, const float4 &b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

__device__ static float4 finished4(float4 x, int64_t at, int n, const float *out, const cdad_epilogue &with) {
    if (with.accumulate)
        x = plus(x, *(const float4 *)(out + at));
    if (with.bias)
        x = plus(x, *(const float4 *)(with.bias + n));
    if (with.sum)
        x = plus(x, *(const float4 *)(with.sum + at));
    if (with.act)
        x = {cuda_activate(x.x, with.act), cuda_activate(x.y, with.act), cuda_activate(x.z, with.act), cuda_activate(x.w, with.act)};
    return x;
}

/* A warp's sums, from (first_m, first_n) on, to memory by way of its `slab` of shared memory, so that lanes write neighbours, and what
 * ends a product is compiled once. */
template <typename T>
__device__ static void put(float *out, const conv_args &a, int first_m, int first_n, const float c[T::TM][T::TN][4], float *slab) {
    const int lane = (int)threadIdx.x % 32, width = 8 * T::TN;
    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++) {
        CUDA_UNROLL
        for (int j = 0; j < T::TN; j++)
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                slab[(lane / 4 + l / 2 * 8) * T::SLAB_RS + 8 * j + lane % 4 * 2 + l % 2] = c[i][j][l];
        __syncwarp();
        CUDA_NO_UNROLL
        for (int e = 4 * lane; e < 16 * width; e += 4 * 32) {
            const int m = first_m + 16 * i + e / width, n = first_n + e % width;
            const float *from = slab + e / width * T::SLAB_RS + e % width;
            const int64_t at = m * a.ldc + n;
            if (m >= a.M)
                continue;
            if (a.quads) {
                if (n < a.N)
                    *(float4 *)(out + at) = finished4(*(const float4 *)from, at, n, out, a.with);
            } else {
                for (int l = 0; l < 4 && n + l < a.N; l++)
                    out[at + l] = finished(from[l], at + l, n + l, out, a.with);
            }
        }
        __syncwarp();
    }
}

/* K_ROWS: B's rows are contiguous, not its columns. BF16: factors are rounded to it, else to TF32. A part of the sum goes to out + part *
 * M * ldc. */
template <typename T, bool K_ROWS, bool BF16> __global__ static void __launch_bounds__(T::THREADS, T::RESIDENT) conv_kernel(conv_args a) {
    CUDA_SHARED(shared);
    row_place *rows = (row_place *)(shared + T::ROWS_AT);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    /* Blocks that work at the same time are of the same rows: these are read from memory once. */
    const int tile_n = (int)(blockIdx.x % (unsigned)a.tiles_n), tile_m = (int)(blockIdx.x / (unsigned)a.tiles_n % (unsigned)a.tiles_m);
    const int part = (int)(blockIdx.x / (unsigned)a.tiles_n / (unsigned)a.tiles_m);
    const int first_n = tile_n * T::BN, warp_m = warp / T::WARPS_N * 16 * T::TM, warp_n = warp % T::WARPS_N * 8 * T::TN;
    const int begin = part * a.chunks, all = (a.K + BK - 1) / BK, end = all < begin + a.chunks ? all : begin + a.chunks;
    float c[T::TM][T::TN][4];
    factors<T> f[2], packed;

    place_rows<T>(rows, a, tile_m * T::BM);
    piece_place at;
    const int k = begin * BK + (int)threadIdx.x % PIECES * 4, tap = k / a.C;
    at.c = k % a.C;
    at.s = tap % a.S;
    at.r = tap / a.S;
    __syncthreads(); /* rows are there */

    /* Of A, matrices are rows 0-7 and 8-15 of one piece, then of the next; of B, two pieces of columns 0-7, then of 8-15. */
    const int row_a = warp_m + lane % 16, row_b = warp_n + lane % 8 + lane / 16 * 8;
    const int at_a = row_a * BK * 4 + swizzled(lane / 16, row_a) * 16;
    const int at_b = K_ROWS ? warp_n + lane / 4 : row_b * BK * 4 + swizzled(lane / 8 % 2, row_b) * 16;

    CUDA_UNROLL
    for (int i = 0; i < T::TM; i++)
        CUDA_UNROLL
        for (int j = 0; j < T::TN; j++)
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                c[i][j][l] = 0.0f;

    /* Groups of copies are closed whether there are chunks left or not, so that those behind the one waited for are always as many. */
    for (int i = 0; i < T::STAGES - 1; i++) {
        if (begin + i < end)
            copy_chunk<T, K_ROWS>(shared + i * T::SLOT_BYTES, rows, a, at, (begin + i) * BK, first_n);
        advance(at, a, BK);
        cuda_copies_close();
    }
    cuda_copies_wait<T::STAGES - 2>();
    __syncthreads();
    take<T, K_ROWS>(f[0], shared, at_a, at_b, 0);
    int slot = 0;
    for (int chunk = begin; chunk < end; chunk++) {
        const int before = slot == 0 ? T::STAGES - 1 : slot - 1, next = slot == T::STAGES - 1 ? 0 : slot + 1;
        CUDA_UNROLL
        for (int step = 0; step < STEPS; step++) {
            if (step == STEPS - 1) {
                cuda_copies_wait<T::STAGES - 2>();
                __syncthreads(); /* the next chunk is there, and all of this one is in registers */
            }
            /* At the very end this takes what nobody needs. */
            take<T, K_ROWS>(f[(step + 1) % 2], shared + (step == STEPS - 1 ? next : slot) * T::SLOT_BYTES, at_a, at_b,
                            (step + 1) % STEPS);
            if (step == 0) { /* the slot before was free since the last barrier */
                if (chunk + T::STAGES - 1 < end)
                    copy_chunk<T, K_ROWS>(shared + before * T::SLOT_BYTES, rows, a, at, (chunk + T::STAGES - 1) * BK, first_n);
                advance(at, a, BK);
                cuda_copies_close();
            }
            if (BF16)
                multiply_bf16<T>(c, packed, f[step % 2], step);
            else
                multiply_tf32<T>(c, f[step % 2]);
        }
        slot = next;
    }
    cuda_copies_wait<0>();
    __syncthreads(); /* slots are read no more */
    put<T>(a.out + (int64_t)part * a.M * a.ldc, a, tile_m * T::BM + warp_m, first_n + warp_n, c, (float *)shared + warp * 16 * T::SLAB_RS);
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
        out[at] = finished(x, at, (int)n, out, with);
    }
}

/* What a tile is to the choice among them. */
struct tile_costs {
    int BM, BN, warps, resident;
};
template <typename T> static constexpr tile_costs costs_of(void) { return {T::BM, T::BN, T::WARPS, T::RESIDENT}; }
static constexpr tile_costs tiles[] = {costs_of<tile_256x128>(), costs_of<tile_192x160>(), costs_of<tile_128x64>()};
enum { TILES = sizeof tiles / sizeof *tiles, MOST_PARTS = 16, LEAST_K = 256 }; /* LEAST_K: of a part */

struct conv_plan {
    int tile, parts;
    int64_t chunks; /* of a part */
};

static int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

#ifdef CDAD_CUDA_ON_HOST
enum { PROCESSORS = 4 }; /* so that small tests come to every tile, and to parts */
#else
enum { PROCESSORS = 132 };
#endif

/* About the clocks that it takes, by what an H100 and each of its processors do in one: a matter of shape alone, so that sums are the
 * same on every GPU. */
static double clocks(const tile_costs &t, int64_t M, int64_t N, int64_t k, int64_t parts) {
    const double products = 600, cache_bytes = 26 * PROCESSORS, memory_bytes = 19 * PROCESSORS, start = 3000, launch = 4000;
    const int64_t blocks = over(M, t.BM) * over(N, t.BN) * parts, most = over(blocks, PROCESSORS);
    const int64_t resident = cuda_min(most, t.resident);
    const double multiply = (double)(most * t.BM * t.BN * k) / products * (resident * t.warps < 8 ? 1.5 : 1.0);
    const double read = (double)(blocks * (t.BM + t.BN) * k * 4) / cache_bytes;
    const double add = parts > 1 ? launch + (double)(8 * parts * M * N) / memory_bytes : 0.0;
    return (multiply > read ? multiply : read) + start * (double)over(most, t.resident) + add;
}

static conv_plan plan_of(int64_t M, int64_t N, int64_t K) {
    const int64_t most = M * N < INT64_C(1) << 30 ? cuda_max(1, cuda_min(MOST_PARTS, K / LEAST_K)) : 1; /* sums within 32 bits */
    conv_plan plan = {};
    double least = INFINITY;
    for (int i = 0; i < TILES; i++)
        for (int64_t wanted = 1; wanted <= most; wanted++) {
            const int64_t all = over(K, BK), chunks = over(all, wanted), parts = over(all, chunks);
            const double cost = clocks(tiles[i], M, N, chunks * BK, parts);
            if (cost < least) {
                least = cost;
                plan = {i, (int)parts, chunks};
            }
        }
    return plan;
}

int64_t cuda_conv_scratch(int64_t M, int64_t N, int64_t K) {
    const int parts = K > 0 ? plan_of(M, N, K).parts : 1;
    return parts > 1 ? parts * M * N * (int64_t)sizeof(float) : 0;
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
    const conv_plan plan = plan_of(M, N, K);
    const tile_costs &t = tiles[plan.tile];
    const bool k_rows = B.rs != 1, bf16 = with->precision == CDAD_BFLOAT16;
    const uintptr_t met = (uintptr_t)with->bias | (uintptr_t)with->sum;
    conv_args a = {};
    a.x = A.data;
    a.b = B.data;
    a.M = (int)M, a.N = (int)N, a.K = (int)K;
    a.tiles_m = (int)over(M, t.BM), a.tiles_n = (int)over(N, t.BN), a.chunks = (int)plan.chunks;
    a.b_rs = (int)(k_rows ? B.rs : B.cs);
    a.C = (int)u.C, a.W = (int)u.W, a.image = (int)(u.H * u.W * u.C);
    a.R = (int)u.R, a.S = (int)u.S, a.P = (int)u.P, a.Q = (int)u.Q;
    a.stride = (int)u.stride, a.pad_t = (int)u.pad_t, a.pad_l = (int)u.pad_l;
    a.up_h = (int)(u.H * u.up), a.up_w = (int)(u.W * u.up), a.shift = u.up == 2;
    if (plan.parts > 1) {
        a.out = (float *)scratch;
        a.ldc = N;
        a.quads = N % 4 == 0;
    } else {
        a.out = C;
        a.ldc = ldc;
        a.quads = (N | ldc) % 4 == 0 && ((uintptr_t)C | met) % 16 == 0;
        a.with = *with;
    }
    const int64_t blocks = (int64_t)a.tiles_m * a.tiles_n * plan.parts;
    if (plan.tile == 0)
        launch<tile_256x128>(ctx, a, blocks, k_rows, bf16);
    else if (plan.tile == 1)
        launch<tile_192x160>(ctx, a, blocks, k_rows, bf16);
    else
        launch<tile_128x64>(ctx, a, blocks, k_rows, bf16);
    if (plan.parts > 1) {
        const cdad_epilogue how = *with;
        CDAD_LAUNCH(add_parts_kernel, cuda_blocks(M * N), CUDA_THREADS, cuda_stream(ctx), C, ldc, (const float *)scratch, (uint32_t)(M * N),
                    (uint32_t)N, plan.parts, how);
    }
    cuda_launched(ctx, "gemm");
}

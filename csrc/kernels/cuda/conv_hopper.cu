/* Convolutions of 3 x 3 windows, a pixel apart and padded to the image's size, by compute capability 9.0's products of warpgroups, which
 * take B from shared memory. A block makes a patch of SIDE x SIDE pixels in some columns. It copies the patch with the pixels around it
 * once for all nine taps, so many channels at a time, as a tap is a matter of which pixels' rows a warp loads into registers. They are 32
 * floats, taken in TF32, or 64 that are bfloat16 in memory: bytes lie and move alike.
 *
 * The weight is rounded and put into scratch before, in the order in which blocks read it: so many columns, then channels, then a tap
 * make a tile, which lies there as it will in shared memory. A ring of SLOTS slots holds tiles, two more hold the patch's channels.
 *
 * What is copied in a tile's turn is waited for at the end of the next one. A turn's products end in the next turn's first step, so that
 * slots are written two turns after they were read.
 *
 * A multiprocessor has room for one block, which makes patch after patch: the first turns of the next one are copied while results of this
 * one go to memory, by way of slabs that are nothing else. */
#include "kernels/cuda/conv_tile.h"

enum {
    SIDE = 16, /* pixels of a patch: a warp has 16 rows of A, which are a row of these */
    AROUND = SIDE + 2,
    PIXELS = AROUND * AROUND,
    PIXEL_BYTES = 128, /* of the channels that are there at a time */
    PIECES = PIXEL_BYTES / 16,
    TAPS = 9,
    STEPS = PIXEL_BYTES / 32,
    SLOTS = 4,
    AHEAD = SLOTS - 2, /* turns */
    FACTORS = 4,       /* steps whose A a warp holds: of one that is multiplied, the one before, and two to come */
    THREADS = 256,     /* two warpgroups: 128 rows each, in two products of 64 */
    PATCH_COPIES = (PIXELS * PIECES + THREADS - 1) / THREADS, /* of a thread */
    PLACES = PATCH_COPIES * THREADS / PIECES,                 /* past the last pixel zeros are copied */
    PATCH_BYTES = PLACES * PIXEL_BYTES,
    NOWHERE = -8, /* copies want addresses that 16 divides, of zeros too */
    COPY_STEPS = 2 /* of a turn: what is copied later would be waited for at its end */
};
static_assert(STEPS % FACTORS == 0, "a step's registers are not the same in every turn");
static_assert(PATCH_COPIES <= COPY_STEPS * (TAPS - AHEAD - 1), "a patch comes too late");

/* A block's columns, BN. */
template <int BN_> struct patch_shape {
    enum {
        BN = BN_,
        TM = 2,
        TN = BN / 8,
        SLAB_RS = BN + 8, /* floats between rows of a warp's results in shared memory: those of a store in different banks */
        TILE_BYTES = BN * PIXEL_BYTES,
        TILE_COPIES = TILE_BYTES / 16 / THREADS, /* of a thread */
        PATCHES_AT = SLOTS * TILE_BYTES,
        PLACES_AT = PATCHES_AT + 2 * PATCH_BYTES,
        SLABS_AT = PLACES_AT + PLACES * 4,
        SLAB = CUDA_SLAB_ROWS * SLAB_RS, /* floats */
        ALIGN = 1024, /* of tiles */
        BYTES = ALIGN + SLABS_AT + THREADS / 32 * SLAB * 4
    };
    static_assert(BYTES <= 227 << 10 && SLABS_AT % 16 == 0, "more shared memory than there is");
    static_assert(TILE_BYTES % ALIGN == 0 && TILE_BYTES % (16 * THREADS) == 0, "tiles are uneven");
};

/* Bytes of a channel of a pixel, and how many channels are there at a time. */
template <bool BF16> struct factor {
    static constexpr int BYTES = BF16 ? 2 : 4, CHANNELS = PIXEL_BYTES / BYTES;
};
static int element_of(bool bf16) { return bf16 ? factor<true>::BYTES : factor<false>::BYTES; }
static int channels_of(bool bf16) { return PIXEL_BYTES / element_of(bf16); }

struct patch_args {
    const unsigned char *x, *tiles;
    conv_results to;
    int count, tiles_n, patches_h, patches_w, chunks; /* count: of patches, each once for every tile of columns */
    int C, H, W, P, Q, shift; /* the image as it is read: enlarged by 1 << shift to P x Q */
};

/* Compilers of other GPUs' code know no such products: it is empty, and not launched. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CDAD_CUDA_ON_HOST)
#define HAS_GROUPS
#endif

#ifdef HAS_GROUPS
/* What a block makes at a time: columns number tile_n of a patch of an image. Neighbours, which are made at the same time, are of the same
 * patch: it is read from memory once. */
struct patch_place {
    int tile_n, image, top, left;
};
__device__ static patch_place place_of_number(const patch_args &a, int number) {
    const int patch = number / a.tiles_n;
    return {number % a.tiles_n, patch / a.patches_w / a.patches_h, patch / a.patches_w % a.patches_h * SIDE, patch % a.patches_w * SIDE};
}

/* Where the pixels of the patch and those around it are: in channels from x on. */
__device__ static void place_pixels(int *places, const patch_args &a, const patch_place &at) {
    for (int i = (int)threadIdx.x; i < PLACES; i += THREADS) {
        const int h = at.top - 1 + i / AROUND, w = at.left - 1 + i % AROUND;
        const bool there = i < PIXELS && (unsigned)h < (unsigned)a.P && (unsigned)w < (unsigned)a.Q;
        places[i] = there ? ((at.image * a.H + (h >> a.shift)) * a.W + (w >> a.shift)) * a.C : (int)NOWHERE;
    }
}

/* Queues the thread's copy number e of a patch's channels, from x on. Pieces of pixel i are in the order piece ^ i % 8, so that eight
 * neighbours' are in different banks. */
template <bool BF16> __device__ static void copy_pixels(unsigned char *patch, const unsigned char *x, const int *places, int e) {
    const unsigned i = (threadIdx.x + (unsigned)e * THREADS) / PIECES, piece = threadIdx.x % PIECES;
    const int from = places[i];
    cuda_copy_async(patch + i * PIXEL_BYTES + (piece ^ i % PIECES) * 16, x + (int64_t)from * factor<BF16>::BYTES + 16 * (int)piece, from >= 0);
}

/* Of a tile. */
__device__ static void copy_weights(unsigned char *slot, const unsigned char *tile, int e, bool there) {
    const int at = ((int)threadIdx.x + e * THREADS) * 16;
    cuda_copy_async(slot + at, tile + at, there);
}

/* Where the tiles of its columns begin. */
template <typename T> __device__ static const unsigned char *tiles_of(const patch_args &a, const patch_place &at) {
    return a.tiles + (int64_t)at.tile_n * a.chunks * TAPS * T::TILE_BYTES;
}

/* Queues the copies of the first turns, a group a turn. */
template <typename T, bool BF16> __device__ static void begin(unsigned char *shared, const patch_args &a, const patch_place &at) {
    int *places = (int *)(shared + T::PLACES_AT);
    const unsigned char *tile = tiles_of<T>(a, at);
    place_pixels(places, a, at);
    CUDA_UNROLL
    for (int i = 0; i < AHEAD; i++) {
        CUDA_UNROLL
        for (int e = 0; e < T::TILE_COPIES; e++)
            copy_weights(shared + i * T::TILE_BYTES, tile + i * T::TILE_BYTES, e, true);
        if (i == 0) {
            __syncthreads(); /* places are there */
            CUDA_UNROLL
            for (int e = 0; e < PATCH_COPIES; e++)
                copy_pixels<BF16>(shared + T::PATCHES_AT, a.x, places, e);
        }
        cuda_copies_close();
    }
}

/* Where a lane that begins with pixel i loads the first step's A: matrices are of eight pixels' one piece, of the next eight's, then of both
 * the next piece. Those of a step are at ^ 32 * step. */
__device__ static int place_of(int i) {
    return i * PIXEL_BYTES + (int)((threadIdx.x % 32 / 16 ^ (unsigned)i % PIECES) * 16);
}

/* A step's rows of A: of SIDE / 2 rows of the patch a warp has two, four apart. */
__device__ static void take(uint32_t f[2][4], const unsigned char *patch, int at, int step) {
    static_assert(4 * AROUND % PIECES == 0, "pieces of the second row are in another order");
    CUDA_UNROLL
    for (int i = 0; i < 2; i++)
        cuda_load_matrices(f[i], patch + (at ^ 32 * step) + i * 4 * AROUND * PIXEL_BYTES);
}

/* c += the sum of what ends the product, of the lane's two rows m (negative: nowhere), from column n on: many are asked for at once, where
 * cuda_conv_put waits for one after the other. */
template <int TN> __device__ static void add_sums(float c[TN][4], const conv_results &to, const int m[2], int n) {
    CUDA_UNROLL
    for (int l = 0; l < 2; l++) {
        if (m[l] < 0)
            continue;
        const float *from = to.with.sum + m[l] * to.ldc + n + (int)threadIdx.x % 4 * 2;
        CUDA_UNROLL
        for (int j = 0; j < TN; j++) {
            const two x = *(const two *)(from + 8 * j);
            c[j][2 * l] += x.low;
            c[j][2 * l + 1] += x.high;
        }
    }
}
#endif

/* All results. */
template <int BN, bool BF16> __global__ static void __launch_bounds__(THREADS, 1) patch_kernel(patch_args a) {
#ifdef HAS_GROUPS
    typedef patch_shape<BN> T;
    CUDA_SHARED(unaligned);
    unsigned char *shared = unaligned + (0u - cuda_shared_address(unaligned)) % T::ALIGN;
    const int *places = (const int *)(shared + T::PLACES_AT);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, turns = a.chunks * TAPS;
    const int row = warp / 4 * (SIDE / 2) + warp % 4, first = row * AROUND + lane % 16;
    float *slab = (float *)(shared + T::SLABS_AT) + warp * T::SLAB;
    patch_place place = place_of_number(a, (int)blockIdx.x);
    begin<T, BF16>(shared, a, place);
    CUDA_NO_UNROLL
    for (int number = (int)blockIdx.x; number < a.count; number += (int)gridDim.x) {
        float c[2][T::TN][4];
        uint32_t f[FACTORS][2][4];
        CUDA_UNROLL
        for (int i = 0; i < 2; i++)
            CUDA_UNROLL
            for (int j = 0; j < T::TN; j++)
                CUDA_UNROLL
                for (int l = 0; l < 4; l++)
                    c[i][j][l] = 0.0f;
        cuda_copies_wait<AHEAD - 1>();
        cuda_show_groups();
        __syncthreads();

        const unsigned char *tile = tiles_of<T>(a, place) + AHEAD * T::TILE_BYTES; /* to copy next */
        const unsigned char *pixels = shared + T::PATCHES_AT;
        int tap = 0, chunk = 0, at = place_of(first);
        take(f[0], pixels, at, 0);
        take(f[1], pixels, at, 1);
        CUDA_NO_UNROLL
        for (int turn = 0; turn < turns; turn++) {
            const cuda_tile b = cuda_tile_at(shared + turn % SLOTS * T::TILE_BYTES);
            unsigned char *slot = shared + (turn + AHEAD) % SLOTS * T::TILE_BYTES;
            unsigned char *other = shared + T::PATCHES_AT + (chunk + 1) % 2 * PATCH_BYTES; /* was read in the chunk before */
            const bool last_tap = tap == TAPS - 1;
            const int next_tap = last_tap ? 0 : tap + 1, next_at = place_of(first + next_tap / 3 * AROUND + next_tap % 3);
            CUDA_UNROLL
            for (int step = 0; step < STEPS; step++) {
                const bool beyond = step + 2 >= STEPS; /* what is loaded now is the next turn's */
                uint32_t(*now)[4] = f[step % FACTORS];
                CUDA_UNROLL
                for (int i = 0; i < 2 && !BF16; i++)
                    CUDA_UNROLL
                    for (int l = 0; l < 4; l++)
                        now[i][l] = cuda_raised(now[i][l]);
                cuda_group_fence(now[0], now[1]);
                CUDA_UNROLL
                for (int i = 0; i < 2; i++)
                    cuda_group_mma<BN, BF16>(c[i], now[i], cuda_tile_step(b, step));
                cuda_group_close();
                /* Past the end zeros are copied, so that groups of copies behind the one waited for are always as many. */
                CUDA_UNROLL
                for (int e = step; e < T::TILE_COPIES && step < COPY_STEPS; e += COPY_STEPS)
                    copy_weights(slot, tile, e, turn + AHEAD < turns);
                if (step < COPY_STEPS && COPY_STEPS * tap + step < PATCH_COPIES && chunk + 1 < a.chunks)
                    copy_pixels<BF16>(other, a.x + (chunk + 1) * PIXEL_BYTES, places, COPY_STEPS * tap + step);
                cuda_groups_wait<1>(); /* of the step before; while more went on, the compiler would let no registers be loaded */
                /* At the very end this takes what nobody needs. */
                take(f[(step + 2) % FACTORS], beyond && last_tap ? other : pixels, beyond ? next_at : at, (step + 2) % STEPS);
            }
            cuda_copies_close();
            cuda_copies_wait<AHEAD - 1>();
            cuda_show_groups();
            __syncthreads(); /* the next tile is there; all have done with the tile before this one */
            tile += T::TILE_BYTES;
            tap = next_tap;
            at = next_at;
            if (last_tap) {
                chunk++;
                pixels = other;
            }
        }
        cuda_groups_wait<0>();
        cuda_copies_wait<0>();
        __syncthreads(); /* slots, patches and places are read no more */
        const patch_place made = place;
        if (number + (int)gridDim.x < a.count) {
            place = place_of_number(a, number + (int)gridDim.x);
            begin<T, BF16>(shared, a, place);
        }
        const auto row_of = [&](int i, int pixel) {
            const int h = made.top + row + 4 * i, w = made.left + pixel;
            return h < a.P && w < a.Q ? (made.image * a.P + h) * a.Q + w : -1;
        };
        conv_results to = a.to;
        if (to.quads && to.with.sum) {
            CUDA_UNROLL
            for (int i = 0; i < 2; i++) {
                const int m[2] = {row_of(i, lane / 4), row_of(i, lane / 4 + 8)};
                add_sums<T::TN>(c[i], to, m, made.tile_n * BN);
            }
            to.with.sum = NULL;
        }
        cuda_conv_put<T>(to, made.tile_n * BN, c, slab, row_of);
    }
#else
    (void)a;
#endif
}

struct __align__(16) packed_piece {
    uint32_t of[4];
};

/* to: the weight b in tiles of BN columns, rounded. K_ROWS: b's rows are contiguous, else its columns; b_rs apart. */
template <bool K_ROWS, bool BF16>
__global__ static void pack_kernel(packed_piece *to, const float *b, uint32_t b_rs, uint32_t BN, uint32_t C, uint32_t pieces) {
    const uint32_t CHANNELS = factor<BF16>::CHANNELS, EACH = 16 / factor<BF16>::BYTES;
    CUDA_EACH_OF(uint32_t, i, pieces) {
        const uint32_t eight = i / 64, row = K_ROWS ? i % 8 : i / 8 % 8, piece = K_ROWS ? i / 8 % 8 : i % 8;
        const uint32_t tile = eight / (BN / 8), tap = tile % TAPS, chunk = tile / TAPS % (C / CHANNELS);
        const uint32_t n = tile / TAPS / (C / CHANNELS) * BN + eight % (BN / 8) * 8 + row, k = tap * C + chunk * CHANNELS + EACH * piece;
        float4 x[EACH / 4];
        CUDA_UNROLL
        for (uint32_t j = 0; j < EACH / 4; j++) {
            const uint32_t at = k + 4 * j;
            if (K_ROWS)
                x[j] = {b[at * b_rs + n], b[(at + 1) * b_rs + n], b[(at + 2) * b_rs + n], b[(at + 3) * b_rs + n]};
            else
                x[j] = *(const float4 *)(b + n * b_rs + at);
        }
        packed_piece &piece_of = to[eight * 64 + row * 8 + (piece ^ row)];
        if constexpr (BF16)
            piece_of = {{cuda_bf16x2(x[0].x, x[0].y), cuda_bf16x2(x[0].z, x[0].w), cuda_bf16x2(x[1].x, x[1].y), cuda_bf16x2(x[1].z, x[1].w)}};
        else
            piece_of = {{cuda_tf32(x[0].x), cuda_tf32(x[0].y), cuda_tf32(x[0].z), cuda_tf32(x[0].w)}};
    }
}

#ifdef CDAD_CUDA_ON_HOST
enum { PRODUCTS = 1 << 20, ROUNDED_PRODUCTS = 1 << 20, START = 0, LEAST_BLOCKS = 1 }; /* so that small tests come here */
#else
/* PRODUCTS: of a multiprocessor in a clock, in TF32; ROUNDED_PRODUCTS: in bfloat16; START: clocks of a block without. */
enum { PRODUCTS = 800, ROUNDED_PRODUCTS = 1300, START = 6000, LEAST_BLOCKS = 64 };
#endif
static const double MEMORY_BYTES = 19.0 * CUDA_CONV_PROCESSORS, LAUNCH = 4000.0; /* of all of them in a clock; clocks */

/* Fewer blocks leave most of the GPU idle. */
static bool takes(int64_t M, int64_t N, int64_t K, bool bf16) {
    return (N % 128 == 0 || N % 160 == 0) && K % (TAPS * channels_of(bf16)) == 0 &&
           cuda_over(M, SIDE * SIDE) * cuda_over(N, 160) >= LEAST_BLOCKS;
}

int64_t cuda_conv_hopper_scratch(int64_t M, int64_t N, int64_t K) {
    return takes(M, N, K, false) ? N * K * (int64_t)sizeof(float) : takes(M, N, K, true) ? N * K * 2 : 0;
}

static int64_t patches_of(const cdad_unfold &u) { return u.N * cuda_over(u.P, SIDE) * cuda_over(u.Q, SIDE); }

/* About the clocks that it takes, as conv.cu counts them; infinite where columns are no multiple of BN. */
static double clocks_of(int64_t patches, int64_t N, int64_t K, int64_t BN, bool bf16) {
    const int64_t most = cuda_over(patches * (N / BN), CUDA_CONV_PROCESSORS);
    const double each = (double)(SIDE * SIDE * BN * K) / (bf16 ? ROUNDED_PRODUCTS : PRODUCTS) + START;
    return N % BN == 0 ? (double)most * each + LAUNCH + (double)((4 + element_of(bf16)) * N * K) / MEMORY_BYTES : INFINITY;
}

/* Rounding the weight too takes as much as it does here. */
double cuda_conv_gathered_clocks(int64_t M, int64_t N, int64_t K) {
    const double products = 1300.0 * CUDA_CONV_PROCESSORS, gathered = (double)(2 * 2 * M * K) / MEMORY_BYTES;
    return gathered + (double)(M * N * K) / products + 2 * LAUNCH + (double)(6 * N * K) / MEMORY_BYTES;
}

template <int BN, bool BF16> static void launch(const cdad_context *ctx, const patch_args &a) {
    const auto kernel = patch_kernel<BN, BF16>;
    const unsigned blocks = (unsigned)cuda_min(a.count, cuda_processors(ctx));
    CDAD_LAUNCH_SHARED(kernel, blocks, THREADS, patch_shape<BN>::BYTES, cuda_stream(ctx), a);
}

/* Whether there is code for the GPU: setup.py says so where it compiles for "90". */
static bool is_compiled(const cdad_context *ctx) {
#if defined(CDAD_CUDA_SM90A) || defined(CDAD_CUDA_ON_HOST)
    return cuda_capability(ctx) == 90;
#else
    (void)ctx;
    return false;
#endif
}

double cuda_conv_hopper_clocks(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_epilogue *with) {
    const cdad_unfold &u = *A.unfold;
    const bool bf16 = with->precision == CDAD_BFLOAT16;
    if (!is_compiled(ctx) || with->precision == CDAD_FLOAT32 || !takes(M, N, K, bf16) || u.C % channels_of(bf16) != 0 || u.R != 3 ||
        u.S != 3 || u.stride != 1 || u.pad_t != 1 || u.pad_l != 1 || u.P != u.H * u.up || u.Q != u.W * u.up || M != u.N * u.P * u.Q)
        return INFINITY;
    const double round = bf16 ? LAUNCH + (double)(6 * u.N * u.H * u.W * u.C) / MEMORY_BYTES : 0.0;
    return round + fmin(clocks_of(patches_of(u), N, K, 128, bf16), clocks_of(patches_of(u), N, K, 160, bf16));
}

void cuda_conv_hopper(const cdad_context *ctx, int64_t N, int64_t K, const cdad_mat &A, const void *image, const cdad_mat &B, float *C,
                      int64_t ldc, const cdad_epilogue *with, void *scratch) {
    const cdad_unfold &u = *A.unfold;
    const bool bf16 = with->precision == CDAD_BFLOAT16, k_rows = B.rs != 1;
    const int64_t patches = patches_of(u), pieces = N * K * element_of(bf16) / 16;
    const int BN = clocks_of(patches, N, K, 128, bf16) < clocks_of(patches, N, K, 160, bf16) ? 128 : 160;
    const auto pack = bf16 ? k_rows ? pack_kernel<true, true> : pack_kernel<false, true>
                           : k_rows ? pack_kernel<true, false> : pack_kernel<false, false>;
    CDAD_LAUNCH(pack, cuda_blocks(pieces), CUDA_THREADS, cuda_stream(ctx), (packed_piece *)scratch, B.data, (uint32_t)(k_rows ? B.rs : B.cs),
                (uint32_t)BN, (uint32_t)u.C, (uint32_t)pieces);
    patch_args a = {};
    a.x = (const unsigned char *)image;
    a.tiles = (const unsigned char *)scratch;
    a.to = cuda_conv_results(N, C, ldc, with);
    a.tiles_n = (int)(N / BN), a.count = (int)patches * a.tiles_n, a.chunks = (int)(u.C / channels_of(bf16));
    a.patches_h = (int)cuda_over(u.P, SIDE), a.patches_w = (int)cuda_over(u.Q, SIDE);
    a.C = (int)u.C, a.H = (int)u.H, a.W = (int)u.W, a.P = (int)u.P, a.Q = (int)u.Q, a.shift = u.up == 2;
    if (BN == 128)
        bf16 ? launch<128, true>(ctx, a) : launch<128, false>(ctx, a);
    else
        bf16 ? launch<160, true>(ctx, a) : launch<160, false>(ctx, a);
    cuda_launched(ctx, "gemm");
}

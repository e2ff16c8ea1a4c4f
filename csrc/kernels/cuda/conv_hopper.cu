/* Convolutions of 3 x 3 windows, a pixel apart and padded to the image's size, by compute capability 9.0's products of warpgroups, which
 * take B from shared memory. A block makes a patch of SIDE x SIDE pixels in some columns. It copies the patch with the pixels around it
 * once for all nine taps, CHANNELS channels at a time, as a tap is a matter of which pixels' rows a warp loads into registers.
 *
 * The weight is rounded and put into scratch before, in the order in which blocks read it: so many columns, then CHANNELS channels, then
 * a tap make a tile, which lies there as it will in shared memory. A ring of SLOTS slots holds tiles, two more hold the patch's channels.
 *
 * What is copied in a tile's turn is waited for at the end of the next one. A turn's products end in the next turn's first step, so that
 * slots are written two turns after they were read. */
#include "kernels/cuda/conv_tile.h"

enum {
    SIDE = 16, /* pixels of a patch: a warp has 16 rows of A, which are a row of these */
    AROUND = SIDE + 2,
    PIXELS = AROUND * AROUND,
    CHANNELS = 32,
    PIXEL_BYTES = CHANNELS * 4,
    PIECES = PIXEL_BYTES / 16,
    TAPS = 9,
    STEPS = CHANNELS / 8,
    SLOTS = 4,
    AHEAD = SLOTS - 2, /* turns */
    FACTORS = 4,       /* steps whose A a warp holds: of one that is multiplied, the one before, and two to come */
    THREADS = 256,     /* two warpgroups: 128 rows each, in two products of 64 */
    PATCH_COPIES = (PIXELS * PIECES + THREADS - 1) / THREADS, /* of a thread */
    PLACES = PATCH_COPIES * THREADS / PIECES,                 /* past the last pixel zeros are copied */
    PATCH_BYTES = PLACES * PIXEL_BYTES,
    NOWHERE = -4, /* copies want addresses that 16 divides, of zeros too */
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
        ALIGN = 1024, /* of tiles */
        BYTES = ALIGN + PLACES_AT + PLACES * 4
    };
    static_assert(BYTES <= 227 << 10 && THREADS / 32 * 16 * SLAB_RS * 4 <= PLACES_AT, "more shared memory than there is");
    static_assert(TILE_BYTES % ALIGN == 0 && TILE_BYTES % (16 * THREADS) == 0, "tiles are uneven");
};

struct patch_args {
    const float *x;
    const unsigned char *tiles;
    conv_results to;
    int tiles_n, patches_h, patches_w, chunks;
    int C, H, W, P, Q, shift; /* the image as it is read: enlarged by 1 << shift to P x Q */
};

/* Compilers of other GPUs' code know no such products: it is empty, and not launched. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(CDAD_CUDA_ON_HOST)
#define HAS_GROUPS
#endif

#ifdef HAS_GROUPS
/* Where the pixels of the patch from (top, left) on and those around it are: in floats from x on. */
__device__ static void place_pixels(int *places, const patch_args &a, int image, int top, int left) {
    for (int i = (int)threadIdx.x; i < PLACES; i += THREADS) {
        const int h = top - 1 + i / AROUND, w = left - 1 + i % AROUND;
        const bool there = i < PIXELS && (unsigned)h < (unsigned)a.P && (unsigned)w < (unsigned)a.Q;
        places[i] = there ? ((image * a.H + (h >> a.shift)) * a.W + (w >> a.shift)) * a.C : (int)NOWHERE;
    }
}

/* Queues the thread's copy number e of a patch's channels, from x on. Pieces of pixel i are in the order piece ^ i % 8, so that eight
 * neighbours' are in different banks. */
__device__ static void copy_pixels(unsigned char *patch, const float *x, const int *places, int e) {
    const unsigned i = (threadIdx.x + (unsigned)e * THREADS) / PIECES, piece = threadIdx.x % PIECES;
    const int from = places[i];
    cuda_copy_async(patch + i * PIXEL_BYTES + (piece ^ i % PIECES) * 16, x + from + 4 * (int)piece, from >= 0);
}

/* Of a tile. */
__device__ static void copy_weights(unsigned char *slot, const unsigned char *tile, int e, bool there) {
    const int at = ((int)threadIdx.x + e * THREADS) * 16;
    cuda_copy_async(slot + at, tile + at, there);
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

struct __align__(8) two {
    float low, high;
};

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

/* Results of a patch in BN columns. */
template <int BN> __global__ static void __launch_bounds__(THREADS, 1) patch_kernel(patch_args a) {
#ifdef HAS_GROUPS
    typedef patch_shape<BN> T;
    CUDA_SHARED(unaligned);
    unsigned char *shared = unaligned + (0u - cuda_shared_address(unaligned)) % T::ALIGN;
    int *places = (int *)(shared + T::PLACES_AT);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    /* Blocks that work at the same time are of the same patches: these are read from memory once. */
    const int tile_n = (int)(blockIdx.x % (unsigned)a.tiles_n), patch = (int)(blockIdx.x / (unsigned)a.tiles_n);
    const int left = patch % a.patches_w * SIDE, top = patch / a.patches_w % a.patches_h * SIDE, image = patch / a.patches_w / a.patches_h;
    const int turns = a.chunks * TAPS;
    const unsigned char *tile = a.tiles + (int64_t)tile_n * turns * T::TILE_BYTES; /* to copy next */
    float c[2][T::TN][4];
    uint32_t f[FACTORS][2][4];
    CUDA_UNROLL
    for (int i = 0; i < 2; i++)
        CUDA_UNROLL
        for (int j = 0; j < T::TN; j++)
            CUDA_UNROLL
            for (int l = 0; l < 4; l++)
                c[i][j][l] = 0.0f;

    place_pixels(places, a, image, top, left);
    CUDA_UNROLL
    for (int i = 0; i < AHEAD; i++) {
        CUDA_UNROLL
        for (int e = 0; e < T::TILE_COPIES; e++)
            copy_weights(shared + i * T::TILE_BYTES, tile, e, true);
        if (i == 0) {
            __syncthreads(); /* places are there */
            CUDA_UNROLL
            for (int e = 0; e < PATCH_COPIES; e++)
                copy_pixels(shared + T::PATCHES_AT, a.x, places, e);
        }
        cuda_copies_close();
        tile += T::TILE_BYTES;
    }
    cuda_copies_wait<AHEAD - 1>();
    cuda_show_groups();
    __syncthreads();

    const int row = warp / 4 * (SIDE / 2) + warp % 4, first = row * AROUND + lane % 16;
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
            for (int i = 0; i < 2; i++)
                CUDA_UNROLL
                for (int l = 0; l < 4; l++)
                    now[i][l] = cuda_raised(now[i][l]);
            cuda_group_fence(now[0], now[1]);
            CUDA_UNROLL
            for (int i = 0; i < 2; i++)
                cuda_group_mma_tf32<BN>(c[i], now[i], cuda_tile_step(b, step));
            cuda_group_close();
            /* Past the end zeros are copied, so that groups of copies behind the one waited for are always as many. */
            CUDA_UNROLL
            for (int e = step; e < T::TILE_COPIES && step < COPY_STEPS; e += COPY_STEPS)
                copy_weights(slot, tile, e, turn + AHEAD < turns);
            if (step < COPY_STEPS && COPY_STEPS * tap + step < PATCH_COPIES && chunk + 1 < a.chunks)
                copy_pixels(other, a.x + (chunk + 1) * CHANNELS, places, COPY_STEPS * tap + step);
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
    __syncthreads(); /* shared memory is read no more */
    const auto row_of = [&](int i, int pixel) {
        const int h = top + row + 4 * i, w = left + pixel;
        return h < a.P && w < a.Q ? (image * a.P + h) * a.Q + w : -1;
    };
    conv_results to = a.to;
    if (to.quads && to.with.sum) {
        CUDA_UNROLL
        for (int i = 0; i < 2; i++) {
            const int m[2] = {row_of(i, lane / 4), row_of(i, lane / 4 + 8)};
            add_sums<T::TN>(c[i], to, m, tile_n * BN);
        }
        to.with.sum = NULL;
    }
    cuda_conv_put<T>(to, tile_n * BN, c, (float *)shared + warp * 16 * T::SLAB_RS, row_of);
#else
    (void)a;
#endif
}

struct __align__(16) packed_piece {
    uint32_t of[4];
};

/* to: the weight b in tiles of BN columns, rounded to TF32. K_ROWS: b's rows are contiguous, else its columns; b_rs apart. */
template <bool K_ROWS> __global__ static void pack_kernel(packed_piece *to, const float *b, uint32_t b_rs, uint32_t BN, uint32_t C, uint32_t pieces) {
    CUDA_EACH_OF(uint32_t, i, pieces) {
        const uint32_t eight = i / 64, row = K_ROWS ? i % 8 : i / 8 % 8, piece = K_ROWS ? i / 8 % 8 : i % 8;
        const uint32_t tile = eight / (BN / 8), tap = tile % TAPS, chunk = tile / TAPS % (C / CHANNELS);
        const uint32_t n = tile / TAPS / (C / CHANNELS) * BN + eight % (BN / 8) * 8 + row, k = tap * C + chunk * CHANNELS + 4 * piece;
        float4 x;
        if (K_ROWS)
            x = {b[k * b_rs + n], b[(k + 1) * b_rs + n], b[(k + 2) * b_rs + n], b[(k + 3) * b_rs + n]};
        else
            x = *(const float4 *)(b + n * b_rs + k);
        to[eight * 64 + row * 8 + (piece ^ row)] = {{cuda_tf32(x.x), cuda_tf32(x.y), cuda_tf32(x.z), cuda_tf32(x.w)}};
    }
}

#ifdef CDAD_CUDA_ON_HOST
enum { PRODUCTS = 1 << 20, START = 0, LEAST_BLOCKS = 1 }; /* so that small tests come here */
#else
enum { PRODUCTS = 800, START = 6000, LEAST_BLOCKS = 64 }; /* PRODUCTS: of a multiprocessor in a clock; START: clocks of a block without */
#endif

/* Fewer blocks leave most of the GPU idle. */
static bool takes(int64_t M, int64_t N, int64_t K) {
    return (N % 128 == 0 || N % 160 == 0) && K % (TAPS * CHANNELS) == 0 && cuda_over(M, SIDE * SIDE) * cuda_over(N, 160) >= LEAST_BLOCKS;
}

int64_t cuda_conv_hopper_scratch(int64_t M, int64_t N, int64_t K) { return takes(M, N, K) ? N * K * (int64_t)sizeof(float) : 0; }

/* About the clocks that it takes, as conv.cu counts them; infinite where columns are no multiple of BN. */
static double clocks_of(int64_t patches, int64_t N, int64_t K, int64_t BN) {
    const double memory_bytes = 19 * CUDA_CONV_PROCESSORS, launch = 4000;
    const int64_t most = cuda_over(patches * (N / BN), CUDA_CONV_PROCESSORS);
    const double each = (double)(SIDE * SIDE * BN * K) / PRODUCTS + START;
    return N % BN == 0 ? (double)most * each + launch + (double)(8 * N * K) / memory_bytes : INFINITY;
}

template <int BN> static void launch(const cdad_context *ctx, const patch_args &a, int64_t patches) {
    CDAD_LAUNCH_SHARED(patch_kernel<BN>, (unsigned)(patches * a.tiles_n), THREADS, patch_shape<BN>::BYTES, cuda_stream(ctx), a);
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

bool cuda_conv_hopper(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, float *C, int64_t ldc,
                      const cdad_epilogue *with, void *scratch, double clocks) {
    const cdad_unfold &u = *A.unfold;
    if (!is_compiled(ctx) || with->precision != CDAD_TFLOAT32 || !takes(M, N, K) || u.C % CHANNELS != 0 || u.R != 3 || u.S != 3 ||
        u.stride != 1 || u.pad_t != 1 || u.pad_l != 1 || u.P != u.H * u.up || u.Q != u.W * u.up || M != u.N * u.P * u.Q)
        return false;
    const int64_t patches_h = cuda_over(u.P, SIDE), patches_w = cuda_over(u.Q, SIDE), patches = u.N * patches_h * patches_w;
    const double narrow = clocks_of(patches, N, K, 128), wide = clocks_of(patches, N, K, 160);
    const int BN = narrow < wide ? 128 : 160;
    if (!(narrow < clocks || wide < clocks))
        return false;
    const bool k_rows = B.rs != 1;
    const auto pack = k_rows ? pack_kernel<true> : pack_kernel<false>;
    CDAD_LAUNCH(pack, cuda_blocks(N * K / 4), CUDA_THREADS, cuda_stream(ctx), (packed_piece *)scratch, B.data, (uint32_t)(k_rows ? B.rs : B.cs),
                (uint32_t)BN, (uint32_t)u.C, (uint32_t)(N * K / 4));
    patch_args a = {};
    a.x = A.data;
    a.tiles = (const unsigned char *)scratch;
    a.to = cuda_conv_results(N, C, ldc, with);
    a.tiles_n = (int)(N / BN), a.patches_h = (int)patches_h, a.patches_w = (int)patches_w, a.chunks = (int)(u.C / CHANNELS);
    a.C = (int)u.C, a.H = (int)u.H, a.W = (int)u.W, a.P = (int)u.P, a.Q = (int)u.Q, a.shift = u.up == 2;
    if (BN == 128)
        launch<128>(ctx, a, patches);
    else
        launch<160>(ctx, a, patches);
    cuda_launched(ctx, "gemm");
    return true;
}

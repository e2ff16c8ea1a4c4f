/* Products in whole numbers of 16 bits. */
#include "kernels/cpu/gemm_shorts.h"

#include "kernels/cpu/dither.h"

#if SHORTS_PAY
enum {
    HIGH = 6,   /* rows of a panel of A, */
    WIDE = 16,  /* columns of one of B */
    PAIR = 2,   /* steps of k that lie together: element (lane, k) is values[k / PAIR * PAIR * lanes + lane * PAIR + k % PAIR] */
    TILE_M = 96,
    TILE_N = 128, /* panels of A for a tile and the tile fit into the second-level cache, one of B into the first */
    A_LANES = 1 << 24 /* lanes of A are rounded as if they were this much further: not as those of B */
};
_Static_assert(TILE_M % HIGH == 0 && TILE_N % WIDE == 0 && SHORTS_KC % VL == 0 && WIDE == 2 * VL, "panels fit");

/* 46340^2 is just below 2^31; rounding makes a length longer by up to sqrt(SHORTS_KC). */
static const float LENGTH = 46300, LARGEST = 32766;

typedef struct {
    float step[VL];
    int16_t values[SHORTS_KC * HIGH];
} a_panel;
typedef struct {
    float step[WIDE];
    int16_t values[SHORTS_KC * WIDE];
} b_panel;

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t over(int64_t n, int64_t by) { return (n + by - 1) / by; }
static inline int64_t a_bytes(int64_t M) { return (over(M, HIGH) * (int64_t)sizeof(a_panel) + 63) / 64 * 64; }
static inline int64_t block_bytes(int64_t M, int64_t N) { return a_bytes(M) + over(N, WIDE) * (int64_t)sizeof(b_panel); }
static inline a_panel *a_of(const void *panels, int64_t M, int64_t N, int64_t block) {
    return (a_panel *)((uintptr_t)panels + (uintptr_t)(block * block_bytes(M, N)));
}
static inline b_panel *b_of(const void *panels, int64_t M, int64_t N, int64_t block) {
    return (b_panel *)((uintptr_t)a_of(panels, M, N, block) + (uintptr_t)a_bytes(M));
}

int64_t CDAD_K(shorts_panels)(int64_t M, int64_t N, int64_t K) { return over(K, SHORTS_KC) * block_bytes(M, N); }

/* ---- packing ---- */

typedef struct {
    a_panel *a;
    b_panel *b;
    const float *A, *B;
    int64_t M, N, k, kc;
    uint32_t seed;
} pack_job;

/* 1 / most, or 0 of what is as good as nothing. Squares are summed of values times it, as they might be beyond the range of floats. */
static inline vf inverse_of(vf most) {
    const vi counts = most > 1e-30f;
    return v_select(counts, 1 / v_select(counts, most, v_set1(1)), (vf){0});
}

/* Of lanes with these largest values and sums of such squares: what values, times inverse_of(most), are multiplied by to be rounded. *step:
 * what one of the whole numbers stands for. */
static inline vf scale_of(vf squares, vf most, vf *step) {
    const vf unit = v_max((vf)_mm256_sqrt_ps((__m256)squares) * (1 / LENGTH), v_set1(1 / LARGEST));
    *step = most * unit;
    return 1 / unit;
}

static inline __m256i rounded(vf x, vu place) { return _mm256_cvtps_epi32(_mm256_floor_ps((__m256)(x + dither(place)))); }

static void pack_a(void *arg, int64_t p, int worker) {
    const pack_job *job = arg;
    a_panel *panel = job->a + p;
    (void)worker;
    memset(panel, 0, sizeof *panel);
    for (int64_t l = 0; l < min_i(HIGH, job->M - p * HIGH); l++) {
        const float *x = job->A + (p * HIGH + l) * job->kc;
        vf squares = {0}, most = {0}, step;
        for (int64_t k = 0; k < job->kc; k += VL) {
            const vf v = v_load_n(x + k, min_i(VL, job->kc - k));
            most = v_max(most, v_max(v, -v));
        }
        for (int i = 1; i < VL; i++)
            most[0] = most[i] > most[0] ? most[i] : most[0];
        most = v_set1(most[0]);
        const vf inverse = inverse_of(most);
        for (int64_t k = 0; k < job->kc; k += VL) {
            const vf v = v_load_n(x + k, min_i(VL, job->kc - k)) * inverse;
            squares += v * v;
        }
        const vf scale = scale_of(v_set1(v_sum(squares)), most, &step);
        panel->step[l] = step[0];
        const uint32_t lane = (uint32_t)(A_LANES + p * HIGH + l) * 0x9e3779b9u + job->seed;
        for (int64_t k = 0; k < job->kc; k += VL) {
            vu place;
            int32_t whole[VL];
            for (int i = 0; i < VL; i++)
                place[i] = lane + (uint32_t)(job->k + k + i) * DITHER_ROW;
            _mm256_storeu_si256((__m256i *)(void *)whole, rounded(v_load_n(x + k, min_i(VL, job->kc - k)) * inverse * scale, place));
            for (int i = 0; i < min_i(VL, job->kc - k); i++)
                panel->values[(k + i) / PAIR * PAIR * HIGH + l * PAIR + i % PAIR] = (int16_t)whole[i];
        }
    }
}

static void pack_b(void *arg, int64_t p, int worker) {
    const pack_job *job = arg;
    b_panel *panel = job->b + p;
    const int64_t first = p * WIDE;
    (void)worker;
    for (int h = 0; h < WIDE / VL; h++) {
        const int64_t at = first + h * VL, n = job->N - at < 0 ? 0 : min_i(VL, job->N - at);
        const vu lanes = dither_lanes((uint32_t)at) + job->seed;
        vf squares = {0}, most = {0}, step;
        for (int64_t k = 0; k < job->kc; k++) {
            const vf v = v_load_n(job->B + k * job->N + at, n);
            most = v_max(most, v_max(v, -v));
        }
        const vf inverse = inverse_of(most);
        for (int64_t k = 0; k < job->kc; k++) {
            const vf v = v_load_n(job->B + k * job->N + at, n) * inverse;
            squares += v * v;
        }
        const vf scale = scale_of(squares, most, &step);
        v_store(panel->step + h * VL, step);
        for (int64_t k = 0; k < job->kc; k += PAIR) {
            const vu place = lanes + (uint32_t)(job->k + k) * DITHER_ROW;
            const __m256i low = rounded(v_load_n(job->B + k * job->N + at, n) * inverse * scale, place);
            const __m256i high = k + 1 < job->kc ? rounded(v_load_n(job->B + (k + 1) * job->N + at, n) * inverse * scale, place + DITHER_ROW)
                                                 : _mm256_setzero_si256();
            _mm256_storeu_si256((__m256i *)(void *)(panel->values + k * WIDE + h * VL * PAIR),
                                _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa));
        }
    }
}

void CDAD_K(shorts_pack)(const cdad_context *ctx, void *panels, const float *A, const float *B, int64_t M, int64_t N, int64_t k, int64_t kc,
                         uint32_t seed) {
    pack_job job = {.a = a_of(panels, M, N, k / SHORTS_KC), .b = b_of(panels, M, N, k / SHORTS_KC), .A = A, .B = B, .M = M, .N = N,
                    .k = k, .kc = kc, .seed = seed};
    cdad_pool_run(ctx->pool, over(M, HIGH), pack_a, &job);
    cdad_pool_run(ctx->pool, over(N, WIDE), pack_b, &job);
}

/* ---- products ---- */

/* C [HIGH,WIDE], rows TILE_N apart, = (`add`: +=) the products of the first kc steps of two panels. */
static void multiply(const a_panel *a, const b_panel *b, int64_t kc, float *C, int add) {
    const int16_t *at = a->values, *bt = b->values;
    __m256i sum[HIGH][2];
    V_UNROLL
    for (int l = 0; l < HIGH; l++)
        sum[l][0] = sum[l][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < kc; k += PAIR, at += PAIR * HIGH, bt += PAIR * WIDE) {
        __m256i b0 = _mm256_loadu_si256((const __m256i *)(const void *)bt);
        __m256i b1 = _mm256_loadu_si256((const __m256i *)(const void *)(bt + PAIR * VL));
        V_UNROLL
        for (int l = 0; l < HIGH; l++) {
            int32_t pair;
            memcpy(&pair, at + l * PAIR, sizeof pair);
            const __m256i x = _mm256_set1_epi32(pair);
            sum[l][0] = _mm256_add_epi32(sum[l][0], _mm256_madd_epi16(x, b0));
            sum[l][1] = _mm256_add_epi32(sum[l][1], _mm256_madd_epi16(x, b1));
            /* No code, but one row after the other: GCC else begins them all at once, and runs out of registers. */
            __asm__("" : "+x"(sum[l][0]), "+x"(sum[l][1]), "+x"(b0), "+x"(b1));
        }
    }
    V_UNROLL
    for (int l = 0; l < HIGH; l++)
        for (int h = 0; h < 2; h++) {
            /* in this order: the product of two steps may be too small for a float */
            const vf c = __builtin_convertvector((vi)sum[l][h], vf) * a->step[l] * v_load(b->step + h * VL);
            float *to = C + l * TILE_N + h * VL;
            v_store(to, add ? v_load(to) + c : c);
        }
}

typedef struct {
    float *C;
    const void *panels;
    int64_t M, N, K;
} add_job;

static void add_tile(void *arg, int64_t task, int worker) {
    const add_job *job = arg;
    const int64_t M = job->M, N = job->N, tiles = over(M, TILE_M), i0 = task % tiles * TILE_M, j0 = task / tiles * TILE_N;
    const int64_t i1 = min_i(i0 + TILE_M, M), j1 = min_i(j0 + TILE_N, N);
    float tile[TILE_M * TILE_N] __attribute__((aligned(CDAD_VBYTES)));
    (void)worker;
    for (int64_t k = 0; k < job->K; k += SHORTS_KC)
        for (int64_t j = j0; j < j1; j += WIDE)
            for (int64_t i = i0; i < i1; i += HIGH)
                multiply(a_of(job->panels, M, N, k / SHORTS_KC) + i / HIGH, b_of(job->panels, M, N, k / SHORTS_KC) + j / WIDE,
                         min_i(SHORTS_KC, job->K - k), tile + (i - i0) * TILE_N + (j - j0), k > 0);
    for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < j1; j++)
            job->C[i * N + j] += tile[(i - i0) * TILE_N + (j - j0)];
}

void CDAD_K(shorts_add)(const cdad_context *ctx, float *C, const void *panels, int64_t M, int64_t N, int64_t K) {
    add_job job = {.C = C, .panels = panels, .M = M, .N = N, .K = K};
    cdad_pool_run(ctx->pool, over(M, TILE_M) * over(N, TILE_N), add_tile, &job);
}
#endif

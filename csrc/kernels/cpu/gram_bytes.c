/* Products of a matrix with itself in whole numbers of 7 bits, which AVX2 multiplies four at a time.
 *
 * Each column has a step for every KC rows, a 63rd of its largest value there, and a value is rounded to one of the two steps
 * about it at random (dither.h). In the product of a column with itself errors would add up, but its squares are summed in float32 as
 * they are. */
#include "kernels/cpu/backend.h"
#include "kernels/cpu/dither.h"
#include "kernels/cpu/gemm.h"

#if CDAD_VBYTES == 32
enum {
    LANES = 16, /* columns of a panel */
    HIGH = 4,   /* of them that a tile multiplies at once with all of another */
    KC = 2 * GEMM_KC, /* rows of one step */
    GROUP = 4,  /* rows that lie together: element (lane, row) is panel[row / GROUP * GROUP * LANES + lane * GROUP + row % GROUP] */
    STEPS = 63, /* products of four, the one factor's offset by OFFSET, are within 16 bits */
    OFFSET = 64
};
_Static_assert(GEMM_NR == LANES && KC % (2 * GROUP) == 0 && CDAD_GRAM_SIDE % LANES == 0, "panels fit");
_Static_assert(4 * STEPS * (STEPS + OFFSET) <= INT16_MAX, "four products fit");

/* Of the energy, what rounding may be: more, where few rows are far larger than the others, are left to float32. */
static const double COARSEST = 6e-4;

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t panels_of(int64_t d) { return (d + LANES - 1) / LANES; }

/* What of all rows there is for each panel, after which come the blocks of KC rows. */
typedef struct {
    double squares[LANES], noise;
    double unused[7]; /* panels begin with lines of the cache */
} panel_head;
typedef struct {
    float step[LANES];
    int32_t sum[LANES]; /* of the whole numbers */
    int8_t values[KC * LANES];
} panel_block;

static inline panel_head *head_of(float *panels, int64_t p) { return (panel_head *)(void *)panels + p; }
static inline panel_block *block_of(float *panels, int64_t d, int64_t block, int64_t p) {
    return (panel_block *)(void *)head_of(panels, panels_of(d)) + block * panels_of(d) + p;
}

int64_t CDAD_K(gram_bytes_panels)(int64_t rows, int64_t d) {
    const int64_t blocks = (rows + KC - 1) / KC;
    return panels_of(d) * ((int64_t)sizeof(panel_head) + blocks * (int64_t)sizeof(panel_block));
}

typedef struct {
    float *panels;
    cdad_mat X;
    int64_t first, rows, d;
    uint32_t seed;
} pack_job;

static void pack_block(const pack_job *job, int64_t p, int64_t k, panel_head *head, panel_block *block) {
    enum { HALVES = 2 };
    const int64_t kc = min_i(KC, job->rows - k), column = p * LANES;
    float plain[KC * LANES];
    for (int64_t r = 0; r < kc; r += GEMM_KC)
        CDAD_K(gemm_panel)(GEMM_FLOATS, 0, plain + r * LANES, &job->X, column, min_i(LANES, job->d - column), job->first + k + r,
                           min_i(GEMM_KC, kc - r));
    memset(plain + kc * LANES, 0, (size_t)((KC - kc) * LANES) * sizeof *plain);
    for (int h = 0; h < HALVES; h++) {
        const vu lanes = dither_lanes((uint32_t)(column + h * VL)) + job->seed;
        vf most = {0}, squares = {0}, noise = {0}, inverse, step;
        vi sum = {0};
        for (int64_t r = 0; r < kc; r++) {
            const vf x = v_load(plain + r * LANES + h * VL);
            most = v_max(most, v_max(x, -x));
            squares += x * x;
        }
        const vi counts = most > 1e-30f; /* what is less is all noise */
        step = v_select(counts, most * (1.0f / STEPS), (vf){0});
        inverse = v_select(counts, STEPS / v_select(counts, most, v_set1(1)), (vf){0});
        for (int64_t r = 0; r < KC; r += GROUP) {
            vu word = {0};
            for (int64_t i = 0; i < GROUP; i++) {
                const vf x = v_load(plain + (r + i) * LANES + h * VL) * inverse;
                const vu place = lanes + (uint32_t)(job->first + k + r + i) * (uint32_t)DITHER_ROW;
                const vf up = x + (dither(place) + (STEPS + 1)); /* of 16 bits, the sum is exact */
                const vi q = __builtin_convertvector(v_min(v_max(up, v_set1(1)), v_set1(2 * STEPS + 1)), vi) - (STEPS + 1);
                const vf off = __builtin_convertvector(q, vf) - x;
                noise += off * off;
                sum += q;
                word |= ((vu)q & 0xff) << (uint32_t)(8 * i);
            }
            memcpy(block->values + (r * LANES + h * VL * GROUP), &word, sizeof word);
        }
        noise = v_select(counts, noise * step * step, squares);
        v_store(block->step + h * VL, step);
        memcpy(block->sum + h * VL, &sum, sizeof sum);
        for (int64_t i = 0; i < VL; i++) {
            head->squares[h * VL + i] += (double)squares[i];
            head->noise += (double)noise[i];
        }
    }
}

static void pack_panel(void *arg, int64_t p, int worker) {
    const pack_job *job = arg;
    panel_head *head = head_of(job->panels, p);
    (void)worker;
    *head = (panel_head){0};
    for (int64_t k = 0; k < job->rows; k += KC)
        pack_block(job, p, k, head, block_of(job->panels, job->d, k / KC, p));
}

int CDAD_K(gram_bytes_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, uint32_t seed) {
    pack_job job = {.panels = panels, .X = X, .first = first, .rows = rows, .d = d, .seed = seed};
    double squares = 0, noise = 0;
    cdad_pool_run(ctx->pool, panels_of(d), pack_panel, &job);
    for (int64_t p = 0; p < panels_of(d); p++) {
        const panel_head *head = head_of(panels, p);
        noise += head->noise;
        for (int i = 0; i < LANES; i++)
            squares += head->squares[i];
    }
    return noise <= COARSEST * squares;
}

static inline __m256i load(const int8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
static inline __m256i everywhere(const int8_t *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return _mm256_set1_epi32(group);
}

/* C [HIGH,LANES] of leading dimension ldc: products of HIGH lanes of `a`, from lane i on, with those of b; + C where `add`. */
static void multiply(const panel_block *a, int64_t i, const panel_block *b, int64_t rows, float *C, int64_t ldc, int add) {
    const __m256i offset = _mm256_set1_epi8(OFFSET), ones = _mm256_set1_epi16(1);
    const int8_t *at = a->values + i * GROUP, *bt = b->values;
    __m256i sum[HIGH][2];
    V_UNROLL
    for (int l = 0; l < HIGH; l++)
        sum[l][0] = sum[l][1] = _mm256_setzero_si256();
    for (int64_t r = 0; r < rows; r += 2 * GROUP, at += 2 * GROUP * LANES, bt += 2 * GROUP * LANES) {
        const __m256i b00 = _mm256_add_epi8(load(bt), offset), b01 = _mm256_add_epi8(load(bt + 32), offset);
        const __m256i b10 = _mm256_add_epi8(load(bt + 64), offset), b11 = _mm256_add_epi8(load(bt + 96), offset);
        V_UNROLL
        for (int l = 0; l < HIGH; l++) {
            const __m256i a0 = everywhere(at + l * GROUP), a1 = everywhere(at + GROUP * LANES + l * GROUP);
            const __m256i left = _mm256_add_epi16(_mm256_maddubs_epi16(b00, a0), _mm256_maddubs_epi16(b10, a1));
            const __m256i right = _mm256_add_epi16(_mm256_maddubs_epi16(b01, a0), _mm256_maddubs_epi16(b11, a1));
            sum[l][0] = _mm256_add_epi32(sum[l][0], _mm256_madd_epi16(left, ones));
            sum[l][1] = _mm256_add_epi32(sum[l][1], _mm256_madd_epi16(right, ones));
        }
    }
    V_UNROLL
    for (int l = 0; l < HIGH; l++)
        for (int h = 0; h < 2; h++) {
            const vi whole = (vi)sum[l][h] - OFFSET * a->sum[i + l];
            const vf c = __builtin_convertvector(whole, vf) * (a->step[i + l] * v_load(b->step + h * VL));
            float *to = C + l * ldc + h * VL;
            v_store(to, add ? v_load(to) + c : c);
        }
}

void CDAD_K(gram_bytes_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0, int64_t side,
                             float *scratch) {
    float *const from = (float *)(uintptr_t)panels;
    const int64_t i1 = min_i(i0 + side, d), j1 = min_i(j0 + side, d);
    for (int64_t k = 0; k < rows; k += KC) {
        const int64_t deep = (min_i(KC, rows - k) + 2 * GROUP - 1) / (2 * GROUP) * (2 * GROUP);
        for (int64_t j = j0; j < j1; j += LANES)
            for (int64_t i = i0; i < i1 && i < j + LANES; i += HIGH)
                multiply(block_of(from, d, k / KC, i / LANES), i % LANES, block_of(from, d, k / KC, j / LANES), deep,
                         scratch + (i - i0) * side + (j - j0), side, k > 0);
    }
    for (int64_t i = i0; i < i1; i++) {
        double *g = G + (i - i0) * ldg - j0;
        const float *c = scratch + (i - i0) * side - j0;
        if (i >= j0 && i < j1)
            g[i] += head_of(from, i / LANES)->squares[i % LANES];
        for (int64_t j = i >= j0 ? i + 1 : j0; j < j1; j++)
            g[j] += (double)c[j];
    }
}
#endif

/* Convolution of few channels, straight from the image: where unfolding would cost as much as the products.
 *
 * Lanes are output channels. A tile is a run of pixels of one row of y, its sums held in registers; each element that
 * the pixels read is broadcast, times the vector of its weights. In an image of channels last, a kernel row reads one
 * run of S*C floats, a pixel's run `stride` pixels after the one before. Rows outside of the image are left out; tiles
 * that reach past its left or right edge read a copy with zeros around it.
 *
 * Where outputs are so few that most lanes would be empty, lanes are what a pixel reads of a row instead: whole vectors of its run,
 * zeros beyond its end, times those of each output's weights, added up at the end.
 *
 * A pixel is one chain of multiply-adds, the bias first, then in the order of (r, s, c), or one such chain a lane, these then added in
 * one order: its bits do not depend on the tile that it is in. */
#include <stddef.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    SERIAL_PRODUCTS = 1 << 19,          /* fewer multiply-adds are not worth waking threads for */
    TRIPLE = 3,                         /* pixels by one pointer: a load adds 0, 1 or 2 steps to it for nothing */
    LEVELS = CDAD_VBYTES == 64 ? 4 : 3, /* tiles are 1, 2, 4, .. triples long; of two vectors, all but the longest */
    FEW = 4,                            /* outputs for which lanes may be what is read */
    FEW_SUMS = CDAD_VBYTES == 64 ? 24 : 12, /* that such a tile holds in registers */
    ADDING = 8,                         /* instructions that adding a vector's lanes up is like */
};

typedef struct narrow_job {
    cdad_unfold u;
    const float *x;
    cdad_pixels y;
    int64_t O, blocks;    /* blocks of GEMM_NR output channels */
    int few;              /* lanes are what is read */
    const float *weights; /* [block][r, s, c][GEMM_NR]; few: [r][O][padded] */
    int64_t padded;       /* few: a row's run, in whole vectors */
    const float *bias;    /* [block][GEMM_NR] */
    cdad_epilogue with;
    float *patches;       /* one for each worker */
    int64_t patch_size;   /* floats */
    int64_t longest;      /* level of the longest tile of the widest block */
} narrow_job;

/* What a tile reads and writes. */
typedef struct narrow_tile {
    const float *x;    /* of the first pixel */
    int64_t rows, row; /* kernel rows inside of the image, floats from one to the next */
    int64_t run, step; /* floats that a pixel reads of a row, floats from pixel to pixel */
    const float *w, *bias;
    float *y;
    int64_t pixel;     /* floats from pixel to pixel of y */
} narrow_tile;

typedef void (*tile_fn)(const narrow_tile *t);

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t bytes_of(int64_t floats) { return cdad_align_up(floats * (int64_t)sizeof(float)); }

/* TRIPLE * triples pixels of `vectors` vectors of channels. */
INLINE void sum_tile(int triples, int vectors, const narrow_tile *t) {
    const int64_t step = t->step;
    const float *w = t->w;
    vf acc[1 << (LEVELS - 1)][TRIPLE][2];
    V_UNROLL for (int a = 0; a < triples; a++) {
        V_UNROLL for (int i = 0; i < TRIPLE; i++) {
            V_UNROLL for (int v = 0; v < vectors; v++)
                acc[a][i][v] = v_load(t->bias + v * VL);
        }
    }
    for (int64_t r = 0; r < t->rows; r++) {
        const float *x[1 << (LEVELS - 1)];
        V_UNROLL for (int a = 0; a < triples; a++)
            x[a] = t->x + r * t->row + TRIPLE * a * step;
        for (const float *end = w + t->run * GEMM_NR; w < end; w += GEMM_NR) {
            vf wv[2];
            V_UNROLL for (int v = 0; v < vectors; v++)
                wv[v] = v_load(w + v * VL);
            V_UNROLL for (int a = 0; a < triples; a++) {
                V_UNROLL for (int i = 0; i < TRIPLE; i++) {
                    const vf xv = v_set1(x[a][i * step]);
                    V_UNROLL for (int v = 0; v < vectors; v++)
                        acc[a][i][v] += xv * wv[v];
                }
                x[a]++;
            }
        }
    }
    float *y = t->y;
    const int64_t pixel = t->pixel;
    V_UNROLL for (int a = 0; a < triples; a++) {
        V_UNROLL for (int i = 0; i < TRIPLE; i++) {
            V_UNROLL for (int v = 0; v < vectors; v++)
                v_store(y + (TRIPLE * a + i) * pixel + v * VL, acc[a][i][v]);
        }
    }
}

typedef vf few_sums[1 << (LEVELS - 1)][TRIPLE][FEW];

/* Adds what n <= VL floats from x on give of pixels `step` apart. */
INLINE void add_few(int triples, int O, few_sums acc, const float *x, int64_t step, int64_t n, const float *w, int64_t padded) {
    vf wv[FEW];
    V_UNROLL for (int o = 0; o < O; o++)
        wv[o] = v_load(w + o * padded);
    V_UNROLL for (int a = 0; a < triples; a++) {
        V_UNROLL for (int i = 0; i < TRIPLE; i++) {
            const float *from = x + (TRIPLE * a + i) * step;
            const vf xv = n == VL ? v_load(from) : v_load_n(from, n);
            V_UNROLL for (int o = 0; o < O; o++)
                acc[a][i][o] += xv * wv[o];
        }
    }
}

/* TRIPLE * triples pixels of O outputs, lanes being what is read. */
INLINE void sum_few(int triples, int O, const narrow_tile *t) {
    const int64_t whole = t->run / VL * VL, rest = t->run - whole, padded = whole + (rest ? VL : 0);
    const float *w = t->w, *x = t->x;
    few_sums acc;
    V_UNROLL for (int a = 0; a < triples; a++) {
        V_UNROLL for (int i = 0; i < TRIPLE; i++) {
            V_UNROLL for (int o = 0; o < O; o++)
                acc[a][i][o] = (vf){0};
        }
    }
    for (int64_t r = 0; r < t->rows; r++, x += t->row, w += O * padded) {
        for (int64_t k = 0; k < whole; k += VL)
            add_few(triples, O, acc, x + k, t->step, VL, w + k, padded);
        if (rest)
            add_few(triples, O, acc, x + whole, t->step, rest, w + whole, padded);
    }
    V_UNROLL for (int a = 0; a < triples; a++) {
        V_UNROLL for (int i = 0; i < TRIPLE; i++) {
            V_UNROLL for (int o = 0; o < O; o++)
                t->y[(TRIPLE * a + i) * t->pixel + o] = t->bias[o] + v_sum(acc[a][i][o]);
        }
    }
}

#define DEFINE_FEW(triples, O) \
    static void few_##triples##x##O(const narrow_tile *t) { sum_few(triples, O, t); }
DEFINE_FEW(1, 1)
DEFINE_FEW(1, 2)
DEFINE_FEW(1, 3)
DEFINE_FEW(1, 4)
DEFINE_FEW(2, 1)
DEFINE_FEW(2, 2)
DEFINE_FEW(4, 1)
#if CDAD_VBYTES == 64
DEFINE_FEW(2, 3)
DEFINE_FEW(2, 4)
DEFINE_FEW(4, 2)
DEFINE_FEW(8, 1)
#endif

static const tile_fn few_tiles[LEVELS][FEW] = {
    {few_1x1, few_1x2, few_1x3, few_1x4},
#if CDAD_VBYTES == 64
    {few_2x1, few_2x2, few_2x3, few_2x4},
    {few_4x1, few_4x2, NULL, NULL},
    {few_8x1, NULL, NULL, NULL},
#else
    {few_2x1, few_2x2, NULL, NULL},
    {few_4x1, NULL, NULL, NULL},
#endif
};

#define DEFINE_TILE(triples, vectors) \
    static void tile_##triples##x##vectors(const narrow_tile *t) { sum_tile(triples, vectors, t); }
DEFINE_TILE(1, 1)
DEFINE_TILE(1, 2)
DEFINE_TILE(2, 1)
DEFINE_TILE(2, 2)
DEFINE_TILE(4, 1)
#if CDAD_VBYTES == 64
DEFINE_TILE(4, 2)
DEFINE_TILE(8, 1)
#endif

static const tile_fn tiles[LEVELS][2] = {
    {tile_1x1, tile_1x2},
    {tile_2x1, tile_2x2},
#if CDAD_VBYTES == 64
    {tile_4x1, tile_4x2},
    {tile_8x1, NULL},
#else
    {tile_4x1, NULL},
#endif
};

/* Lets the tile read a copy of `width` pixels from column `left` of the image on, with zeros outside of it. */
static void read_padded(narrow_tile *t, const narrow_job *j, const float *row, int64_t left, int64_t width,
                        float *patch) {
    const int64_t C = j->u.C, from = min_i(width, max_i(0, -left)), to = max_i(from, min_i(width, j->u.W - left));
    for (int64_t r = 0; r < t->rows; r++, row += t->row) {
        float *copy = patch + r * width * C;
        memset(copy, 0, (size_t)(from * C) * sizeof *copy);
        memcpy(copy + from * C, row + (left + from) * C, (size_t)((to - from) * C) * sizeof *copy);
        memset(copy + to * C, 0, (size_t)((width - to) * C) * sizeof *copy);
    }
    t->x = patch;
    t->row = width * C;
}

/* Task: one row of y. */
static void run_row(void *arg, int64_t task, int worker) {
    const narrow_job *j = arg;
    const cdad_unfold *u = &j->u;
    const int64_t n = task / u->P, p = task % u->P, top = p * u->stride - u->pad_t, run = u->S * u->C;
    const int64_t r0 = min_i(u->R, max_i(0, -top)), r1 = max_i(r0, min_i(u->R, u->H - top));
    const float *row = j->x + (n * u->H + top + r0) * u->W * u->C;
    int64_t level = j->longest;
    for (int64_t q = 0; q < u->Q;) {
        while (1 << level > ceil_div(u->Q - q, TRIPLE))
            level--;
        const int64_t pixels = TRIPLE << level, count = min_i(u->Q - q, pixels);
        const int64_t left = q * u->stride - u->pad_l, width = (pixels - 1) * u->stride + u->S;
        narrow_tile t = {.rows = r1 - r0, .row = u->W * u->C, .run = run, .step = u->stride * u->C};
        if (left >= 0 && left + width <= u->W)
            t.x = row + left * u->C;
        else
            read_padded(&t, j, row, left, width, j->patches + worker * j->patch_size);
        for (int64_t b = 0; b < j->blocks; b++) {
            t.w = j->few ? j->weights + r0 * j->O * j->padded : j->weights + (b * u->R + r0) * run * GEMM_NR;
            t.bias = j->bias + b * GEMM_NR;
            const int64_t cols = min_i(GEMM_NR, j->O - b * GEMM_NR), vectors = ceil_div(cols, VL);
            float *y = j->y.data + n * j->y.image + p * j->y.row + q * j->y.pixel + b * GEMM_NR;
            const int whole = count == pixels && cols == vectors * VL && !j->with.sum;
            float sums[(TRIPLE << (LEVELS - 1)) * GEMM_NR];
            t.y = whole ? y : sums;
            t.pixel = whole ? j->y.pixel : GEMM_NR;
            (j->few ? few_tiles[level][j->O - 1] : tiles[level][vectors - 1])(&t);
            for (int64_t i = 0; i < count && !(whole && j->with.act == CDAD_ACT_NONE); i++) {
                float *pixel_y = y + i * j->y.pixel;
                if (j->with.sum)
                    for (int64_t o = 0; o < cols; o++)
                        sums[i * GEMM_NR + o] += j->with.sum[pixel_y - j->y.data + o];
                if (!whole)
                    memcpy(pixel_y, sums + i * GEMM_NR, (size_t)cols * sizeof *y);
                if (j->with.act != CDAD_ACT_NONE)
                    CDAD_K(activate)(pixel_y, cols, j->with.act);
            }
        }
        q += count;
    }
}

static narrow_job make_job(const cdad_unfold *u, int64_t O) {
    const int64_t vectors = ceil_div(u->S * u->C, VL);
    narrow_job j = {.u = *u, .O = O, .blocks = ceil_div(O, GEMM_NR), .padded = vectors * VL};
    j.longest = LEVELS - (O > VL ? 2 : 1);
    j.few = O <= FEW && O * (u->R * vectors + ADDING) < u->R * u->S * u->C;
    while (j.few && (TRIPLE << j.longest) * O > FEW_SUMS)
        j.longest--;
    j.patch_size = bytes_of(u->R * (((TRIPLE << j.longest) - 1) * u->stride + u->S) * u->C) / (int64_t)sizeof(float);
    return j;
}

static int64_t weights_bytes(const narrow_job *j) {
    return bytes_of(j->few ? j->u.R * j->O * j->padded : j->blocks * j->u.R * j->u.S * j->u.C * GEMM_NR);
}
static int64_t bias_bytes(const narrow_job *j) { return bytes_of(j->blocks * GEMM_NR); }

int64_t CDAD_K(narrow_conv2d_scratch)(const cdad_unfold *u, int64_t O, int threads) {
    const narrow_job j = make_job(u, O);
    return weights_bytes(&j) + bias_bytes(&j) + threads * bytes_of(j.patch_size);
}

void CDAD_K(narrow_conv2d)(const cdad_context *ctx, cdad_pixels y, const float *x, cdad_mat w,
                           const cdad_epilogue *with, const cdad_unfold *u, int64_t O, void *scratch) {
    narrow_job j = make_job(u, O);
    const int64_t K = u->R * u->S * u->C;
    float *weights = scratch, *padded_bias = (float *)((char *)scratch + weights_bytes(&j));
    const int64_t run = u->S * u->C;
    for (int64_t r = 0; j.few && r < u->R; r++)
        for (int64_t o = 0; o < O; o++) {
            float *const to = weights + (r * O + o) * j.padded;
            for (int64_t k = 0; k < j.padded; k++)
                to[k] = k < run ? w.data[(r * run + k) * w.rs + o * w.cs] : 0.0f;
        }
    for (int64_t b = 0; b < j.blocks && !j.few; b++)
        for (int64_t k = 0; k < K; k += GEMM_KC) {
            const int64_t cols = min_i(GEMM_NR, O - b * GEMM_NR);
            CDAD_K(gemm_pack_b)(weights + (b * K + k) * GEMM_NR, &w, b * GEMM_NR, cols, k, min_i(GEMM_KC, K - k));
        }
    memset(padded_bias, 0, (size_t)bias_bytes(&j));
    j.with = with ? *with : (cdad_epilogue){0};
    if (j.with.bias)
        memcpy(padded_bias, j.with.bias, (size_t)O * sizeof *padded_bias);
    j.x = x;
    j.y = y;
    j.weights = weights;
    j.bias = padded_bias;
    j.patches = (float *)((char *)padded_bias + bias_bytes(&j));
    cdad_pool *pool = u->N * u->P * u->Q * K * O < SERIAL_PRODUCTS ? NULL : ctx->pool;
    cdad_pool_run(pool, u->N * u->P, run_row, &j);
}

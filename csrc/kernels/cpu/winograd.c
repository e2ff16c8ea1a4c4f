/* 3x3 convolution of stride 1 by Winograd's minimal filtering F(m x m, 3 x 3), m = 2 or 4 (Lavin & Gray 2016):
 * y = A^T [sum over channels of (G w G^T) * (B^T x B)] A, for tiles of m x m pixels of y, that is, (m+2)^2 products
 * for 9 m^2.
 *
 * The sums over channels are the matrix product's own tiles, over panels that the transforms write: A's lanes are
 * tiles of pixels, B's are output channels, one product for each of the (m+2)^2 places. Where all weights, transformed,
 * stay in a second-level cache, a task transforms a strip of pixels there and multiplies it by all of them. Wider layers
 * would read their weights again for every strip: these are transformed by groups of output channels, images by chunks of
 * tiles, each as large as stays in the last cache; where there are so few tiles that a weight meets them all at once, it
 * is transformed just before. A tile's result is one chain of operations on its own pixels, so its bits depend neither
 * on these ways nor on the batch. */
#include <stddef.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/winograd.h"

enum {
    WINO_KC = 128,            /* channels of a block: it fixes the order of summation */
    WINO_STRIP = 4,           /* panels of tiles that share a weight's panel while it is in cache */
    GROUP_BYTES = 24 << 20,   /* of transformed weights at once, unless one panel takes more */
    CHUNK_BYTES = 8 << 20,    /* of transformed pixels at once, likewise */
    NEAR_BYTES = 5 << 19,     /* of weights that strips of pixels meet all at once, */
    STRIP_BYTES = 1 << 19,    /* and of such a strip, unless one panel takes more */
    STRIPS = 8                /* there are at least so many of these, for threads to share, where there are panels */
};

typedef struct wino_job {
    cdad_unfold u;
    int64_t m, n;               /* pixels a side of a tile of y, of x */
    int64_t down, across;       /* tiles of an image */
    int64_t tiles, panels;      /* of the batch; panels of GEMM_MR tiles */
    int64_t O, columns;         /* output channels, panels of GEMM_NR of them */
    int64_t blocks;             /* of WINO_KC channels */
    int64_t group, chunk;       /* columns and panels at once */
    int fused;                  /* weights are transformed where they are used; `weights` is not there */
    int near;                   /* a task is a strip of pixels, for all weights; `pixels` is not there */
    int64_t first_column, first_panel, n_columns, n_panels, strip, strips; /* now */
    const float *x;
    cdad_epilogue with;
    cdad_mat w;                 /* element (c, o) of tap (0, 0); the other taps are tap_r, tap_s further */
    int64_t tap_r, tap_s;
    float *y, *weights, *pixels, *own;
    int64_t own_size, own_work; /* floats; before the strip's pixels, where `near` */
} wino_job;

static const float zeros[WINO_KC];

static inline int64_t bytes_of(int64_t floats) { return cdad_align_up(floats * (int64_t)sizeof(float)); }

/* ---- weights: [column][block][place][channel][GEMM_NR] ----------------------------------------------------- */

static int64_t block_length(const wino_job *j, int64_t block) { return min_i(WINO_KC, j->u.C - block * WINO_KC); }

static float *weight_panel(const wino_job *j, int64_t column, int64_t block) {
    return j->weights + (column * j->u.C + block * WINO_KC) * j->n * j->n * GEMM_NR;
}

/* Floats from place to place. Weights that many strips read lie without gaps, panels on whole pages. */
static int64_t weight_stride(const wino_job *j, int64_t block) {
    const int64_t panel = block_length(j, block) * GEMM_NR;
    return j->fused ? place_stride(panel) : panel;
}

INLINE void transform_weights(int m, float *to, int64_t stride, const float *taps, int64_t kc) {
    const int n = m + 2;
    for (int64_t i = 0; i < kc * GEMM_NR; i += VL) {
        vf w[9], t[3 * 6], u[36];
        V_UNROLL for (int a = 0; a < 9; a++)
            w[a] = v_load(taps + a * kc * GEMM_NR + i);
        V_UNROLL for (int s = 0; s < 3; s++)
            filter_1d(m, t + s, w + s, 3);
        V_UNROLL for (int r = 0; r < n; r++)
            filter_1d(m, u + r * n, t + r * 3, 1);
        V_UNROLL for (int a = 0; a < n * n; a++)
            v_store(to + a * stride + i, u[a]);
    }
}

/* to: [place][channel][GEMM_NR], places weight_stride apart; taps: room for 9 [channel][GEMM_NR]. */
static void transform_block(const wino_job *j, float *to, float *taps, int64_t o, int64_t block) {
    const int64_t kc = block_length(j, block), stride = weight_stride(j, block);
    for (int64_t a = 0; a < 9; a++) {
        cdad_mat w = j->w;
        w.data += a / 3 * j->tap_r + a % 3 * j->tap_s;
        CDAD_K(gemm_pack_b)(taps + a * kc * GEMM_NR, &w, o, min_i(GEMM_NR, j->O - o), block * WINO_KC, kc);
    }
    if (j->m == 2)
        transform_weights(2, to, stride, taps, kc);
    else
        transform_weights(4, to, stride, taps, kc);
}

/* What the block reads of a weight [O,3,3,C]. A turned one is read by columns, which the processor foresees. */
static gemm_ahead next_taps(const wino_job *j, int64_t o, int64_t block) {
    const int64_t outputs = min_i(GEMM_NR, j->O - o);
    if (block >= j->blocks || j->w.rs != 1 || j->w.cs != 9 * j->u.C)
        return (gemm_ahead){0};
    return (gemm_ahead){.data = j->w.data + o * j->w.cs + block * WINO_KC, .rows = 9 * outputs, .stride = j->u.C,
                        .lines = ceil_div(block_length(j, block), 16)};
}

static void weights_task(void *arg, int64_t task, int worker) {
    const wino_job *j = arg;
    const int64_t column = task / j->blocks, block = task % j->blocks;
    transform_block(j, weight_panel(j, column, block), j->own + worker * j->own_size,
                    (j->first_column + column) * GEMM_NR, block);
}

/* ---- pixels: [panel][block][place][channel][GEMM_MR] -------------------------------------------------------- */

/* Of `panels`, the first panel's place. */
static float *pixel_panel(const wino_job *j, float *panels, int64_t panel, int64_t block, int64_t place) {
    return panels + (panel * j->u.C + block * WINO_KC) * j->n * j->n * GEMM_MR + place * block_length(j, block) * GEMM_MR;
}

/* The panel `to` of panels, of the tiles from `first` on. */
static void transform_panel(const wino_job *j, float *panels, int64_t to, int64_t first, int64_t block, float *rows) {
    const int64_t kc = block_length(j, block), n = j->n, count = min_i(GEMM_MR, j->tiles - first);
    const int64_t stride = place_stride(GEMM_MR * kc); /* rows: [place][tile][channel] */
    for (int64_t i = 0; i < count; i++) {
        const float *from[WINO_PLACES];
        tile_pixels(from, &j->u, j->x + block * WINO_KC, (int)j->m, first + i, zeros);
        if (j->m == 2)
            transform_pixels(2, rows + i * kc, stride, from, kc);
        else
            transform_pixels(4, rows + i * kc, stride, from, kc);
    }
    for (int64_t place = 0; place < n * n; place++) {
        const cdad_mat A = {.data = rows + place * stride, .rs = kc, .cs = 1};
        CDAD_K(gemm_pack_a)(pixel_panel(j, panels, to, block, place), &A, 0, count, 0, kc);
    }
}

static void pixels_task(void *arg, int64_t task, int worker) {
    const wino_job *j = arg;
    const int64_t panel = task / j->blocks;
    transform_panel(j, j->pixels, panel, (j->first_panel + panel) * GEMM_MR, task % j->blocks, j->own + worker * j->own_size);
}

/* ---- products and results ----------------------------------------------------------------------------------- */

/* A tile's m x m pixels, as far as they are inside of y, for the channels o .. o+cols-1; z: [place] `stride` apart. */
INLINE void transform_result(int m, const wino_job *j, int64_t tile, const float *z, int64_t stride, int64_t o,
                             int64_t cols) {
    const int n = m + 2;
    const int64_t across = tile % j->across * m, down = tile / j->across % j->down * m;
    const int64_t P = j->u.P, Q = j->u.Q, image = tile / j->across / j->down;
    for (int64_t c = 0; c < cols; c += VL) {
        const int64_t count = min_i(VL, cols - c);
        const vf b = j->with.bias ? v_load_n(j->with.bias + o + c, count) : (vf){0};
        vf in[36], t[4 * 6], out[16];
        V_UNROLL for (int s = 0; s < n; s++) {
            V_UNROLL for (int r = 0; r < n; r++)
                in[r * n + s] = v_load(z + (r * n + s) * stride + c);
            result_1d(m, t + s, in + s, n);
        }
        V_UNROLL for (int r = 0; r < m; r++) {
            result_1d(m, out + r * m, t + r * n, 1);
            V_UNROLL for (int s = 0; s < m; s++)
                if (down + r < P && across + s < Q) {
                    const int64_t at = ((image * P + down + r) * Q + across + s) * j->O + o + c;
                    vf v = out[r * m + s] + b;
                    if (j->with.sum)
                        v += v_load_n(j->with.sum + at, count);
                    v_store_n(j->y + at, v, count);
                }
        }
    }
    if (j->with.act == CDAD_ACT_NONE)
        return;
    for (int64_t p = down; p < min_i(P, down + m); p++)
        for (int64_t q = across; q < min_i(Q, across + m); q++)
            CDAD_K(activate)(j->y + ((image * P + p) * Q + q) * j->O + o, cols, j->with.act);
}

/* The results of a column, for the strip's panels p0 .. p1-1; `pixels` begins with the panel `origin`. */
static void multiply_strip(const wino_job *j, int64_t column, float *pixels, int64_t origin, int64_t p0, int64_t p1, float *own) {
    const int64_t places = j->n * j->n, o = (j->first_column + column) * GEMM_NR, cols = min_i(GEMM_NR, j->O - o);
    const int64_t size = GEMM_MR * GEMM_NR, stride = place_stride(WINO_STRIP * size);
    float *sums = own; /* [place][panel of the strip][GEMM_MR][GEMM_NR] */
    float *fresh = sums + places * stride, *taps = fresh + places * weight_stride(j, 0);
    for (int64_t block = 0; block < j->blocks; block++) {
        const int64_t kc = block_length(j, block);
        const float *b = j->fused ? fresh : weight_panel(j, column, block);
        const int64_t b_stride = weight_stride(j, block);
        gemm_ahead ahead = j->fused ? next_taps(j, o, block + 1) : (gemm_ahead){0};
        const int64_t lines = ceil_div(ahead.rows * ahead.lines, places);
        if (j->fused)
            transform_block(j, fresh, taps, o, block);
        for (int64_t place = 0; place < places; place++, gemm_fetch(&ahead, lines))
            for (int64_t p = p0; p < p1; p++) {
                const int64_t rows = min_i(GEMM_MR, j->tiles - p * GEMM_MR);
                float *sum = sums + place * stride + (p - p0) * size;
                CDAD_K(gemm_tile)(kc, pixel_panel(j, pixels, p - origin, block, place), b + place * b_stride, rows, GEMM_NR, sum,
                                  GEMM_NR, block > 0 ? sum : NULL, NULL, NULL);
            }
    }
    for (int64_t p = p0; p < p1; p++)
        for (int64_t i = 0; i < min_i(GEMM_MR, j->tiles - p * GEMM_MR); i++) {
            const float *z = sums + (p - p0) * size + i * GEMM_NR;
            if (j->m == 2)
                transform_result(2, j, p * GEMM_MR + i, z, stride, o, cols);
            else
                transform_result(4, j, p * GEMM_MR + i, z, stride, o, cols);
        }
}

static void multiply_task(void *arg, int64_t task, int worker) {
    const wino_job *j = arg;
    const int64_t p0 = task % j->strips * j->strip, p1 = min_i(j->n_panels, p0 + j->strip);
    multiply_strip(j, task / j->strips, j->pixels, j->first_panel, j->first_panel + p0, j->first_panel + p1,
                   j->own + worker * j->own_size);
}

static void near_task(void *arg, int64_t task, int worker) {
    const wino_job *j = arg;
    const int64_t p0 = task * j->strip, p1 = min_i(j->panels, p0 + j->strip);
    float *own = j->own + worker * j->own_size, *pixels = own + j->own_work;
    for (int64_t p = p0; p < p1; p++)
        for (int64_t block = 0; block < j->blocks; block++)
            transform_panel(j, pixels, p - p0, p * GEMM_MR, block, own);
    for (int64_t column = 0; column < j->columns; column++)
        multiply_strip(j, column, pixels, p0, p0, p1, own);
}

/* ---- the whole ------------------------------------------------------------------------------------------------ */

static wino_job make_job(const cdad_unfold *u, int64_t O, int m) {
    wino_job j = {.u = *u, .m = m, .n = m + 2, .O = O};
    const int64_t places = j.n * j.n;
    j.down = ceil_div(u->P, m);
    j.across = ceil_div(u->Q, m);
    j.tiles = u->N * j.down * j.across;
    j.panels = ceil_div(j.tiles, GEMM_MR);
    j.columns = ceil_div(O, GEMM_NR);
    j.blocks = ceil_div(u->C, WINO_KC);
    j.fused = j.panels <= WINO_STRIP;
    j.group = j.fused ? j.columns : min_i(j.columns, max_i(1, GROUP_BYTES / bytes_of(places * u->C * GEMM_NR)));
    j.near = !j.fused && bytes_of(places * u->C * j.columns * GEMM_NR) <= NEAR_BYTES;
    if (j.near) {
        const int64_t fit = min_i(WINO_STRIP, STRIP_BYTES / bytes_of(places * u->C * GEMM_MR));
        j.strip = max_i(1, min_i(fit, j.panels / STRIPS));
        j.strips = ceil_div(j.panels, j.strip);
    }
    j.chunk = j.fused ? j.panels : min_i(j.panels, max_i(1, CHUNK_BYTES / bytes_of(places * u->C * GEMM_MR)));
    const int64_t kc = min_i(WINO_KC, u->C), sums = places * place_stride(WINO_STRIP * GEMM_MR * GEMM_NR);
    const int64_t taps = 9 * kc * GEMM_NR, fresh = places * weight_stride(&j, 0);
    j.own_work = max_i(places * place_stride(GEMM_MR * kc), j.fused ? sums + fresh + taps : max_i(sums, taps));
    j.own_work = bytes_of(j.own_work) / (int64_t)sizeof(float);
    j.own_size = j.own_work + (j.near ? bytes_of(j.strip * places * u->C * GEMM_MR) / (int64_t)sizeof(float) : 0);
    return j;
}

static int64_t weight_bytes(const wino_job *j) {
    return j->fused ? 0 : bytes_of(j->group * j->u.C * j->n * j->n * GEMM_NR);
}
static int64_t pixel_bytes(const wino_job *j) {
    return j->near ? 0 : bytes_of(j->chunk * j->u.C * j->n * j->n * GEMM_MR);
}

int64_t CDAD_K(winograd_scratch)(const cdad_unfold *u, int64_t O, int m, int threads) {
    const wino_job j = make_job(u, O, m);
    return weight_bytes(&j) + pixel_bytes(&j) + threads * bytes_of(j.own_size);
}

void CDAD_K(winograd)(const cdad_context *ctx, float *y, const float *x, cdad_mat w, int64_t tap_r, int64_t tap_s,
                      const cdad_epilogue *with, const cdad_unfold *u, int64_t O, int m, void *scratch) {
    wino_job j = make_job(u, O, m);
    char *memory = scratch;
    j.y = y;
    j.x = x;
    j.w = w;
    j.tap_r = tap_r;
    j.tap_s = tap_s;
    j.with = with ? *with : (cdad_epilogue){0};
    j.weights = (float *)memory;
    j.pixels = (float *)(memory + weight_bytes(&j));
    j.own = (float *)(memory + weight_bytes(&j) + pixel_bytes(&j));
    if (j.near) {
        j.n_columns = j.columns;
        cdad_pool_run(ctx->pool, j.columns * j.blocks, weights_task, &j);
        cdad_pool_run(ctx->pool, j.strips, near_task, &j);
        return;
    }
    const int whole = j.chunk == j.panels; /* then pixels are transformed once for all groups of weights */
    for (j.first_column = 0; j.first_column < j.columns; j.first_column += j.group) {
        j.n_columns = min_i(j.group, j.columns - j.first_column);
        if (!j.fused)
            cdad_pool_run(ctx->pool, j.n_columns * j.blocks, weights_task, &j);
        for (j.first_panel = 0; j.first_panel < j.panels; j.first_panel += j.chunk) {
            j.n_panels = min_i(j.chunk, j.panels - j.first_panel);
            if (!whole || j.first_column == 0)
                cdad_pool_run(ctx->pool, j.n_panels * j.blocks, pixels_task, &j);
            j.strips = ceil_div(j.n_panels, WINO_STRIP);
            j.strip = ceil_div(j.n_panels, j.strips);
            cdad_pool_run(ctx->pool, j.strips * j.n_columns, multiply_task, &j);
        }
    }
}

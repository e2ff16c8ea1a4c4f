/* The gradient of a 3x3 convolution's weight by Winograd's minimal filtering, the transpose of winograd.c:
 * dw = G^T [sum over tiles of (A dy A^T) * (B^T x B)] G, (m+2)^2 products a tile for 9 m^2.
 *
 * Each of the (m+2)^2 places is a matrix product of its own, output channels by channels, summed over tiles: A's lanes
 * are output channels, B's are channels. A piece of dw is made of all its places at once, while they are in cache. The
 * tiles of the batch are taken by chunks as large as stay in cache, whose results are added in order: chunks depend on
 * the shape alone. That is the second-level cache, but for wide layers: each chunk reads and writes all of dw. */
#include <stddef.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/winograd.h"

enum {
    CHUNK_BYTES = 1 << 20,       /* of transformed pixels and gradients at once, */
    CHUNK_BYTES_WIDE = 24 << 20, /* and with more input times output channels than this: */
    WIDE = 16384,
    GROUP = 16,                  /* tiles of a task of the transforms; chunks are multiples of it */
    LANES = 48,                  /* output channels of such a task: whole vectors and whole panels, for every VL */
    STRIP = 4                    /* panels of output channels that share one of channels while it is in cache */
};

typedef struct job {
    cdad_unfold u;
    int64_t m, places;
    int64_t tiles, chunk;      /* of the batch, at once */
    int64_t O, rows, columns;  /* output channels, panels of GEMM_MR of them, panels of GEMM_NR channels */
    int64_t first, count;      /* tiles now */
    const float *x, *dy;
    float *dw, *pixels, *grads, *own;
    int64_t own_size;          /* floats */
} job;

static const float zeros[LANES > GEMM_NR ? LANES : GEMM_NR];

static inline int64_t bytes_of(int64_t floats) { return cdad_align_up(floats * (int64_t)sizeof(float)); }

/* [panel][place][tile][lane] */
static float *panel_of(const job *j, float *panels, int64_t width, int64_t panel, int64_t place) {
    return panels + (panel * j->places + place) * place_stride(j->count * width);
}

/* ---- pixels: B^T x B ----------------------------------------------------------------------------------------- */

static void pixels_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const int64_t column = task % j->columns, c = column * GEMM_NR, cols = min_i(GEMM_NR, j->u.C - c);
    const int64_t i0 = task / j->columns * GROUP, i1 = min_i(j->count, i0 + GROUP);
    float *to = panel_of(j, j->pixels, GEMM_NR, column, 0);
    const int64_t stride = place_stride(j->count * GEMM_NR);
    (void)worker;
    for (int64_t place = 0; cols < GEMM_NR && place < j->places; place++) /* lanes past the edge */
        memset(to + place * stride + i0 * GEMM_NR, 0, (size_t)((i1 - i0) * GEMM_NR) * sizeof *to);
    for (int64_t i = i0; i < i1; i++) {
        const float *from[WINO_PLACES];
        tile_pixels(from, &j->u, j->x + c, (int)j->m, j->first + i, zeros);
        if (j->m == 2)
            transform_pixels(2, to + i * GEMM_NR, stride, from, cols);
        else
            transform_pixels(4, to + i * GEMM_NR, stride, from, cols);
    }
}

/* ---- gradients: A dy A^T ------------------------------------------------------------------------------------- */

/* to [place][LANES] from the m x m pixels of a tile of dy. */
INLINE void transform_gradients(int m, float *to, const float *const *from, int64_t lanes) {
    const int n = m + 2;
    for (int64_t c = 0; c < lanes; c += VL) {
        const int64_t count = min_i(VL, lanes - c);
        vf y[16], t[6 * 4], z[6];
        V_UNROLL for (int s = 0; s < m; s++) {
            V_UNROLL for (int r = 0; r < m; r++)
                y[r * m + s] = v_load_n(from[r * m + s] + c, count);
            result_back_1d(m, t + s, y + s, m);
        }
        V_UNROLL for (int r = 0; r < n; r++) {
            result_back_1d(m, z, t + r * m, 1);
            V_UNROLL for (int s = 0; s < n; s++)
                v_store(to + (r * n + s) * LANES + c, z[s]);
        }
    }
}

/* The m x m pixels of a tile of dy, zeros past the border. */
static void tile_gradients(const float **from, const job *j, int64_t tile, int64_t o) {
    const int64_t m = j->m, P = j->u.P, Q = j->u.Q, down = ceil_div(P, m), across = ceil_div(Q, m);
    const int64_t p = tile / across % down * m, q = tile % across * m, image = tile / across / down;
    for (int64_t r = 0; r < m; r++)
        for (int64_t s = 0; s < m; s++)
            from[r * m + s] =
                p + r < P && q + s < Q ? j->dy + ((image * P + p + r) * Q + q + s) * j->O + o : zeros;
}

static void gradients_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const int64_t blocks = ceil_div(j->O, LANES), o = task % blocks * LANES, lanes = min_i(LANES, j->O - o);
    const int64_t i0 = task / blocks * GROUP, i1 = min_i(j->count, i0 + GROUP);
    const int64_t panels = ceil_div(lanes, GEMM_MR);
    float *row = j->own + worker * j->own_size; /* [place][LANES] */
    memset(row, 0, (size_t)(j->places * LANES) * sizeof *row);
    for (int64_t i = i0; i < i1; i++) {
        const float *from[16];
        tile_gradients(from, j, j->first + i, o);
        if (j->m == 2)
            transform_gradients(2, row, from, lanes);
        else
            transform_gradients(4, row, from, lanes);
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t place = 0; place < j->places; place++)
                memcpy(panel_of(j, j->grads, GEMM_MR, o / GEMM_MR + panel, place) + i * GEMM_MR,
                       row + place * LANES + panel * GEMM_MR, GEMM_MR * sizeof *row);
    }
}

/* ---- products and results: G^T z G --------------------------------------------------------------------------- */

/* The taps (of row o, channels c .. c+cols-1) from their places, `stride` apart. */
INLINE void transform_taps(int m, const job *j, const float *z, int64_t stride, int64_t o, int64_t c, int64_t cols) {
    const int n = m + 2;
    for (int64_t i = 0; i < cols; i += VL) {
        const int64_t count = min_i(VL, cols - i);
        vf in[36], t[3 * 6], w[3];
        V_UNROLL for (int s = 0; s < n; s++) {
            V_UNROLL for (int r = 0; r < n; r++)
                in[r * n + s] = v_load(z + (r * n + s) * stride + i);
            filter_back_1d(m, t + s, in + s, n);
        }
        V_UNROLL for (int r = 0; r < 3; r++) {
            filter_back_1d(m, w, t + r * n, 1);
            V_UNROLL for (int s = 0; s < 3; s++) {
                float *to = j->dw + ((o * 3 + r) * 3 + s) * j->u.C + c + i;
                v_store_n(to, j->first > 0 ? w[s] + v_load_n(to, count) : w[s], count);
            }
        }
    }
}

static void multiply_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const int64_t strips = ceil_div(j->rows, STRIP), column = task / strips;
    const int64_t p0 = task % strips * STRIP, p1 = min_i(j->rows, p0 + STRIP);
    const int64_t c = column * GEMM_NR, cols = min_i(GEMM_NR, j->u.C - c);
    const int64_t size = GEMM_MR * GEMM_NR, stride = place_stride(STRIP * size);
    float *sums = j->own + worker * j->own_size; /* [place][panel of the strip][GEMM_MR][GEMM_NR] */
    for (int64_t place = 0; place < j->places; place++)
        for (int64_t k = 0; k < j->count; k += GEMM_KC) {
            const int64_t kc = min_i(GEMM_KC, j->count - k);
            const float *b = panel_of(j, j->pixels, GEMM_NR, column, place) + k * GEMM_NR;
            for (int64_t p = p0; p < p1; p++) {
                float *sum = sums + place * stride + (p - p0) * size;
                CDAD_K(gemm_tile)(kc, panel_of(j, j->grads, GEMM_MR, p, place) + k * GEMM_MR, b, GEMM_MR, GEMM_NR, sum,
                                  GEMM_NR, k > 0 ? sum : NULL, NULL, NULL);
            }
        }
    for (int64_t o = p0 * GEMM_MR; o < min_i(j->O, p1 * GEMM_MR); o++) {
        const float *z = sums + (o - p0 * GEMM_MR) * GEMM_NR;
        if (j->m == 2)
            transform_taps(2, j, z, stride, o, c, cols);
        else
            transform_taps(4, j, z, stride, o, c, cols);
    }
}

/* ---- the whole ----------------------------------------------------------------------------------------------- */

static job make_job(const cdad_unfold *u, int64_t O, int m) {
    job j = {.u = *u, .m = m, .places = (m + 2) * (m + 2), .O = O};
    j.tiles = u->N * ceil_div(u->P, m) * ceil_div(u->Q, m);
    j.rows = ceil_div(O, GEMM_MR);
    j.columns = ceil_div(u->C, GEMM_NR);
    const int64_t bytes = j.places * (j.rows * GEMM_MR + j.columns * GEMM_NR) * (int64_t)sizeof(float); /* of a tile */
    const int64_t most = u->C * O > WIDE ? CHUNK_BYTES_WIDE : CHUNK_BYTES;
    j.chunk = min_i(j.tiles, max_i(1, most / (bytes * GROUP)) * GROUP);
    j.own_size = bytes_of(max_i(j.places * LANES, j.places * place_stride(STRIP * GEMM_MR * GEMM_NR))) / (int64_t)sizeof(float);
    return j;
}

static int64_t pixel_bytes(const job *j) { return bytes_of(j->columns * j->places * place_stride(j->chunk * GEMM_NR)); }
static int64_t gradient_bytes(const job *j) { return bytes_of(j->rows * j->places * place_stride(j->chunk * GEMM_MR)); }

int64_t CDAD_K(winograd_grad_scratch)(const cdad_unfold *u, int64_t O, int m, int threads) {
    const job j = make_job(u, O, m);
    return pixel_bytes(&j) + gradient_bytes(&j) + threads * bytes_of(j.own_size);
}

void CDAD_K(winograd_grad)(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold *u,
                           int64_t O, int m, void *scratch) {
    job j = make_job(u, O, m);
    char *memory = scratch;
    j.dw = dw;
    j.x = x;
    j.dy = dy;
    j.pixels = (float *)memory;
    j.grads = (float *)(memory + pixel_bytes(&j));
    j.own = (float *)(memory + pixel_bytes(&j) + gradient_bytes(&j));
    for (j.first = 0; j.first < j.tiles; j.first += j.chunk) {
        j.count = min_i(j.chunk, j.tiles - j.first);
        const int64_t groups = ceil_div(j.count, GROUP);
        cdad_pool_run(ctx->pool, groups * j.columns, pixels_task, &j);
        cdad_pool_run(ctx->pool, groups * ceil_div(O, LANES), gradients_task, &j);
        cdad_pool_run(ctx->pool, ceil_div(j.rows, STRIP) * j.columns, multiply_task, &j);
    }
}

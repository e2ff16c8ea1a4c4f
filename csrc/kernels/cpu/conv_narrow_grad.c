/* The weight's gradient of a convolution of few channels: sums over pixels of dy times what the pixel reads.
 *
 * Lanes are output channels. A tile is some neighbours (s, c) of one kernel row by one or two vectors of channels, its
 * sums held in registers over a group of rows of dy: each element that a pixel reads is broadcast from the image, times
 * the vector of dy. Pixels that read past the left or right edge, few in a wide image, read a copy with zeros; rows
 * outside of the image are left out.
 *
 * Long sums are cut by shape alone: groups into slices of the batch's rows, slices into dw, each added in order. */
#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    SLICES = 16,
    GROUP_PIXELS = 256, /* of a group of rows, unless one row has more */
    SERIAL_PRODUCTS = 1 << 19,
};

/* Pixels side by side in dy: the first reads at x, the next at x + step, ... */
typedef struct segment {
    const float *x, *dy;
    int64_t step, pixels;
} segment;

typedef struct grad_job {
    cdad_unfold u;
    int64_t O, lanes;     /* output channels; rounded up to whole vectors */
    int64_t K, run;       /* elements of the kernel, of one row of it */
    int64_t q0, q1;       /* pixels [q0, q1) of a row read no column outside of the image */
    int64_t group;        /* rows of dy summed in registers */
    int64_t slice;        /* rows of a slice */
    int64_t slices;
    const float *x, *dy;
    float *dw, *partial;  /* partial: [slice][r, s, c][lanes] */
    char *own;            /* of each worker: segments, copies of dy, copies of edges */
    int64_t own_bytes;
} grad_job;

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t bytes_of(int64_t floats) { return cdad_align_up(floats * (int64_t)sizeof(float)); }

/* sums[k][lane] += sum over the segments' pixels of x[k0 + k] * dy[o + lane]. */
typedef struct weight_tile {
    const segment *first, *end;
    int64_t k0, o, lanes; /* lanes: floats from row to row of sums, and from pixel to pixel of dy */
    float *sums;
} weight_tile;

typedef void (*tile_fn)(const weight_tile *t);

INLINE void sum_tile(int elements, int vectors, const weight_tile *t) {
    const int64_t lanes = t->lanes;
    vf acc[GEMM_MR][2];
    V_UNROLL for (int k = 0; k < elements; k++) {
        V_UNROLL for (int v = 0; v < vectors; v++)
            acc[k][v] = (vf){0};
    }
    for (const segment *s = t->first; s < t->end; s++) {
        const int64_t step = s->step;
        const float *x = s->x + t->k0, *dy = s->dy + t->o;
        for (const float *end = dy + s->pixels * lanes; dy < end; dy += lanes, x += step) {
            vf d[2];
            V_UNROLL for (int v = 0; v < vectors; v++)
                d[v] = v_load(dy + v * VL);
            V_UNROLL for (int k = 0; k < elements; k++) {
                const vf xv = v_set1(x[k]);
                V_UNROLL for (int v = 0; v < vectors; v++)
                    acc[k][v] += xv * d[v];
            }
        }
    }
    float *sums = t->sums;
    V_UNROLL for (int k = 0; k < elements; k++) {
        V_UNROLL for (int v = 0; v < vectors; v++) {
            float *to = sums + k * lanes + v * VL;
            v_store(to, v_load(to) + acc[k][v]);
        }
    }
}

#define DEFINE_TILE(elements, vectors) \
    static void tile_##elements##x##vectors(const weight_tile *t) { sum_tile(elements, vectors, t); }
#define DEFINE_TILES(elements) DEFINE_TILE(elements, 1) DEFINE_TILE(elements, 2)
DEFINE_TILES(1)
DEFINE_TILES(2)
DEFINE_TILES(3)
DEFINE_TILES(4)
DEFINE_TILES(5)
DEFINE_TILES(6)
#if CDAD_VBYTES == 64
DEFINE_TILES(7)
DEFINE_TILES(8)
DEFINE_TILES(9)
DEFINE_TILES(10)
DEFINE_TILES(11)
DEFINE_TILES(12)
#endif

static const tile_fn tiles[GEMM_MR][2] = {
    {tile_1x1, tile_1x2},   {tile_2x1, tile_2x2},   {tile_3x1, tile_3x2},
    {tile_4x1, tile_4x2},   {tile_5x1, tile_5x2},   {tile_6x1, tile_6x2},
#if CDAD_VBYTES == 64
    {tile_7x1, tile_7x2},   {tile_8x1, tile_8x2},   {tile_9x1, tile_9x2},
    {tile_10x1, tile_10x2}, {tile_11x1, tile_11x2}, {tile_12x1, tile_12x2},
#endif
};

/* Where a worker keeps what it needs for one group. */
static int64_t segments_bytes(const grad_job *j) { return cdad_align_up(3 * j->group * (int64_t)sizeof(segment)); }
static int64_t padded_bytes(const grad_job *j) {
    return j->lanes > j->O ? bytes_of(j->group * j->u.Q * j->lanes) : 0;
}
static int64_t edges_bytes(const grad_job *j) {
    return bytes_of(j->group * (j->u.Q - (j->q1 - j->q0)) * j->run);
}

/* Copies what the pixels [q, end) read of the image's `row`, with zeros beside it, to *edges; appends their segment. */
static segment *copy_edge(const grad_job *j, segment *s, float **edges, const float *row, const float *dy, int64_t q,
                          int64_t end) {
    const cdad_unfold *u = &j->u;
    if (q == end)
        return s;
    *s = (segment){.x = *edges, .dy = dy + q * j->lanes, .step = j->run, .pixels = end - q};
    for (; q < end; q++, *edges += j->run) {
        const int64_t left = q * u->stride - u->pad_l;
        const int64_t from = min_i(u->S, max_i(0, -left)), to = max_i(from, min_i(u->S, u->W - left));
        memset(*edges, 0, (size_t)j->run * sizeof **edges);
        memcpy(*edges + from * u->C, row + (left + from) * u->C, (size_t)((to - from) * u->C) * sizeof **edges);
    }
    return s + 1;
}

/* What rows [row, end) of dy read of kernel row r; their gradients, `lanes` a pixel, are at dy. Returns the end. */
static segment *find_segments(const grad_job *j, segment *s, float *edges, const float *dy, int64_t r, int64_t row,
                              int64_t end) {
    const cdad_unfold *u = &j->u;
    for (; row < end; row++, dy += u->Q * j->lanes) {
        const int64_t h = row % u->P * u->stride + r - u->pad_t;
        if (h < 0 || h >= u->H)
            continue;
        const float *image_row = j->x + (row / u->P * u->H + h) * u->W * u->C;
        s = copy_edge(j, s, &edges, image_row, dy, 0, j->q0);
        if (j->q0 < j->q1)
            *s++ = (segment){.x = image_row + (j->q0 * u->stride - u->pad_l) * u->C, .dy = dy + j->q0 * j->lanes,
                             .step = u->stride * u->C, .pixels = j->q1 - j->q0};
        s = copy_edge(j, s, &edges, image_row, dy, j->q1, u->Q);
    }
    return s;
}

static void sum_group(const grad_job *j, char *own, float *sums, int64_t row, int64_t end) {
    const cdad_unfold *u = &j->u;
    segment *segments = (segment *)own;
    float *padded = (float *)(own + segments_bytes(j)), *edges = (float *)(own + segments_bytes(j) + padded_bytes(j));
    const float *dy = j->dy + row * u->Q * j->O;
    if (j->lanes > j->O) {
        for (int64_t i = 0; i < (end - row) * u->Q; i++) {
            memset(padded + (i + 1) * j->lanes - VL, 0, (size_t)VL * sizeof *padded);
            memcpy(padded + i * j->lanes, dy + i * j->O, (size_t)j->O * sizeof *padded);
        }
        dy = padded;
    }
    const int64_t pieces = ceil_div(j->run, GEMM_MR);
    for (int64_t r = 0; r < u->R; r++) {
        weight_tile t = {.first = segments, .lanes = j->lanes};
        t.end = find_segments(j, segments, edges, dy, r, row, end);
        for (int64_t piece = 0; piece < pieces; piece++) {
            t.k0 = piece * j->run / pieces;
            const int64_t elements = (piece + 1) * j->run / pieces - t.k0;
            int64_t vectors;
            for (t.o = 0; t.o < j->lanes; t.o += vectors * VL) {
                vectors = min_i(2, (j->lanes - t.o) / VL);
                t.sums = sums + (r * j->run + t.k0) * j->lanes + t.o;
                tiles[elements - 1][vectors - 1](&t);
            }
        }
    }
}

/* Task: one slice of the rows of dy. */
static void run_slice(void *arg, int64_t task, int worker) {
    const grad_job *j = arg;
    const int64_t end = min_i(j->u.N * j->u.P, (task + 1) * j->slice);
    float *sums = j->partial + task * j->K * j->lanes;
    memset(sums, 0, (size_t)(j->K * j->lanes) * sizeof *sums);
    for (int64_t row = task * j->slice; row < end; row += j->group)
        sum_group(j, j->own + worker * j->own_bytes, sums, row, min_i(end, row + j->group));
}

/* Task: one element of the kernel, for all output channels. */
static void add_slices(void *arg, int64_t k, int worker) {
    (void)worker;
    const grad_job *j = arg;
    for (int64_t o = 0; o < j->O; o += VL) {
        vf sum = {0};
        for (int64_t s = 0; s < j->slices; s++)
            sum += v_load(j->partial + (s * j->K + k) * j->lanes + o);
        float lane[CDAD_VBYTES / 4];
        v_store(lane, sum);
        for (int64_t i = 0; i < min_i(VL, j->O - o); i++)
            j->dw[(o + i) * j->K + k] = lane[i];
    }
}

static grad_job make_job(const cdad_unfold *u, int64_t O) {
    grad_job j = {.u = *u, .O = O, .lanes = ceil_div(O, VL) * VL, .run = u->S * u->C};
    j.K = u->R * j.run;
    j.q0 = min_i(u->Q, max_i(0, ceil_div(u->pad_l, u->stride)));
    j.q1 = u->W + u->pad_l < u->S ? 0 : (u->W + u->pad_l - u->S) / u->stride + 1;
    j.q1 = max_i(j.q0, min_i(u->Q, j.q1));
    j.group = max_i(1, GROUP_PIXELS / u->Q);
    const int64_t groups = ceil_div(u->N * u->P, j.group);
    j.slice = ceil_div(groups, SLICES) * j.group;
    j.slices = ceil_div(u->N * u->P, j.slice);
    j.own_bytes = segments_bytes(&j) + padded_bytes(&j) + edges_bytes(&j);
    return j;
}

int64_t CDAD_K(narrow_conv2d_grad_weight_scratch)(const cdad_unfold *u, int64_t O, int threads) {
    const grad_job j = make_job(u, O);
    return bytes_of(j.slices * j.K * j.lanes) + threads * j.own_bytes;
}

void CDAD_K(narrow_conv2d_grad_weight)(const cdad_context *ctx, float *dw, const float *dy, const float *x,
                                       const cdad_unfold *u, int64_t O, void *scratch) {
    grad_job j = make_job(u, O);
    j.x = x;
    j.dy = dy;
    j.dw = dw;
    j.partial = scratch;
    j.own = (char *)scratch + bytes_of(j.slices * j.K * j.lanes);
    cdad_pool *pool = u->N * u->P * u->Q * j.K * O < SERIAL_PRODUCTS ? NULL : ctx->pool;
    cdad_pool_run(pool, j.slices, run_slice, &j);
    cdad_pool_run(pool, j.K, add_slices, &j);
}

/* Sums over the repeated dimensions of a broadcast: the transpose of repeating. */
#include "base/memory.h"
#include "kernels/cpu/backend.h"

#define ROWS 512     /* rows of a partial sum of columns */
#define BLOCK 64     /* columns summed together */
#define LENGTH 16384 /* elements of a partial sum of a row */
#define CHUNK 1024   /* of which this many are summed in float */
#define RESULTS 16   /* of a task, in the general case */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* x as [outer kept, reduced, inner kept]; general = 1 when the dimensions do not fall into such three. */
typedef struct layout {
    int64_t K0, R, K1, tiles;
    int general;
} layout;

static layout find_layout(const cdad_broadcast *bc) {
    layout l = {.K0 = 1, .R = 1, .K1 = 1};
    int stage = 0; /* 0: outer kept, 1: reduced, 2: inner kept */
    for (int i = 0; i < 5; i++) {
        if (bc->dim[i] == 1)
            continue;
        const int kept = bc->stride[i] != 0;
        if (stage == 0 && !kept)
            stage = 1;
        else if (stage == 1 && kept)
            stage = 2;
        else if (stage == 2 && !kept)
            l.general = 1;
        *(stage == 0 ? &l.K0 : stage == 1 ? &l.R : &l.K1) *= bc->dim[i];
    }
    const int64_t tile = l.K1 == 1 ? LENGTH : ROWS;
    l.tiles = (l.R + tile - 1) / tile;
    return l;
}

int64_t CDAD_K(reduce_scratch)(const cdad_broadcast *bc) {
    const layout l = find_layout(bc);
    return l.general ? 0 : cdad_align_up(l.K0 * l.tiles * l.K1 * (int64_t)sizeof(double));
}

typedef struct job {
    float *y;
    const float *x;
    double *partial; /* [K0, tiles, K1] */
    layout l;
    int64_t tiles_a_task; /* when K1 is 1 */
} job;

/* A tile of at most ROWS rows of K1 columns each: a block of columns at a time, rows in order. */
static void columns_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const layout *l = &j->l;
    const int64_t k0 = task / l->tiles, tile = task % l->tiles;
    const int64_t first = tile * ROWS, rows = min64(ROWS, l->R - first);
    const float *x = j->x + (k0 * l->R + first) * l->K1;
    double *out = j->partial + task * l->K1;
    (void)worker;
    for (int64_t c = 0; c < l->K1; c += BLOCK) {
        const int64_t w = min64(BLOCK, l->K1 - c);
        double sum[BLOCK] = {0};
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < w; k++)
                sum[k] += (double)x[r * l->K1 + c + k];
        for (int64_t k = 0; k < w; k++)
            out[c + k] = sum[k];
    }
}

/* K1 = 1: tiles of at most LENGTH elements of contiguous rows. */
static void rows_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const layout *l = &j->l;
    const int64_t last = min64(l->K0 * l->tiles, (task + 1) * j->tiles_a_task);
    (void)worker;
    for (int64_t t = task * j->tiles_a_task; t < last; t++) {
        const int64_t from = t % l->tiles * LENGTH, to = min64(l->R, from + LENGTH);
        const float *x = j->x + t / l->tiles * l->R;
        double total = 0.0;
        for (int64_t begin = from; begin < to; begin += CHUNK) {
            vf s = v_set1(0.0f);
            for (int64_t i = begin; i < min64(to, begin + CHUNK); i += VL)
                s = s + v_load_n(x + i, min64(VL, to - i));
            total += (double)v_sum(s);
        }
        j->partial[t] = total;
    }
}

/* Any pattern: the dimensions of the results and those that are summed over, strides in x and in y. */
typedef struct general_job {
    float *y;
    const float *x;
    int n_kept, n_summed;
    int64_t kept[5], kept_x[5], kept_y[5], summed[5], summed_x[5];
    int64_t results, terms;
} general_job;

static void general_task(void *arg, int64_t task, int worker) {
    const general_job *j = arg;
    (void)worker;
    for (int64_t r = task * RESULTS; r < min64(j->results, (task + 1) * RESULTS); r++) {
        int64_t x_at = 0, y_at = 0, rest = r, i[5] = {0};
        for (int k = j->n_kept - 1; k >= 0; k--) {
            x_at += rest % j->kept[k] * j->kept_x[k];
            y_at += rest % j->kept[k] * j->kept_y[k];
            rest /= j->kept[k];
        }
        double sum = 0.0;
        for (int64_t n = 0; n < j->terms; n++) {
            sum += (double)j->x[x_at];
            for (int k = j->n_summed - 1; k >= 0; k--) {
                x_at += j->summed_x[k];
                if (++i[k] < j->summed[k])
                    break;
                x_at -= j->summed[k] * j->summed_x[k];
                i[k] = 0;
            }
        }
        j->y[y_at] = (float)sum;
    }
}

static void reduce_general(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc) {
    general_job j = {.y = y, .x = x, .results = 1, .terms = 1};
    int64_t x_stride[5], stride = 1;
    for (int i = 4; i >= 0; i--) {
        x_stride[i] = stride;
        stride *= bc->dim[i];
    }
    for (int i = 0; i < 5; i++) {
        if (bc->stride[i]) {
            j.kept[j.n_kept] = bc->dim[i];
            j.kept_x[j.n_kept] = x_stride[i];
            j.kept_y[j.n_kept++] = bc->stride[i];
            j.results *= bc->dim[i];
        } else {
            j.summed[j.n_summed] = bc->dim[i];
            j.summed_x[j.n_summed++] = x_stride[i];
            j.terms *= bc->dim[i];
        }
    }
    cdad_pool_run(ctx->pool, (j.results + RESULTS - 1) / RESULTS, general_task, &j);
}

void CDAD_K(reduce)(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc,
                    void *scratch) {
    job j = {.y = y, .x = x, .partial = scratch, .l = find_layout(bc)};
    const layout *l = &j.l;
    if (l->general) {
        reduce_general(ctx, y, x, bc);
        return;
    }
    const int64_t tiles = l->K0 * l->tiles;
    j.tiles_a_task = l->K1 == 1 ? max64(1, LENGTH / l->R) : 1;
    cdad_pool_run(ctx->pool, (tiles + j.tiles_a_task - 1) / j.tiles_a_task,
                  l->K1 == 1 ? rows_task : columns_task, &j);
    for (int64_t k0 = 0; k0 < l->K0; k0++)
        for (int64_t c = 0; c < l->K1; c++) {
            double sum = 0.0;
            for (int64_t tile = 0; tile < l->tiles; tile++)
                sum += j.partial[(k0 * l->tiles + tile) * l->K1 + c];
            y[k0 * l->K1 + c] = (float)sum;
        }
}

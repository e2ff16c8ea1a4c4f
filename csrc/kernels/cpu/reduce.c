/* Sums over the repeated dimensions of a broadcast: the transpose of repeating. */
#include "base/memory.h"
#include "kernels/cpu/backend.h"

#define ROWS 512 /* rows of a partial sum */
#define BLOCK 64 /* columns summed together */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

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
    l.tiles = (l.R + ROWS - 1) / ROWS;
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
    int64_t rows; /* a task, when K1 is 1 */
} job;

/* Sums of `rows` rows of K1 columns each: a block of columns at a time, rows in order. */
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

/* K1 = 1: contiguous sums of R elements. */
static void rows_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const int64_t R = j->l.R;
    (void)worker;
    for (int64_t k0 = task * j->rows; k0 < min64(j->l.K0, (task + 1) * j->rows); k0++) {
        const float *x = j->x + k0 * R;
        double total = 0.0;
        for (int64_t begin = 0; begin < R; begin += 1024) {
            vf s = v_set1(0.0f);
            for (int64_t i = begin; i < min64(R, begin + 1024); i += VL)
                s = s + (R - i >= VL ? v_load(x + i) : v_load_n(x + i, R - i));
            total += (double)v_sum(s);
        }
        j->y[k0] = (float)total;
    }
}

/* Any pattern: one pass in order. */
static void reduce_general(float *y, const float *x, const cdad_broadcast *bc) {
    int64_t count = 1, i[5] = {0}, total = 1;
    for (int k = 0; k < 5; k++) {
        total *= bc->dim[k];
        count *= bc->stride[k] ? bc->dim[k] : 1;
    }
    memset(y, 0, (size_t)count * sizeof *y);
    for (int64_t n = 0; n < total; n++) {
        int64_t at = 0;
        for (int k = 0; k < 5; k++)
            at += i[k] * bc->stride[k];
        y[at] += x[n];
        for (int k = 4; k >= 0 && ++i[k] == bc->dim[k]; k--)
            i[k] = 0;
    }
}

void CDAD_K(reduce)(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch) {
    job j = {.y = y, .x = x, .partial = scratch, .l = find_layout(bc)};
    const layout *l = &j.l;
    if (l->general) {
        reduce_general(y, x, bc);
        return;
    }
    if (l->K1 == 1) {
        j.rows = l->R < 4096 ? 4096 / l->R : 1;
        cdad_pool_run(ctx->pool, (l->K0 + j.rows - 1) / j.rows, rows_task, &j);
        return;
    }
    cdad_pool_run(ctx->pool, l->K0 * l->tiles, columns_task, &j);
    for (int64_t k0 = 0; k0 < l->K0; k0++)
        for (int64_t c = 0; c < l->K1; c++) {
            double sum = 0.0;
            for (int64_t tile = 0; tile < l->tiles; tile++)
                sum += j.partial[(k0 * l->tiles + tile) * l->K1 + c];
            y[k0 * l->K1 + c] = (float)sum;
        }
}

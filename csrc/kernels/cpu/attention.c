/* Attention by blocks of queries and keys, forward (online softmax) and backward (probabilities recomputed from lse;
 * Dao et al. 2022): the T x S matrix is never written. The products are the matrix product's own tiles. A panel of
 * scores has GEMM_NR lanes and is, as the tiles write it, the B of the next product: forward the lanes are queries, so
 * that maximum and sum over the keys run down the panel, and o^T = v^T p^T; backward they are keys, dv^T = dout^T p
 * and dk^T = q^T ds, and ds alone is transposed, for dq^T = k^T ds^T. */
#include <math.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vmath.h"

enum { KEYS = 192, QUERIES = 192 }; /* of a block; forward, a block of queries is a task */
_Static_assert(KEYS <= GEMM_KC && KEYS % GEMM_MR == 0 && KEYS % GEMM_NR == 0, "a block is whole panels");
_Static_assert(QUERIES <= GEMM_KC && QUERIES % GEMM_MR == 0 && QUERIES % GEMM_NR == 0, "a block is whole panels");

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* A worker's scratch, in floats; Dm and Ds are D rounded up to whole panels of A, and to what the tiles write.
 * Forward: queries and keys by rows, values by columns, a panel of scores, o^T [QUERIES/GEMM_NR,Ds,GEMM_NR], max and
 * sum [QUERIES]. Backward: k and v by rows, k by columns, dk^T and dv^T, q, dout and out by rows, q and dout by
 * columns, panels of p and ds, ds^T [QUERIES/GEMM_NR,KEYS,GEMM_NR], dq^T, delta [QUERIES]. */
static int64_t forward_floats(const cdad_attention_dims *d) {
    const int64_t D = d->D, Dm = round_up(D, GEMM_MR), Ds = round_up(D, GEMM_STEP);
    return QUERIES * (D + Ds + 2) + KEYS * (D + Dm + GEMM_NR);
}
static int64_t backward_floats(const cdad_attention_dims *d) {
    const int64_t D = d->D, Dm = round_up(D, GEMM_MR), Ds = round_up(D, GEMM_STEP), Sp = round_up(d->S, GEMM_NR);
    return Sp * (2 * D + Dm + 2 * Ds) + QUERIES * (3 * D + 2 * Dm + Ds + 2 * GEMM_NR + KEYS + 1);
}

int64_t CDAD_K(attention_scratch)(const cdad_attention_dims *d, int threads) {
    const int64_t floats = max64(forward_floats(d), backward_floats(d));
    return threads * cdad_align_up(floats * (int64_t)sizeof(float));
}

typedef struct job {
    const cdad_attention_dims *d;
    float *out, *lse, *dq, *dk, *dv;
    const float *q, *k, *v, *o, *stats, *dout;
    char *scratch;
    int64_t worker_bytes, q_tiles;
} job;

/* ---- panels of [n, D] matrices with rows rs apart ------------------------------------------------------------ */

/* Lanes are rows, steps are columns: for products over D. */
static void pack_rows_a(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat A = {.data = from, .rs = rs, .cs = 1};
    for (int64_t i = 0; i < n; i += GEMM_MR)
        for (int64_t c = 0; c < D; c += GEMM_KC)
            CDAD_K(gemm_pack_a)(to + i * D + c * GEMM_MR, &A, i, min64(GEMM_MR, n - i), c, min64(GEMM_KC, D - c));
}
static void pack_rows_b(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat B = {.data = from, .rs = 1, .cs = rs};
    for (int64_t i = 0; i < n; i += GEMM_NR)
        for (int64_t c = 0; c < D; c += GEMM_KC)
            CDAD_K(gemm_pack_b)(to + i * D + c * GEMM_NR, &B, i, min64(GEMM_NR, n - i), c, min64(GEMM_KC, D - c));
}

/* Lanes are columns, steps are rows, n <= GEMM_KC: for products over the tokens. */
static void pack_columns(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat A = {.data = from, .rs = 1, .cs = rs};
    for (int64_t c = 0; c < D; c += GEMM_MR)
        CDAD_K(gemm_pack_a)(to + c * n, &A, c, min64(GEMM_MR, D - c), 0, n);
}

/* s [n, GEMM_NR] = n packed rows times a panel of `lanes` rows; n is rounded up to GEMM_STEP. */
static void scores_of(float *s, const float *rows, const float *panel, int64_t n, int64_t lanes, int64_t D) {
    for (int64_t i = 0; i < n; i += GEMM_MR)
        CDAD_K(gemm_tile)(D, rows + i * D, panel, min64(GEMM_MR, round_up(n - i, GEMM_STEP)),
                          min64(GEMM_NR, round_up(lanes, VL)), s + i * GEMM_NR, GEMM_NR, NULL, NULL, NULL);
}

/* to [Ds, GEMM_NR] += n packed columns times a panel of n steps */
static void accumulate(float *to, const float *columns, const float *panel, int64_t n, int64_t lanes, int64_t D) {
    for (int64_t c = 0; c < D; c += GEMM_MR)
        CDAD_K(gemm_tile)(n, columns + c * n, panel, min64(GEMM_MR, round_up(D - c, GEMM_STEP)),
                          min64(GEMM_NR, round_up(lanes, VL)), to + c * GEMM_NR, GEMM_NR,
                          to + c * GEMM_NR, NULL, NULL);
}

/* n rows rs apart, from panels of [Ds, GEMM_NR]. */
static void store_rows(float *to, int64_t rs, const float *from, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i += GEMM_NR)
        CDAD_K(gemm_unpack)(to + i * rs, rs, from + i * round_up(D, GEMM_STEP), min64(GEMM_NR, n - i), D);
}

static void scale_all(float *x, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i++)
        x[i] *= scale;
}

/* ---- softmax ------------------------------------------------------------------------------------------------- */

/* Sets to -inf where tokens row0 .. row0+n-1 do not see those in the lanes, from lane0 on: which is mutual. */
static void mask_scores(float *s, const cdad_attention_dims *d, int64_t row0, int64_t n, int64_t lane0) {
    if (d->mask_h <= 0)
        return;
    typedef uint32_t vu __attribute__((vector_size(CDAD_VBYTES)));
    const int64_t W = d->grid_w;
    const int32_t up = (int32_t)min64(d->mask_h / 2, d->grid_h), left = (int32_t)min64(d->mask_w / 2, W);
    vi ys[2], xs[2];
    int32_t lane_y[GEMM_NR], lane_x[GEMM_NR], y = (int32_t)(lane0 / W), x = (int32_t)(lane0 % W);
    for (int i = 0; i < GEMM_NR; i++) {
        lane_y[i] = y;
        lane_x[i] = x;
        if (++x == W) {
            x = 0;
            y++;
        }
    }
    memcpy(ys, lane_y, sizeof ys);
    memcpy(xs, lane_x, sizeof xs);
    const int64_t first = max64(row0, (lane_y[0] - up) * W), end = min64(row0 + n, (y + up + 1) * W);
    for (int64_t t = first; t < end;) {
        const int32_t row = (int32_t)(t / W);
        const int64_t row_end = min64(end, (row + 1) * W);
        vu near[2]; /* of lanes within reach of this row of the grid, the column; of others, one that none reaches */
        V_UNROLL for (int j = 0; j < 2; j++) {
            const vi reached = (ys[j] >= row - up) & (ys[j] <= row + up);
            near[j] = (vu)((xs[j] & reached) | (INT32_MIN & ~reached));
        }
        for (; t < row_end; t++) {
            V_UNROLL for (int j = 0; j < 2; j++) {
                float *at = s + (t - row0) * GEMM_NR + j * VL;
                const vi hidden = (vi)(near[j] - (uint32_t)(t - row * W - left) <= (uint32_t)(2 * left));
                v_store(at, v_select(hidden, v_set1(-INFINITY), v_load(at)));
            }
        }
    }
}

/* Sets to -inf where the query is before the key: rows, row0 .. row0+n-1, are keys and lanes, from lane0 on, queries, or
 * the other way round. */
static void mask_later_keys(float *s, int64_t row0, int64_t n, int64_t lane0, int rows_are_keys) {
    int32_t lane[GEMM_NR];
    vi lanes[2];
    for (int i = 0; i < GEMM_NR; i++)
        lane[i] = (int32_t)lane0 + i;
    memcpy(lanes, lane, sizeof lanes);
    for (int64_t t = 0; t < n; t++) {
        V_UNROLL for (int j = 0; j < 2; j++) {
            float *at = s + t * GEMM_NR + j * VL;
            const int32_t row = (int32_t)(row0 + t);
            v_store(at, v_select(rows_are_keys ? lanes[j] < row : lanes[j] > row, v_set1(-INFINITY), v_load(at)));
        }
    }
}

/* What is subtracted before the exponential: zero where nothing was seen, whose exponentials are then zero. */
static inline vf shift_of(vf max) { return v_select(max == -INFINITY, (vf){0}, max); }

/* s = e^(s - max) by lanes over n keys; brings max, sum and o^T [Ds, GEMM_NR] up to date. */
static void softmax_block(float *s, int64_t n, float *max, float *sum, float *o, int64_t Ds) {
    vf before[2], now[2], shift[2], alpha[2], total[2];
    V_UNROLL for (int j = 0; j < 2; j++)
        before[j] = now[j] = v_load(max + j * VL);
    for (int64_t k = 0; k < n; k++) {
        V_UNROLL for (int j = 0; j < 2; j++)
            now[j] = v_max(v_load(s + k * GEMM_NR + j * VL), now[j]); /* leaves a NaN out: it comes out below */
    }
    V_UNROLL for (int j = 0; j < 2; j++) {
        shift[j] = shift_of(now[j]);
        alpha[j] = v_exp_below(before[j] - shift[j]);
        total[j] = (vf){0};
        v_store(max + j * VL, now[j]);
    }
    for (int64_t k = 0; k < n; k++) {
        V_UNROLL for (int j = 0; j < 2; j++) {
            float *at = s + k * GEMM_NR + j * VL;
            const vf p = v_exp_below(v_load(at) - shift[j]);
            v_store(at, p);
            total[j] += p;
        }
    }
    V_UNROLL for (int j = 0; j < 2; j++)
        v_store(sum + j * VL, v_load(sum + j * VL) * alpha[j] + total[j]);
    for (int64_t c = 0; c < Ds; c++) {
        V_UNROLL for (int j = 0; j < 2; j++) {
            float *at = o + c * GEMM_NR + j * VL;
            v_store(at, v_load(at) * alpha[j]);
        }
    }
}

/* o^T [Ds, GEMM_NR] by lanes over sum; zero where nothing was seen */
static void divide(float *o, const float *sum, int64_t Ds) {
    for (int64_t j = 0; j < GEMM_NR; j += VL) {
        const vf total = v_load(sum + j), scale = v_select(total == 0.0f, (vf){0}, 1.0f / total);
        for (int64_t c = 0; c < Ds; c++)
            v_store(o + c * GEMM_NR + j, v_load(o + c * GEMM_NR + j) * scale);
    }
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

static void forward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Ds = round_up(D, GEMM_STEP), tile = task % j->q_tiles, nl = task / j->q_tiles;
    const int64_t n = nl / d->L, l = nl % d->L, t0 = tile * QUERIES, nq = min64(QUERIES, d->T - t0);
    float *queries = (float *)(j->scratch + worker * j->worker_bytes), *keys = queries + QUERIES * D;
    float *values = keys + KEYS * D, *s = values + KEYS * round_up(D, GEMM_MR), *o = s + KEYS * GEMM_NR;
    float *max = o + QUERIES * Ds, *sum = max + QUERIES;
    pack_rows_b(queries, j->q + (n * d->T + t0) * d->q_rs + l * D, d->q_rs, nq, D);
    scale_all(queries, round_up(nq, GEMM_NR) * D, d->scale);
    memset(o, 0, (size_t)(QUERIES * Ds) * sizeof(float));
    for (int64_t i = 0; i < QUERIES; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (int64_t s0 = 0; s0 < d->S; s0 += KEYS) {
        const int64_t seen = min64(KEYS, d->S - s0);
        pack_rows_a(keys, j->k + (n * d->S + s0) * d->k_rs + l * D, d->k_rs, seen, D);
        pack_columns(values, j->v + (n * d->S + s0) * d->v_rs + l * D, d->v_rs, seen, D);
        for (int64_t i = 0; i < nq; i += GEMM_NR) {
            scores_of(s, keys, queries + i * D, seen, nq - i, D);
            mask_scores(s, d, s0, seen, t0 + i);
            if (d->causal)
                mask_later_keys(s, s0, seen, t0 + i, 1);
            softmax_block(s, seen, max + i, sum + i, o + i * Ds, Ds);
            accumulate(o + i * Ds, values, s, seen, nq - i, D);
        }
    }
    for (int64_t i = 0; i < nq; i += GEMM_NR)
        divide(o + i * Ds, sum + i, Ds);
    store_rows(j->out + (n * d->T + t0) * d->L * D + l * D, d->L * D, o, nq, D);
    for (int64_t i = 0; i < nq; i++)
        j->lse[nl * d->T + t0 + i] = sum[i] == 0.0f ? -INFINITY : max[i] + logf(sum[i]);
}

static job make_job(const cdad_attention_dims *d, void *scratch, int64_t floats) {
    return (job){.d = d,
                 .scratch = scratch,
                 .worker_bytes = cdad_align_up(floats * (int64_t)sizeof(float)),
                 .q_tiles = (d->T + QUERIES - 1) / QUERIES};
}

void CDAD_K(attention)(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k,
                       const float *v, const cdad_attention_dims *d, void *scratch) {
    job j = make_job(d, scratch, forward_floats(d));
    j.out = out;
    j.lse = lse;
    j.q = q;
    j.k = k;
    j.v = v;
    cdad_pool_run(ctx->pool, d->N * d->L * j.q_tiles, forward_task, &j);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* delta[i] = dot product of rows i of two matrices by packed rows */
static void row_dots(float *delta, const float *a, const float *b, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i += GEMM_MR) {
        float sum[GEMM_MR] = {0};
        for (int64_t c = i * D; c < (i + GEMM_MR) * D; c += GEMM_MR)
            V_UNROLL for (int r = 0; r < GEMM_MR; r++)
                sum[r] += a[c + r] * b[c + r];
        memcpy(delta + i, sum, sizeof sum);
    }
}

/* s becomes p = e^(s - lse) and dp becomes ds / scale = p * (dp - delta); rows are n queries. Not inlined: only in a
 * function of its own do the exponential's constants stay in registers. */
static __attribute__((noinline)) void probabilities(float *s, float *dp, int64_t n, const float *lse,
                                                    const float *delta) {
    for (int64_t i = 0; i < n; i++) {
        const vf shift = shift_of(v_set1(lse[i])), mean = v_set1(delta[i]);
        V_UNROLL for (int j = 0; j < 2; j++) {
            float *at = s + i * GEMM_NR + j * VL, *g = dp + i * GEMM_NR + j * VL;
            const vf p = v_exp_below(v_load(at) - shift);
            v_store(at, p);
            v_store(g, p * (v_load(g) - mean));
        }
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Dm = round_up(D, GEMM_MR), Ds = round_up(D, GEMM_STEP), S = d->S;
    const int64_t Sp = round_up(S, GEMM_NR), wide = d->L * D, n = task / d->L, l = task % d->L;
    float *keys = (float *)(j->scratch + worker * j->worker_bytes), *values = keys + Sp * D;
    float *key_columns = values + Sp * D, *dk = key_columns + Sp * Dm, *dv = dk + Sp * Ds, *queries = dv + Sp * Ds;
    float *grads = queries + QUERIES * D, *outs = grads + QUERIES * D, *query_columns = outs + QUERIES * D;
    float *grad_columns = query_columns + QUERIES * Dm, *p = grad_columns + QUERIES * Dm, *ds = p + QUERIES * GEMM_NR;
    float *turned = ds + QUERIES * GEMM_NR, *dq = turned + QUERIES * KEYS, *delta = dq + QUERIES * Ds;
    const float *k = j->k + n * S * d->k_rs + l * D;
    pack_rows_b(keys, k, d->k_rs, S, D);
    pack_rows_b(values, j->v + n * S * d->v_rs + l * D, d->v_rs, S, D);
    for (int64_t s0 = 0; s0 < S; s0 += KEYS)
        pack_columns(key_columns + s0 * Dm, k + s0 * d->k_rs, d->k_rs, min64(KEYS, S - s0), D);
    scale_all(key_columns, S * Dm, d->scale);
    memset(dk, 0, (size_t)(2 * Sp * Ds) * sizeof(float));
    for (int64_t t = 0; t < d->T; t += QUERIES) {
        const int64_t nq = min64(QUERIES, d->T - t), at = (n * d->T + t) * wide + l * D;
        const float *q = j->q + (n * d->T + t) * d->q_rs + l * D, *dout = j->dout + at;
        pack_rows_a(queries, q, d->q_rs, nq, D);
        pack_columns(query_columns, q, d->q_rs, nq, D);
        scale_all(queries, round_up(nq, GEMM_MR) * D, d->scale);
        scale_all(query_columns, nq * Dm, d->scale);
        pack_rows_a(grads, dout, wide, nq, D);
        pack_columns(grad_columns, dout, wide, nq, D);
        pack_rows_a(outs, j->o + at, wide, nq, D);
        row_dots(delta, outs, grads, nq, D);
        memset(dq, 0, (size_t)(QUERIES * Ds) * sizeof(float));
        for (int64_t s0 = 0; s0 < S; s0 += KEYS) {
            const int64_t seen = min64(KEYS, S - s0);
            for (int64_t k0 = 0; k0 < seen; k0 += GEMM_NR) {
                const int64_t lane0 = s0 + k0;
                scores_of(p, queries, keys + lane0 * D, nq, S - lane0, D);
                scores_of(ds, grads, values + lane0 * D, nq, S - lane0, D);
                mask_scores(p, d, t, nq, lane0);
                if (d->causal)
                    mask_later_keys(p, t, nq, lane0, 0);
                probabilities(p, ds, nq, j->stats + task * d->T + t, delta);
                accumulate(dv + lane0 * Ds, grad_columns, p, nq, S - lane0, D);
                accumulate(dk + lane0 * Ds, query_columns, ds, nq, S - lane0, D);
                const cdad_mat B = {.data = ds, .rs = 1, .cs = GEMM_NR};
                for (int64_t i = 0; i < nq; i += GEMM_NR)
                    CDAD_K(gemm_pack_b)(turned + i * KEYS + k0 * GEMM_NR, &B, i, min64(GEMM_NR, nq - i), 0,
                                        min64(GEMM_NR, seen - k0));
            }
            for (int64_t i = 0; i < nq; i += GEMM_NR)
                accumulate(dq + i * Ds, key_columns + s0 * Dm, turned + i * KEYS, seen, nq - i, D);
        }
        store_rows(j->dq + at, wide, dq, nq, D);
    }
    store_rows(j->dk + n * S * wide + l * D, wide, dk, S, D);
    store_rows(j->dv + n * S * wide + l * D, wide, dv, S, D);
}

void CDAD_K(attention_grad)(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q,
                            const float *k, const float *v, const float *out, const float *lse,
                            const float *dout, const cdad_attention_dims *d, void *scratch) {
    job j = make_job(d, scratch, backward_floats(d));
    j.dq = dq;
    j.dk = dk;
    j.dv = dv;
    j.q = q;
    j.k = k;
    j.v = v;
    j.o = out;
    j.stats = lse;
    j.dout = dout;
    cdad_pool_run(ctx->pool, d->N * d->L, backward_task, &j);
}

/* Attention by blocks of queries and keys, forward (online softmax) and backward (probabilities recomputed from lse;
 * Dao et al. 2022): the T x S matrix is never written. The products are the matrix product's own tiles; the neighbour
 * mask is computed where a block meets it. */
#include <math.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vmath.h"

enum {
    KEYS = 256,            /* of a block: at most GEMM_KC, a multiple of GEMM_NR */
    QUERIES = 16 * GEMM_MR /* of a block: forward, of a task; at most GEMM_KC */
};

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t padded(int64_t n) { return round_up(n, GEMM_NR); }

/* A worker's scratch, in floats. Forward: q, keys and values as panels, scores [GEMM_MR,KEYS] and their panel,
 * o [QUERIES,Dp], max and sum [QUERIES]. Backward: k, v as panels and k as rows, q and dout as panels and as rows,
 * p and ds [QUERIES,KEYS] and a panel of them, dq [QUERIES,Dp], dk and dv [S,Dp], delta [QUERIES]. */
static int64_t forward_floats(const cdad_attention_dims *d) {
    const int64_t D = d->D, Dp = padded(D);
    return QUERIES * D + KEYS * (D + Dp) + 2 * GEMM_MR * KEYS + QUERIES * (Dp + 2);
}
static int64_t backward_floats(const cdad_attention_dims *d) {
    const int64_t D = d->D, Dp = padded(D), Sp = padded(d->S);
    return Sp * (2 * D + 3 * Dp) + QUERIES * (2 * D + 3 * Dp + 2 * KEYS + 1) + GEMM_MR * max64(KEYS, QUERIES);
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

/* ---- panels of [n, D] matrices with rows rs apart: lanes are rows (as A, or as B), or columns --------------- */

static void pack_queries(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat A = {.data = from, .rs = rs, .cs = 1};
    for (int64_t i = 0; i < n; i += GEMM_MR)
        for (int64_t c = 0; c < D; c += GEMM_KC)
            CDAD_K(gemm_pack_a)(to + i * D + c * GEMM_MR, &A, i, min64(GEMM_MR, n - i), c, min64(GEMM_KC, D - c));
}

static void pack_keys(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat B = {.data = from, .rs = 1, .cs = rs};
    for (int64_t i = 0; i < n; i += GEMM_NR)
        for (int64_t c = 0; c < D; c += GEMM_KC)
            CDAD_K(gemm_pack_b)(to + i * D + c * GEMM_NR, &B, i, min64(GEMM_NR, n - i), c, min64(GEMM_KC, D - c));
}

/* n <= GEMM_KC */
static void pack_rows(float *to, const float *from, int64_t rs, int64_t n, int64_t D) {
    const cdad_mat B = {.data = from, .rs = rs, .cs = 1};
    for (int64_t c = 0; c < D; c += GEMM_NR)
        CDAD_K(gemm_pack_b)(to + c * n, &B, c, min64(GEMM_NR, D - c), 0, n);
}

/* s [GEMM_MR, KEYS] = the queries of a panel times n keys */
static void scores_of(float *s, const float *queries, const float *keys, int64_t n, int64_t D) {
    for (int64_t k = 0; k < n; k += GEMM_NR)
        CDAD_K(gemm_tile)(D, queries, keys + k * D, GEMM_MR, GEMM_NR, s + k, KEYS, 0, NULL);
}

/* to [rows, Dp] += a panel with n steps times the packed rows [n, D] */
static void accumulate(float *to, const float *panel, int64_t rows, const float *packed, int64_t n, int64_t D) {
    for (int64_t c = 0; c < D; c += GEMM_NR)
        CDAD_K(gemm_tile)(n, panel, packed + c * n, rows, min64(GEMM_NR, round_up(D - c, VL)), to + c, padded(D), 1, NULL);
}

static void scale_all(float *x, int64_t n, float scale) {
    for (int64_t i = 0; i < n; i++)
        x[i] *= scale;
}

/* ---- softmax ------------------------------------------------------------------------------------------------- */

/* Sets to -inf what query t does not see of the keys s0 .. s0+n-1, up to a whole number of vectors. */
static void mask_scores(float *s, const cdad_attention_dims *d, int64_t t, int64_t s0, int64_t n) {
    for (int64_t k = n; k < round_up(n, VL); k++)
        s[k] = -INFINITY;
    if (d->mask_h <= 0)
        return;
    const int64_t W = d->grid_w, y = t / W, x = t % W;
    const int64_t y0 = max64(0, y - d->mask_h / 2), y1 = min64(d->grid_h - 1, y + d->mask_h / 2);
    const int64_t x0 = max64(0, x - d->mask_w / 2), x1 = min64(W - 1, x + d->mask_w / 2);
    for (int64_t row = y0; row <= y1; row++)
        for (int64_t k = max64(row * W + x0, s0); k <= min64(row * W + x1, s0 + n - 1); k++)
            s[k - s0] = -INFINITY;
}

static inline float max_of(const float *s, int64_t n) {
    vf m = v_load(s);
    for (int64_t k = VL; k < n; k += VL)
        m = v_max(m, v_load(s + k));
    float lane[CDAD_VBYTES / 4], max = -INFINITY;
    v_store(lane, m);
    for (int64_t k = 0; k < VL; k++)
        max = lane[k] > max ? lane[k] : max;
    return max;
}

/* s = exp(s - max), zero where s is -inf; returns the sum. max_of may miss a NaN: here it comes out. */
static inline float softmax_of(float *s, int64_t n, float max) {
    const float shift = max == -INFINITY ? 0.0f : max;
    vf sum = {0};
    for (int64_t k = 0; k < n; k += VL) {
        const vf p = v_exp_below(v_load(s + k) - shift);
        v_store(s + k, p);
        sum = sum + p;
    }
    return v_sum(sum);
}

/* ---- forward --------------------------------------------------------------------------------------------------- */

static void forward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Dp = padded(D), tile = task % j->q_tiles, nl = task / j->q_tiles;
    const int64_t n = nl / d->L, l = nl % d->L, t0 = tile * QUERIES, nq = min64(QUERIES, d->T - t0);
    float *queries = (float *)(j->scratch + worker * j->worker_bytes), *keys = queries + QUERIES * D;
    float *values = keys + KEYS * D, *s = values + KEYS * Dp, *panel = s + GEMM_MR * KEYS;
    float *o = panel + GEMM_MR * KEYS, *max = o + QUERIES * Dp, *sum = max + QUERIES;
    pack_queries(queries, j->q + (n * d->T + t0) * d->q_rs + l * D, d->q_rs, nq, D);
    scale_all(queries, round_up(nq, GEMM_MR) * D, d->scale);
    memset(o, 0, (size_t)(QUERIES * Dp) * sizeof(float));
    for (int64_t i = 0; i < nq; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (int64_t s0 = 0; s0 < d->S; s0 += KEYS) {
        const int64_t seen = min64(KEYS, d->S - s0), lanes = round_up(seen, VL);
        pack_keys(keys, j->k + (n * d->S + s0) * d->k_rs + l * D, d->k_rs, seen, D);
        pack_rows(values, j->v + (n * d->S + s0) * d->v_rs + l * D, d->v_rs, seen, D);
        for (int64_t i0 = 0; i0 < nq; i0 += GEMM_MR) {
            const int64_t rows = min64(GEMM_MR, nq - i0);
            scores_of(s, queries + i0 * D, keys, seen, D);
            for (int64_t i = i0; i < i0 + rows; i++) {
                float *row = s + (i - i0) * KEYS;
                mask_scores(row, d, t0 + i, s0, seen);
                const float m = max_of(row, lanes), before = max[i], now = m > before ? m : before;
                const float alpha = before == -INFINITY ? 0.0f : expf(before - now);
                max[i] = now;
                sum[i] = sum[i] * alpha + softmax_of(row, lanes, now);
                scale_all(o + i * Dp, round_up(D, VL), alpha);
            }
            const cdad_mat p = {.data = s, .rs = KEYS, .cs = 1};
            CDAD_K(gemm_pack_a)(panel, &p, 0, rows, 0, seen);
            accumulate(o + i0 * Dp, panel, GEMM_MR, values, seen, D);
        }
    }
    for (int64_t i = 0; i < nq; i++) {
        const float total = sum[i], scale = total == 0.0f ? 0.0f : 1.0f / total;
        float *out = j->out + (n * d->T + t0 + i) * d->L * D + l * D;
        for (int64_t c = 0; c < D; c++)
            out[c] = o[i * Dp + c] * scale;
        j->lse[nl * d->T + t0 + i] = total == 0.0f ? -INFINITY : max[i] + logf(total);
    }
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

static float dot(const float *a, const float *b, int64_t n) {
    vf sum = {0};
    for (int64_t i = 0; i < n; i += VL)
        sum = sum + v_load_n(a + i, min64(VL, n - i)) * v_load_n(b + i, min64(VL, n - i));
    return v_sum(sum);
}

static void copy_rows(float *dst, int64_t rs, const float *src, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i++)
        memcpy(dst + i * rs, src + i * padded(D), (size_t)D * sizeof(float));
}

/* to [keys, Dp] += x^T [keys, nq] times the packed rows [nq, D]; x has rows KEYS apart. */
static void accumulate_transposed(float *to, const float *x, float *panel, int64_t keys, const float *packed, int64_t nq,
                                  int64_t D) {
    const cdad_mat A = {.data = x, .rs = 1, .cs = KEYS};
    for (int64_t k = 0; k < keys; k += GEMM_MR) {
        const int64_t rows = min64(GEMM_MR, keys - k);
        CDAD_K(gemm_pack_a)(panel, &A, k, rows, 0, nq);
        accumulate(to + k * padded(D), panel, rows, packed, nq, D);
    }
}

static void backward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Dp = padded(D), S = d->S, Sp = padded(S), wide = d->L * D;
    const int64_t n = task / d->L, l = task % d->L;
    float *keys = (float *)(j->scratch + worker * j->worker_bytes), *values = keys + Sp * D;
    float *key_rows = values + Sp * D, *dk = key_rows + Sp * Dp, *dv = dk + Sp * Dp;
    float *queries = dv + Sp * Dp, *grads = queries + QUERIES * D, *query_rows = grads + QUERIES * D;
    float *grad_rows = query_rows + QUERIES * Dp, *dq = grad_rows + QUERIES * Dp, *p = dq + QUERIES * Dp;
    float *ds = p + QUERIES * KEYS, *delta = ds + QUERIES * KEYS, *panel = delta + QUERIES;
    const float *k = j->k + n * S * d->k_rs + l * D, *v = j->v + n * S * d->v_rs + l * D;
    pack_keys(keys, k, d->k_rs, S, D);
    pack_keys(values, v, d->v_rs, S, D);
    for (int64_t s0 = 0; s0 < S; s0 += KEYS)
        pack_rows(key_rows + s0 * Dp, k + s0 * d->k_rs, d->k_rs, min64(KEYS, S - s0), D);
    memset(dk, 0, (size_t)(2 * Sp * Dp) * sizeof(float));
    for (int64_t t = 0; t < d->T; t += QUERIES) {
        const int64_t nq = min64(QUERIES, d->T - t);
        const float *q = j->q + (n * d->T + t) * d->q_rs + l * D, *out = j->o + (n * d->T + t) * wide + l * D;
        const float *dout = j->dout + (n * d->T + t) * wide + l * D;
        pack_queries(queries, q, d->q_rs, nq, D);
        scale_all(queries, round_up(nq, GEMM_MR) * D, d->scale);
        pack_queries(grads, dout, wide, nq, D);
        pack_rows(query_rows, q, d->q_rs, nq, D);
        pack_rows(grad_rows, dout, wide, nq, D);
        memset(dq, 0, (size_t)(QUERIES * Dp) * sizeof(float));
        for (int64_t i = 0; i < nq; i++)
            delta[i] = dot(out + i * wide, dout + i * wide, D);
        for (int64_t s0 = 0; s0 < S; s0 += KEYS) {
            const int64_t seen = min64(KEYS, S - s0);
            for (int64_t i0 = 0; i0 < nq; i0 += GEMM_MR) {
                scores_of(p + i0 * KEYS, queries + i0 * D, keys + s0 * D, seen, D);
                scores_of(ds + i0 * KEYS, grads + i0 * D, values + s0 * D, seen, D);
            }
            for (int64_t i = 0; i < nq; i++) {
                float *row = p + i * KEYS, *g = ds + i * KEYS;
                mask_scores(row, d, t + i, s0, seen);
                softmax_of(row, round_up(seen, VL), j->stats[task * d->T + t + i]);
                for (int64_t c = 0; c < seen; c += VL)
                    v_store(g + c, v_load(row + c) * (v_load(g + c) - delta[i]) * d->scale);
            }
            for (int64_t i0 = 0; i0 < nq; i0 += GEMM_MR) {
                const cdad_mat A = {.data = ds + i0 * KEYS, .rs = KEYS, .cs = 1};
                CDAD_K(gemm_pack_a)(panel, &A, 0, min64(GEMM_MR, nq - i0), 0, seen);
                accumulate(dq + i0 * Dp, panel, GEMM_MR, key_rows + s0 * Dp, seen, D);
            }
            accumulate_transposed(dk + s0 * Dp, ds, panel, seen, query_rows, nq, D);
            accumulate_transposed(dv + s0 * Dp, p, panel, seen, grad_rows, nq, D);
        }
        copy_rows(j->dq + (n * d->T + t) * wide + l * D, wide, dq, nq, D);
    }
    copy_rows(j->dk + n * S * wide + l * D, wide, dk, S, D);
    copy_rows(j->dv + n * S * wide + l * D, wide, dv, S, D);
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

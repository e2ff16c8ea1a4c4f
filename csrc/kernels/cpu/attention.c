/* Attention by tiles of keys, forward (online softmax) and backward (probabilities recomputed from lse; Dao et
 * al. 2022): the T x S matrix is never written. The neighbour mask is computed where a tile meets it. */
#include <math.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/vmath.h"

#define NV 4         /* vectors of a key tile */
#define TK (NV * VL) /* keys of a tile */
#define MQ 4         /* queries of a register block */
#define TQ 64        /* queries of a forward task */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Scratch of a worker, in floats: forward kt [D,TK], vp [TK,Dp], q [MQ,D], s [MQ,TK], o [TQ,Dp], max and
 * sum [TQ]; backward kt, vt [D,Sp], kp, dk, dv [Sp,Dp], q, g [MQ,Dp], dq [MQ,Dp], s, ds [MQ,TK]. */
static int64_t forward_floats(const cdad_attention_dims *d) {
    const int64_t Dp = round_up(d->D, VL);
    return d->D * TK + TK * Dp + MQ * d->D + MQ * TK + TQ * Dp + 2 * TQ;
}
static int64_t backward_floats(const cdad_attention_dims *d) {
    const int64_t Dp = round_up(d->D, VL), Sp = round_up(d->S, TK);
    return 2 * d->D * Sp + 3 * Sp * Dp + 3 * MQ * Dp + 2 * MQ * TK;
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

/* dst [D, ld] <- the transpose of n rows of D floats, columns 0 .. width-1; missing keys are zero. */
static void pack_transposed(float *dst, int64_t ld, const float *src, int64_t rs, int64_t n, int64_t width,
                            int64_t D) {
    for (int64_t c = 0; c < D; c++) {
        for (int64_t i = 0; i < n; i++)
            dst[c * ld + i] = src[i * rs + c];
        for (int64_t i = n; i < width; i++)
            dst[c * ld + i] = 0.0f;
    }
}

/* dst [rows, Dp] <- n rows of D floats, zero elsewhere. */
static void pack_rows(float *dst, int64_t Dp, const float *src, int64_t rs, int64_t n, int64_t rows,
                      int64_t D) {
    memset(dst, 0, (size_t)(rows * Dp) * sizeof(float));
    for (int64_t i = 0; i < n; i++)
        memcpy(dst + i * Dp, src + i * rs, (size_t)D * sizeof(float));
}

/* s [MQ,TK] = a [MQ,D] (row stride lda) times kt [D, ld] */
static inline void tile_product(float *s, const float *a, int64_t lda, const float *kt, int64_t ld,
                                int64_t D) {
    vf acc[MQ][NV];
    V_UNROLL
    for (int i = 0; i < MQ; i++) {
        V_UNROLL
        for (int j = 0; j < NV; j++)
            acc[i][j] = (vf){0};
    }
    for (int64_t c = 0; c < D; c++) {
        vf b[NV];
        V_UNROLL
        for (int j = 0; j < NV; j++)
            b[j] = v_load(kt + c * ld + j * VL);
        V_UNROLL
        for (int i = 0; i < MQ; i++) {
            const vf x = v_set1(a[i * lda + c]);
            V_UNROLL
            for (int j = 0; j < NV; j++)
                acc[i][j] = acc[i][j] + x * b[j];
        }
    }
    V_UNROLL
    for (int i = 0; i < MQ; i++) {
        V_UNROLL
        for (int j = 0; j < NV; j++)
            v_store(s + i * TK + j * VL, acc[i][j]);
    }
}

/* o [MQ,Dp] = o * alpha + s [MQ,n] times rows [n, Dp] */
static inline void tile_accumulate(float *o, const float *alpha, const float *s, const float *rows, int64_t n,
                                   int64_t Dp) {
    for (int64_t c = 0; c < Dp; c += VL) {
        vf acc[MQ];
        V_UNROLL
        for (int i = 0; i < MQ; i++)
            acc[i] = v_load(o + i * Dp + c) * alpha[i];
        for (int64_t k = 0; k < n; k++) {
            const vf r = v_load(rows + k * Dp + c);
            V_UNROLL
            for (int i = 0; i < MQ; i++)
                acc[i] = acc[i] + r * s[i * TK + k];
        }
        V_UNROLL
        for (int i = 0; i < MQ; i++)
            v_store(o + i * Dp + c, acc[i]);
    }
}

/* Scales the scores of query t against keys s0 .. s0+n-1 and sets to -inf what it does not see. */
static inline void mask_scores(float *s, const cdad_attention_dims *d, int64_t t, int64_t s0, int64_t n) {
    const float hidden = -INFINITY;
    for (int64_t j = 0; j < NV; j++)
        v_store(s + j * VL, v_load(s + j * VL) * d->scale);
    for (int64_t k = n; k < TK; k++)
        s[k] = hidden;
    if (d->mask_h <= 0)
        return;
    const int64_t W = d->grid_w, y = t / W, x = t % W;
    const int64_t y0 = max64(0, y - d->mask_h / 2), y1 = min64(d->grid_h - 1, y + d->mask_h / 2);
    const int64_t x0 = max64(0, x - d->mask_w / 2), x1 = min64(W - 1, x + d->mask_w / 2);
    for (int64_t row = y0; row <= y1; row++)
        for (int64_t k = max64(row * W + x0, s0); k <= min64(row * W + x1, s0 + n - 1); k++)
            s[k - s0] = hidden;
}

static inline float tile_max(const float *s) {
    vf m = v_load(s);
    for (int64_t j = 1; j < NV; j++)
        m = v_max(m, v_load(s + j * VL));
    float lane[CDAD_VBYTES / 4], max = -INFINITY;
    v_store(lane, m);
    for (int64_t k = 0; k < VL; k++)
        max = lane[k] > max ? lane[k] : max;
    return max;
}

/* s = exp(s - max) over a tile, zero where s is -inf; returns the sum. tile_max may miss a NaN: here it comes
 * out, also where the maximum is -inf. */
static inline float tile_exp(float *s, float max) {
    vf sum = {0};
    for (int64_t j = 0; j < NV; j++) {
        const vf x = v_load(s + j * VL), p = v_select(x == -INFINITY, (vf){0}, v_exp(x - max));
        v_store(s + j * VL, p);
        sum = sum + p;
    }
    return v_sum(sum);
}

static void forward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Dp = round_up(D, VL), tile = task % j->q_tiles, nl = task / j->q_tiles;
    const int64_t n = nl / d->L, l = nl % d->L, t0 = tile * TQ, nq = min64(TQ, d->T - t0);
    float *kt = (float *)(j->scratch + worker * j->worker_bytes), *vp = kt + D * TK, *qs = vp + TK * Dp;
    float *s = qs + MQ * D, *o = s + MQ * TK, *max = o + TQ * Dp, *sum = max + TQ;
    const float *q = j->q + (n * d->T + t0) * d->q_rs + l * D;
    memset(o, 0, (size_t)(TQ * Dp) * sizeof(float));
    for (int64_t i = 0; i < TQ; i++) {
        max[i] = -INFINITY;
        sum[i] = 0.0f;
    }
    for (int64_t s0 = 0; s0 < d->S; s0 += TK) {
        const int64_t keys = min64(TK, d->S - s0);
        pack_transposed(kt, TK, j->k + (n * d->S + s0) * d->k_rs + l * D, d->k_rs, keys, TK, D);
        pack_rows(vp, Dp, j->v + (n * d->S + s0) * d->v_rs + l * D, d->v_rs, keys, TK, D);
        for (int64_t i0 = 0; i0 < nq; i0 += MQ) {
            float alpha[MQ];
            for (int64_t i = 0; i < MQ; i++) /* a short last block repeats its last query */
                memcpy(qs + i * D, q + min64(i0 + i, nq - 1) * d->q_rs, (size_t)D * sizeof(float));
            tile_product(s, qs, D, kt, TK, D);
            for (int64_t i = 0; i < MQ; i++) {
                float *row = s + i * TK;
                alpha[i] = 1.0f;
                if (i0 + i >= nq) {
                    memset(row, 0, TK * sizeof(float));
                    continue;
                }
                mask_scores(row, d, t0 + i0 + i, s0, keys);
                const float m = tile_max(row), before = max[i0 + i];
                const float now = m > before ? m : before;
                alpha[i] = before == -INFINITY ? 0.0f : expf(before - now);
                max[i0 + i] = now;
                sum[i0 + i] = sum[i0 + i] * alpha[i] + tile_exp(row, now);
            }
            tile_accumulate(o + i0 * Dp, alpha, s, vp, keys, Dp);
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
                 .q_tiles = (d->T + TQ - 1) / TQ};
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

/* dst [n, Dp] += s^T [n, MQ] times rows [MQ, Dp] */
static inline void tile_outer(float *dst, const float *s, const float *rows, int64_t n, int64_t Dp) {
    for (int64_t c = 0; c < Dp; c += VL) {
        vf r[MQ];
        V_UNROLL
        for (int i = 0; i < MQ; i++)
            r[i] = v_load(rows + i * Dp + c);
        for (int64_t k = 0; k < n; k++) {
            vf acc = v_load(dst + k * Dp + c);
            V_UNROLL
            for (int i = 0; i < MQ; i++)
                acc = acc + r[i] * s[i * TK + k];
            v_store(dst + k * Dp + c, acc);
        }
    }
}

static void copy_rows(float *dst, int64_t rs, const float *src, int64_t Dp, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i++)
        memcpy(dst + i * rs, src + i * Dp, (size_t)D * sizeof(float));
}

static void backward_task(void *arg, int64_t task, int worker) {
    const job *j = arg;
    const cdad_attention_dims *d = j->d;
    const int64_t D = d->D, Dp = round_up(D, VL), S = d->S, Sp = round_up(S, TK), wide = d->L * D;
    const int64_t n = task / d->L, l = task % d->L;
    float *kt = (float *)(j->scratch + worker * j->worker_bytes), *vt = kt + D * Sp, *kp = vt + D * Sp;
    float *dk = kp + Sp * Dp, *dv = dk + Sp * Dp, *qs = dv + Sp * Dp, *gs = qs + MQ * Dp, *dq = gs + MQ * Dp;
    float *p = dq + MQ * Dp, *ds = p + MQ * TK;
    const float ones[MQ] = {1.0f, 1.0f, 1.0f, 1.0f};
    pack_transposed(kt, Sp, j->k + n * S * d->k_rs + l * D, d->k_rs, S, Sp, D);
    pack_transposed(vt, Sp, j->v + n * S * d->v_rs + l * D, d->v_rs, S, Sp, D);
    pack_rows(kp, Dp, j->k + n * S * d->k_rs + l * D, d->k_rs, S, Sp, D);
    memset(dk, 0, (size_t)(2 * Sp * Dp) * sizeof(float));
    for (int64_t t = 0; t < d->T; t += MQ) {
        const int64_t nq = min64(MQ, d->T - t);
        const float *out = j->o + (n * d->T + t) * wide + l * D,
                    *dout = j->dout + (n * d->T + t) * wide + l * D;
        float delta[MQ] = {0};
        pack_rows(qs, Dp, j->q + (n * d->T + t) * d->q_rs + l * D, d->q_rs, nq, MQ, D);
        pack_rows(gs, Dp, dout, wide, nq, MQ, D);
        memset(dq, 0, (size_t)(MQ * Dp) * sizeof(float));
        for (int64_t i = 0; i < nq; i++)
            for (int64_t c = 0; c < D; c++)
                delta[i] += out[i * wide + c] * dout[i * wide + c];
        for (int64_t s0 = 0; s0 < S; s0 += TK) {
            const int64_t keys = min64(TK, S - s0);
            tile_product(p, qs, Dp, kt + s0, Sp, D);
            tile_product(ds, gs, Dp, vt + s0, Sp, D);
            for (int64_t i = 0; i < MQ; i++) {
                float *row = p + i * TK, *g = ds + i * TK;
                if (i >= nq) {
                    memset(row, 0, TK * sizeof(float));
                    memset(g, 0, TK * sizeof(float));
                    continue;
                }
                mask_scores(row, d, t + i, s0, keys);
                tile_exp(row, j->stats[task * d->T + t + i]);
                for (int64_t v = 0; v < NV; v++)
                    v_store(g + v * VL, v_load(row + v * VL) * (v_load(g + v * VL) - delta[i]) * d->scale);
            }
            tile_accumulate(dq, ones, ds, kp + s0 * Dp, keys, Dp);
            tile_outer(dk + s0 * Dp, ds, qs, keys, Dp);
            tile_outer(dv + s0 * Dp, p, gs, keys, Dp);
        }
        copy_rows(j->dq + (n * d->T + t) * wide + l * D, wide, dq, Dp, nq, D);
    }
    copy_rows(j->dk + n * S * wide + l * D, wide, dk, Dp, S, D);
    copy_rows(j->dv + n * S * wide + l * D, wide, dv, Dp, S, D);
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

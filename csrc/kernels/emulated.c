/* The emulated device.
 *
 * An allocation is a range of addresses without any access rights, the device's, and memory behind it, the shadow. A
 * kernel's wrapper turns each device address into the shadow's and calls the host's kernel of ctx->host_kernels. An
 * address that is not inside a live allocation is recorded, and the kernel is not run: the next check tells. */
#include "kernels/devices.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/memory.h"
#include "kernels/kernels.h"

typedef struct block {
    char *address, *shadow;
    int64_t bytes, mapped;
} block;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static block *blocks; /* in no order */
static int64_t n_blocks, capacity, total, peak;
static char failure[160]; /* of a kernel, "" when there is none */

/* The shadow of `bytes` from p on, or NULL: they are not the device's. */
static void *shadow_of(const void *p, int64_t bytes) {
    void *found = NULL;
    pthread_mutex_lock(&mutex);
    for (int64_t i = 0; i < n_blocks && !found; i++) {
        const int64_t at = (int64_t)((uintptr_t)p - (uintptr_t)blocks[i].address);
        if (at >= 0 && at + bytes <= blocks[i].bytes)
            found = blocks[i].shadow + at;
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

static cdad_status device_alloc(cdad_device *d, void **out, int64_t bytes, cdad_error *err) {
    cdad_status status = CDAD_OK;
    const int64_t mapped = (bytes + 4096) / 4096 * 4096; /* at least one byte more: the end is an address of nobody */
    block b = {.bytes = bytes, .mapped = mapped};
    (void)d;
    *out = NULL;
    CDAD_TRY(cdad_alloc((void **)&b.shadow, bytes, err));
    b.address = mmap(NULL, (size_t)mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b.address == MAP_FAILED) {
        cdad_free(b.shadow);
        return cdad_fail(err, CDAD_NO_MEMORY, "emulated device: no addresses for %lld bytes", (long long)bytes);
    }
    pthread_mutex_lock(&mutex);
    status = cdad_grow((void **)&blocks, n_blocks, &capacity, sizeof *blocks, err);
    if (status == CDAD_OK) {
        blocks[n_blocks++] = b;
        total += bytes;
        peak = total > peak ? total : peak;
        *out = b.address;
    }
    pthread_mutex_unlock(&mutex);
    if (status != CDAD_OK) {
        munmap(b.address, (size_t)mapped);
        cdad_free(b.shadow);
    }
    return status;
}

static void device_release(cdad_device *d, void *p) {
    block b = {0};
    (void)d;
    pthread_mutex_lock(&mutex);
    for (int64_t i = 0; i < n_blocks && !b.address; i++)
        if (blocks[i].address == p) {
            b = blocks[i];
            blocks[i] = blocks[--n_blocks];
            total -= b.bytes;
        }
    pthread_mutex_unlock(&mutex);
    if (!b.address)
        return;
    munmap(b.address, (size_t)b.mapped);
    cdad_free(b.shadow);
}

static cdad_status no_memory_of_device(const char *what, cdad_error *err) {
    return cdad_fail(err, CDAD_INVALID, "emulated device: %s an address that is not the device's", what);
}

static cdad_status device_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    void *shadow = shadow_of(to, bytes);
    (void)d;
    return shadow ? cdad_device_upload(NULL, shadow, from, bytes, err) : no_memory_of_device("upload to", err);
}

static cdad_status device_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    const void *shadow = shadow_of(from, bytes);
    (void)d;
    return shadow ? cdad_device_download(NULL, to, shadow, bytes, err) : no_memory_of_device("download from", err);
}

static cdad_status device_copy(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    void *target = shadow_of(to, bytes);
    const void *source = shadow_of(from, bytes);
    (void)d;
    return target && source ? cdad_device_copy(NULL, target, source, bytes, err) : no_memory_of_device("copy of", err);
}

static cdad_status device_zero(cdad_device *d, void *to, int64_t bytes, cdad_error *err) {
    void *shadow = shadow_of(to, bytes);
    (void)d;
    return shadow ? cdad_device_zero(NULL, shadow, bytes, err) : no_memory_of_device("zeros to", err);
}

static cdad_status device_check(cdad_device *d, int wait, cdad_error *err) {
    cdad_status status = CDAD_OK;
    (void)d;
    (void)wait;
    pthread_mutex_lock(&mutex);
    if (failure[0])
        status = cdad_fail(err, CDAD_INVALID, "%s", failure);
    failure[0] = 0;
    pthread_mutex_unlock(&mutex);
    return status;
}

/* All is done when a call returns; streams are those that any device has. */
static cdad_status device_order(cdad_device *d, void *stream, int ours_first, cdad_error *err) {
    (void)d, (void)ours_first;
    CDAD_FAIL_IF((uintptr_t)stream > 2, err, CDAD_INVALID, "emulated device: there is no stream %p", stream);
    return CDAD_OK;
}

static cdad_device_memory device_memory(cdad_device *d, int forget_peak) {
    (void)d;
    pthread_mutex_lock(&mutex);
    const cdad_device_memory memory = {.used = total, .peak = peak};
    peak = forget_peak ? total : peak;
    pthread_mutex_unlock(&mutex);
    return memory;
}

/* Turns *p, a device's address or NULL, into the shadow's; 0 when it is neither. */
static int turn(const char *kernel, const char *operand, const void *p) {
    const void **at = (const void **)(uintptr_t)p;
    if (!*at)
        return 1;
    const void *shadow = shadow_of(*at, 0); /* scratch of no bytes may begin where its memory ends */
    if (!shadow) {
        pthread_mutex_lock(&mutex);
        snprintf(failure, sizeof failure, "emulated device: %s of %s is not in the device's memory", operand, kernel);
        pthread_mutex_unlock(&mutex);
        return 0;
    }
    *at = shadow;
    return 1;
}

#define TURN(p) turn(__func__, #p, &(p))
/* Of a structure that may be absent: a turned copy in `own`, to which `p` then points. */
#define TURN_EPILOGUE(p, own) \
    (!(p) || ((own) = *(p), (p) = &(own), TURN((own).bias) && TURN((own).sum)))

static void gemm(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C,
                 int64_t ldc, const cdad_epilogue *with, void *scratch) {
    cdad_epilogue own;
    if (TURN(A.data) && TURN(B.data) && TURN(C) && TURN_EPILOGUE(with, own) && TURN(scratch))
        ctx->host_kernels->gemm(ctx, M, N, K, A, B, C, ldc, with, scratch);
}

/* As continual/gram.c does on the host. */
enum { GRAM_TILE = 2 * CDAD_GRAM_SIDE };
static void gram_add(const cdad_context *ctx, double *G, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16, void *scratch) {
    if (!TURN(G) || !TURN(X.data) || !TURN(scratch))
        return;
    float *const tile = scratch, *const panels = tile + GRAM_TILE * GRAM_TILE;
    ctx->host_kernels->gram_pack(ctx, panels, X, first, rows, d, bf16);
    for (int64_t i = 0; i < d; i += GRAM_TILE)
        for (int64_t j = i; j < d; j += GRAM_TILE)
            ctx->host_kernels->gram_tile(G + i * d + j, d, panels, rows, d, i, j, GRAM_TILE, bf16, tile);
}

static void sketch_add(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                       const int32_t *signs, int64_t M, int rounded, void *scratch) {
    if (TURN(Y) && TURN(squares) && TURN(X.data) && TURN(signs) && TURN(scratch))
        ctx->host_kernels->sketch_add(ctx, Y, squares, X, first, rows, d, signs, M, rounded, scratch);
}

static void winograd(const cdad_context *ctx, float *y, const float *x, cdad_mat w, int64_t tap_r, int64_t tap_s,
                     const cdad_epilogue *with, const cdad_unfold *u, int64_t O, int m, void *scratch) {
    cdad_epilogue own;
    if (TURN(y) && TURN(x) && TURN(w.data) && TURN_EPILOGUE(with, own) && TURN(scratch))
        ctx->host_kernels->winograd(ctx, y, x, w, tap_r, tap_s, with, u, O, m, scratch);
}

static void winograd_grad(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold *u,
                          int64_t O, int m, void *scratch) {
    if (TURN(dw) && TURN(x) && TURN(dy) && TURN(scratch))
        ctx->host_kernels->winograd_grad(ctx, dw, x, dy, u, O, m, scratch);
}

static void narrow_conv2d(const cdad_context *ctx, cdad_pixels y, const float *x, cdad_mat w, const cdad_epilogue *with,
                          const cdad_unfold *u, int64_t O, void *scratch) {
    cdad_epilogue own;
    if (TURN(y.data) && TURN(x) && TURN(w.data) && TURN_EPILOGUE(with, own) && TURN(scratch))
        ctx->host_kernels->narrow_conv2d(ctx, y, x, w, with, u, O, scratch);
}

static void narrow_conv2d_grad_weight(const cdad_context *ctx, float *dw, const float *dy, const float *x,
                                      const cdad_unfold *u, int64_t O, void *scratch) {
    if (TURN(dw) && TURN(dy) && TURN(x) && TURN(scratch))
        ctx->host_kernels->narrow_conv2d_grad_weight(ctx, dw, dy, x, u, O, scratch);
}

static void depthwise_conv2d(const cdad_context *ctx, float *y, const float *x, const float *w, const float *bias,
                             const cdad_unfold *u) {
    if (TURN(y) && TURN(x) && TURN(w) && TURN(bias))
        ctx->host_kernels->depthwise_conv2d(ctx, y, x, w, bias, u);
}

static void depthwise_conv2d_grad(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
                                  const float *w, const float *dy, const cdad_unfold *u) {
    if (TURN(dx) && TURN(dw) && TURN(db) && TURN(x) && TURN(w) && TURN(dy))
        ctx->host_kernels->depthwise_conv2d_grad(ctx, dx, dw, db, x, w, dy, u);
}

static void max_pool2d(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->max_pool2d(ctx, y, x, u);
}

static void max_pool2d_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, const cdad_unfold *u) {
    if (TURN(dx) && TURN(x) && TURN(dy))
        ctx->host_kernels->max_pool2d_grad(ctx, dx, x, dy, u);
}

static void activation(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->activation(ctx, y, x, n, act);
}

static void activation_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
                            cdad_activation act) {
    if (TURN(dx) && TURN(x) && TURN(dy))
        ctx->host_kernels->activation_grad(ctx, dx, x, dy, n, act);
}

static void affine(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->affine(ctx, y, x, n, a, b);
}

static void binary(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast *bc,
                   cdad_binary op) {
    if (TURN(y) && TURN(a) && TURN(b))
        ctx->host_kernels->binary(ctx, y, a, b, bc, op);
}

static void reduce(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch) {
    if (TURN(y) && TURN(x) && TURN(scratch))
        ctx->host_kernels->reduce(ctx, y, x, bc, scratch);
}

static void geglu(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->geglu(ctx, y, x, n, D);
}

static void geglu_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n, int64_t D) {
    if (TURN(dx) && TURN(x) && TURN(dy))
        ctx->host_kernels->geglu_grad(ctx, dx, x, dy, n, D);
}

static void group_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                       const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu, void *scratch) {
    if (TURN(y) && TURN(mean) && TURN(rstd) && TURN(x) && TURN(gamma) && TURN(beta) && TURN(scratch))
        ctx->host_kernels->group_norm(ctx, y, mean, rstd, x, gamma, beta, N, HW, C, G, eps, silu, scratch);
}

static void group_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *beta,
                            const float *dy, int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch) {
    if (TURN(dx) && TURN(dgamma) && TURN(dbeta) && TURN(x) && TURN(mean) && TURN(rstd) && TURN(gamma) && TURN(beta) &&
        TURN(dy) && TURN(scratch))
        ctx->host_kernels->group_norm_grad(ctx, dx, dgamma, dbeta, x, mean, rstd, gamma, beta, dy, N, HW, C, G, silu,
                                           scratch);
}

static void layer_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                       const float *beta, int64_t n, int64_t C, float eps) {
    if (TURN(y) && TURN(mean) && TURN(rstd) && TURN(x) && TURN(gamma) && TURN(beta))
        ctx->host_kernels->layer_norm(ctx, y, mean, rstd, x, gamma, beta, n, C, eps);
}

static void layer_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n,
                            int64_t C, void *scratch) {
    if (TURN(dx) && TURN(dgamma) && TURN(dbeta) && TURN(x) && TURN(mean) && TURN(rstd) && TURN(gamma) && TURN(dy) &&
        TURN(scratch))
        ctx->host_kernels->layer_norm_grad(ctx, dx, dgamma, dbeta, x, mean, rstd, gamma, dy, n, C, scratch);
}

static void attention(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                      const cdad_attention_dims *dims, void *scratch) {
    if (TURN(out) && TURN(lse) && TURN(q) && TURN(k) && TURN(v) && TURN(scratch))
        ctx->host_kernels->attention(ctx, out, lse, q, k, v, dims, scratch);
}

static void attention_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                           const float *v, const float *out, const float *lse, const float *dout,
                           const cdad_attention_dims *dims, void *scratch) {
    if (TURN(dq) && TURN(dk) && TURN(dv) && TURN(q) && TURN(k) && TURN(v) && TURN(out) && TURN(lse) && TURN(dout) &&
        TURN(scratch))
        ctx->host_kernels->attention_grad(ctx, dq, dk, dv, q, k, v, out, lse, dout, dims, scratch);
}

static void upsample2x(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W, int64_t C) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->upsample2x(ctx, y, x, N, H, W, C);
}

static void upsample2x_grad(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H, int64_t W,
                            int64_t C) {
    if (TURN(dx) && TURN(dy))
        ctx->host_kernels->upsample2x_grad(ctx, dx, dy, N, H, W, C);
}

static void resize_bilinear(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
                            int64_t C, int64_t P, int64_t Q) {
    if (TURN(y) && TURN(x))
        ctx->host_kernels->resize_bilinear(ctx, y, x, N, H, W, C, P, Q);
}

static void copy_runs(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs) {
    if (TURN(dst) && TURN(src))
        ctx->host_kernels->copy_runs(ctx, dst, src, runs);
}

static void timestep_embedding(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D) {
    if (TURN(y) && TURN(t))
        ctx->host_kernels->timestep_embedding(ctx, y, t, N, D);
}

/* 1 where an address is not the device's, too: the next check tells that, not an id. */
static int gather_rows(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n, int64_t rows,
                       int64_t C) {
    return TURN(y) && TURN(table) && TURN(ids) ? ctx->host_kernels->gather_rows(ctx, y, table, ids, n, rows, C) : 1;
}

static int scatter_rows(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n, int64_t rows,
                        int64_t C) {
    return TURN(dtable) && TURN(dy) && TURN(ids) ? ctx->host_kernels->scatter_rows(ctx, dtable, dy, ids, n, rows, C) : 1;
}

static void mse(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n, int64_t m) {
    if (TURN(y) && TURN(per) && TURN(a) && TURN(b))
        ctx->host_kernels->mse(ctx, y, per, a, b, n, m);
}

static void mse_grad(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g, int64_t n,
                     int64_t m) {
    if (TURN(da) && TURN(a) && TURN(b) && TURN(g))
        ctx->host_kernels->mse_grad(ctx, da, a, b, g, n, m);
}

static void sum_squares(const cdad_context *ctx, double *to, const float *x, int64_t n) {
    if (TURN(to) && TURN(x))
        ctx->host_kernels->sum_squares(ctx, to, x, n);
}

static void sum_squares_pulled(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n,
                               const cdad_pull *pull) {
    cdad_pull own = *pull;
    if (TURN(to) && TURN(g) && TURN(w) && TURN(own.importance) && TURN(own.anchor))
        ctx->host_kernels->sum_squares_pulled(ctx, to, g, w, n, &own);
}

static void add_magnitudes(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares) {
    if (TURN(sum) && TURN(g))
        ctx->host_kernels->add_magnitudes(ctx, sum, g, n, squares);
}

static void adamw(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g, int64_t n,
                  const cdad_adamw *h) {
    cdad_adamw own = *h;
    if (TURN(w) && TURN(m) && TURN(v) && TURN(e) && TURN(du) && TURN(g) && TURN(own.pull.importance) &&
        TURN(own.pull.anchor) && TURN(own.path) && TURN(own.squares) && TURN(own.m_most) && TURN(own.v_most))
        ctx->host_kernels->adamw(ctx, w, m, v, e, du, g, n, &own);
}

static void add_to(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay) {
    if (TURN(w) && TURN(e) && TURN(du))
        ctx->host_kernels->add_to(ctx, w, e, du, n, ema_decay);
}

static void sum_squares_each(const cdad_context *ctx, const float *w, const cdad_update *updates, int64_t count, const cdad_pull *pull) {
    for (const cdad_update *u = updates; u < updates + count; u++) {
        const cdad_pull own = cdad_pull_at(*pull, u->at);
        if (own.importance)
            sum_squares_pulled(ctx, u->squares, u->g, w + u->at, u->n, &own);
        else
            sum_squares(ctx, u->squares, u->g, u->n);
    }
}

static void adamw_each(const cdad_context *ctx, float *w, float *e, const cdad_update *updates, int64_t count, const cdad_adamw *h) {
    for (const cdad_update *u = updates; u < updates + count; u++) {
        cdad_adamw own = cdad_adamw_at(*h, u->at);
        const double *squares = u->squares;
        if (!TURN(squares) || !isfinite(*squares))
            continue;
        own.squares = u->squares;
        adamw(ctx, w + u->at, u->m, u->v, e && !own.anchor ? e + u->at : NULL, NULL, u->g, u->n, &own);
        if (own.anchor) {
            add_to(ctx, (float *)(uintptr_t)own.anchor, w + u->at, NULL, u->n, u->stays);
            add_to(ctx, w + u->at, e ? e + u->at : NULL, NULL, u->n, own.ema_decay);
        }
    }
}

/* Scratch is asked for with the device's table alone: the largest of the host's tables. */
#define SCRATCH(slot, params, args)                                                \
    static int64_t slot params {                                                   \
        int64_t most = 0;                                                          \
        for (int i = 0; cdad_kernels_at(i); i++) {                                 \
            const int64_t bytes = cdad_kernels_at(i)->slot args;                   \
            most = bytes > most ? bytes : most;                                    \
        }                                                                          \
        return most;                                                               \
    }
SCRATCH(gemm_scratch, (int64_t M, int64_t N, int64_t K, int threads), (M, N, K, threads))
SCRATCH(gram_panels, (int64_t rows, int64_t d, int bf16), (rows, d, bf16))
SCRATCH(sketch_scratch, (int64_t rows, int64_t d, int64_t M, int rounded, int threads), (rows, d, M, rounded, threads))
SCRATCH(winograd_scratch, (const cdad_unfold *u, int64_t O, int m, int threads), (u, O, m, threads))
SCRATCH(winograd_grad_scratch, (const cdad_unfold *u, int64_t O, int m, int threads), (u, O, m, threads))
SCRATCH(narrow_conv2d_scratch, (const cdad_unfold *u, int64_t O, int threads), (u, O, threads))
SCRATCH(narrow_conv2d_grad_weight_scratch, (const cdad_unfold *u, int64_t O, int threads), (u, O, threads))
SCRATCH(reduce_scratch, (const cdad_broadcast *bc), (bc))
SCRATCH(group_norm_scratch, (int64_t N, int64_t HW, int64_t C, int64_t G), (N, HW, C, G))
SCRATCH(layer_norm_grad_scratch, (int64_t n, int64_t C), (n, C))
SCRATCH(attention_scratch, (const cdad_attention_dims *dims, int threads), (dims, threads))

static int64_t gram_scratch(int64_t rows, int64_t d, int bf16) {
    return gram_panels(rows, d, bf16) + GRAM_TILE * GRAM_TILE * (int64_t)sizeof(float);
}

#define SLOT(name) .name = name
static const cdad_kernels kernels = {
    .name = "emulated",
    SLOT(gemm),
    SLOT(gemm_scratch),
    SLOT(gram_add),
    SLOT(gram_scratch),
    SLOT(sketch_add),
    SLOT(sketch_scratch),
    SLOT(winograd),
    SLOT(winograd_scratch),
    SLOT(winograd_grad),
    SLOT(winograd_grad_scratch),
    SLOT(narrow_conv2d),
    SLOT(narrow_conv2d_scratch),
    SLOT(narrow_conv2d_grad_weight),
    SLOT(narrow_conv2d_grad_weight_scratch),
    SLOT(depthwise_conv2d),
    SLOT(depthwise_conv2d_grad),
    SLOT(max_pool2d),
    SLOT(max_pool2d_grad),
    SLOT(activation),
    SLOT(activation_grad),
    SLOT(affine),
    SLOT(binary),
    SLOT(reduce),
    SLOT(reduce_scratch),
    SLOT(geglu),
    SLOT(geglu_grad),
    SLOT(group_norm),
    SLOT(group_norm_grad),
    SLOT(group_norm_scratch),
    SLOT(layer_norm),
    SLOT(layer_norm_grad),
    SLOT(layer_norm_grad_scratch),
    SLOT(attention),
    SLOT(attention_grad),
    SLOT(attention_scratch),
    SLOT(upsample2x),
    SLOT(upsample2x_grad),
    SLOT(resize_bilinear),
    SLOT(copy_runs),
    SLOT(timestep_embedding),
    SLOT(gather_rows),
    SLOT(scatter_rows),
    SLOT(mse),
    SLOT(mse_grad),
    SLOT(sum_squares),
    SLOT(sum_squares_pulled),
    SLOT(add_magnitudes),
    SLOT(adamw),
    SLOT(sum_squares_each),
    SLOT(adamw_each),
    SLOT(add_to),
};

cdad_status cdad_emulated_open(cdad_device **out, cdad_error *err) {
    static cdad_device device = {.name = "emulated",
                                 .text = "the CPU's kernels behind memory that the host may not touch",
                                 .kernels = &kernels,
                                 .alloc = device_alloc,
                                 .release = device_release,
                                 .upload = device_upload,
                                 .download = device_download,
                                 .copy = device_copy,
                                 .zero = device_zero,
                                 .check = device_check,
                                 .memory = device_memory,
                                 .order = device_order,
                                 .dlpack_type = 12}; /* kDLExtDev */
    (void)err;
    *out = &device;
    return CDAD_OK;
}

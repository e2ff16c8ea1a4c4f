/* The matrix product: how its work is cut, packed and summed.
 *
 * The longer of M and N is cut into strips, one a task, that pack their own operand in cache; the other
 * operand is packed once, by all threads, and read by every strip. K is cut into blocks of GEMM_KC: an
 * element of C is ((C or 0) + block 0 + block 1 ...) + bias + sum, each block one chain of multiply-adds in
 * the order of k. So its bits depend on its row of A, its column of B and K alone, whatever M, N, the tiles and
 * the threads are.
 *
 * Gradients of weights sum over all pixels of the batch: a small C from a long K. There, and only there, K is
 * also cut into slices that sum on their own and are added in order (cut_k). Such a product is told by its
 * operands, A read transposed or B unfolded, which no forward product has; so a forward product, whose M
 * grows with the batch, is never summed in another way at another batch size.
 *
 * A product that takes B as the sum of two of bfloat16 goes over each block of k twice, once for either.
 *
 * For bfloat16 a packed panel is turned into words of two steps of k each, half as large; all else is the same, but that by
 * AMX (GEMM_TILES) the chain of a block goes on from the block before. */
#include <stddef.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

enum {
    TASKS = 16,                /* strips aimed at */
    STRIP = 160,               /* lanes of a strip at most: STRIP * GEMM_KC floats stay in an L2 cache */
    SHARED_BYTES = 64 << 20,   /* of the operand that is packed for all, unless one block of k takes more */
    SERIAL_PRODUCTS = 1 << 19, /* fewer multiply-adds are not worth waking threads for, */
    SERIAL_FLOATS = 1 << 15,   /* nor are fewer packed floats */
    SLICES = 16,               /* of K at most, */
    FEWEST_SLICES = 8,         /* and at least, or strips would share the work better */
    SLICE_BLOCKS = 4,          /* blocks of K in a slice at least */
    SLICED_SIDE = 256,         /* a sliced C is no larger than this on its shorter side, */
    SLICED_C = 1 << 16,        /* nor has more elements than this */
};

typedef struct gemm_plan {
    gemm_form form;
    int parts;                   /* 1, or, of GEMM_TILES, 2: B rounded, and what that leaves */
    int64_t M, N, K;
    int by_rows;                 /* strips are rows of A; else columns of B */
    int64_t lanes, width;        /* of the operand that is cut into strips: M or N, its panels' width */
    int64_t strip, strips;       /* lanes a strip, number of strips */
    int64_t others, other_width; /* of the shared operand */
    int64_t padded;              /* others, rounded up to whole panels */
    int64_t depth;               /* of K, packed at once: a multiple of GEMM_KC */
} gemm_plan;

typedef struct gemm_job {
    gemm_plan plan;
    cdad_mat A, B;
    float *C;
    int64_t ldc;
    cdad_epilogue with;
    float *own;            /* panels of one strip for each worker, */
    int64_t own_size;      /* in floats */
    float *shared;         /* panels of the shared operand, */
    int64_t k0, k1;        /* for these k */
    float *partial;        /* sliced: the slices' sums [slices, M, N] */
    int64_t slices, slice; /* their number, and their length in k */
} gemm_job;

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

static gemm_plan make_plan(gemm_form form, int parts, int64_t M, int64_t N, int64_t K) {
    gemm_plan p = {.form = form, .parts = parts, .M = M, .N = N, .K = K, .by_rows = M >= N};
    p.lanes = p.by_rows ? M : N;
    p.others = p.by_rows ? N : M;
    p.width = p.by_rows ? gemm_rows(form) : GEMM_NR;
    p.other_width = p.by_rows ? GEMM_NR : gemm_rows(form);
    int64_t panels = max_i(1, min_i(ceil_div(p.lanes, p.width) / TASKS, STRIP / p.width));
    p.strip = panels * p.width;
    p.strips = ceil_div(p.lanes, p.strip);
    p.padded = round_up(p.others, p.other_width);
    int64_t blocks = SHARED_BYTES / (p.padded * GEMM_KC * (int64_t)sizeof(float));
    p.depth = max_i(1, blocks) * GEMM_KC;
    return p;
}

/* The number of slices of K for a gradient of these sizes; 1: not sliced. */
static int64_t cut_k(int64_t M, int64_t N, int64_t K) {
    if (M * N > SLICED_C || min_i(M, N) > SLICED_SIDE)
        return 1;
    int64_t slices = min_i(SLICES, ceil_div(K, GEMM_KC) / SLICE_BLOCKS);
    return slices < FEWEST_SLICES ? 1 : slices;
}

/* Of the panels of a block of K, in floats a lane. GEMM_KC is whole groups. */
static int64_t steps(const gemm_job *job, int64_t kc) { return gemm_steps(job->plan.form, kc); }

/* Of one part. */
static int64_t shared_size(const gemm_plan *p) { return p->padded * gemm_steps(p->form, min_i(p->depth, p->K)); }
static int shared_parts(const gemm_plan *p) { return p->by_rows ? p->parts : 1; }
static int64_t block_steps(const gemm_plan *p) { return gemm_steps(p->form, min_i(p->K, GEMM_KC)); }
static int64_t strip_size(const gemm_plan *p) { return block_steps(p) * p->strip; }
/* A worker of a sliced product packs both operands itself. */
static int64_t sliced_size(const gemm_plan *p) { return block_steps(p) * (p->strip + p->padded); }

static int64_t bytes_of(int64_t floats) { return cdad_align_up(floats * (int64_t)sizeof(float)); }

static int64_t scratch_of(gemm_form form, int parts, int64_t M, int64_t N, int64_t K, int threads) {
    if (M <= 0 || N <= 0)
        return 0;
    gemm_plan p = make_plan(form, parts, M, N, K);
    int64_t bytes = bytes_of(shared_parts(&p) * shared_size(&p)) + threads * bytes_of(strip_size(&p));
    int64_t slices = cut_k(M, N, K);
    if (slices > 1)
        bytes = max_i(bytes, bytes_of(slices * M * N) + threads * bytes_of(sliced_size(&p)));
    return bytes;
}

/* Packs rows (of A) or columns (of B, of that part) l0 .. l1-1, panel after panel. */
static void pack(const gemm_job *job, int rows, int part, float *dst, int64_t l0, int64_t l1, int64_t k0, int64_t kc) {
    const int64_t width = rows ? gemm_rows(job->plan.form) : GEMM_NR, size = width * steps(job, kc);
    const cdad_mat *m = rows ? &job->A : &job->B;
    (void)part;
    for (int64_t l = l0; l < l1; l += width, dst += size) {
#if GEMM_AMX
        if (part && !rows) {
            CDAD_K(gemm_panel_amx_rest)(dst, m, l, min_i(width, l1 - l), k0, kc);
            continue;
        }
#endif
        CDAD_K(gemm_panel)(job->plan.form, rows, dst, m, l, min_i(width, l1 - l), k0, kc);
    }
}
static void pack_lanes(const gemm_job *job, int part, float *dst, int64_t l0, int64_t l1, int64_t k0, int64_t kc) {
    pack(job, job->plan.by_rows, part, dst, l0, l1, k0, kc);
}
static void pack_others(const gemm_job *job, int part, float *dst, int64_t o0, int64_t o1, int64_t k0, int64_t kc) {
    pack(job, !job->plan.by_rows, part, dst, o0, o1, k0, kc);
}

/* Rows of a tile that is in cache. */
static void activate_tile(float *C, int64_t ldc, int64_t rows, int64_t cols, cdad_activation act) {
    for (int64_t i = 0; i < rows; i++)
        CDAD_K(activate)(C + i * ldc, cols, act);
}

/* Of the strip's operand, what its next block of K reads, where its lanes are rows in memory. */
static gemm_ahead next_block(const gemm_job *job, int64_t l0, int64_t l1, int64_t k) {
    const cdad_mat *m = job->plan.by_rows ? &job->A : &job->B;
    const int64_t lane = job->plan.by_rows ? m->rs : m->cs, step = job->plan.by_rows ? m->cs : m->rs;
    const int64_t kc = min_i(GEMM_KC, job->plan.K - k);
    if (m->unfold || step != 1 || kc <= 0)
        return (gemm_ahead){0};
    return (gemm_ahead){.data = m->data + l0 * lane + k, .rows = l1 - l0, .stride = lane, .lines = ceil_div(kc, 16)};
}

/* A strip, lanes l0 .. l1-1, times the shared operand over one block of k. The strip's panels are read again
 * and again from the cache, the others once. `last`: after the last block; else NULL. */
static inline __attribute__((always_inline)) void multiply(const gemm_job *job, const float *strip, int64_t l0, int64_t l1, const float *shared,
                     int64_t kc, float *C, int64_t ldc, int add, const cdad_epilogue *last, gemm_ahead ahead) {
    const gemm_plan *p = &job->plan;
    const int64_t n_steps = steps(job, kc), tiles = ceil_div(p->others, p->other_width) * ceil_div(l1 - l0, p->width);
    const int64_t lines = ceil_div(ahead.rows * ahead.lines, tiles);
    const int64_t MR = gemm_rows(p->form);
    const gemm_tile_fn tile = gemm_tile_of(p->form);
    gemm_begin(p->form);
    for (int64_t o = 0; o < p->others; o += p->other_width)
        for (int64_t l = l0; l < l1; l += p->width) {
            const float *own = strip + (l - l0) * n_steps, *other = shared + o * n_steps;
            const float *a = p->by_rows ? own : other, *b = p->by_rows ? other : own;
            int64_t m = p->by_rows ? l : o, n = p->by_rows ? o : l, at = m * ldc + n;
            int64_t rows = min_i(MR, p->M - m), cols = min_i(GEMM_NR, p->N - n);
            const float *bias = last && last->bias ? last->bias + n : NULL;
            gemm_fetch(&ahead, lines);
            const float *sum = last && last->sum ? last->sum + at : NULL;
            tile(n_steps, a, b, rows, cols, C + at, ldc, add ? C + at : NULL, bias, sum);
            if (last && last->act != CDAD_ACT_NONE)
                activate_tile(C + at, ldc, rows, cols, last->act);
        }
    gemm_end(p->form);
}

static void pack_shared_panel(void *arg, int64_t panel, int worker) {
    (void)worker;
    const gemm_job *job = arg;
    const gemm_plan *p = &job->plan;
    int64_t o0 = panel * p->other_width, o1 = min_i(p->others, o0 + p->other_width);
    for (int64_t k = job->k0; k < job->k1; k += GEMM_KC) {
        int64_t kc = min_i(GEMM_KC, job->k1 - k), at = steps(job, k - job->k0) * p->padded + o0 * steps(job, kc);
        for (int part = 0; part < shared_parts(p); part++)
            pack_others(job, part, job->shared + part * shared_size(p) + at, o0, o1, k, kc);
    }
}

/* B's first part of two, of a block of K: apart from run_strip, whose loops would take more instructions with both in them. */
static __attribute__((noinline)) void add_first(const gemm_job *job, float *strip, int64_t l0, int64_t l1, const float *shared, int64_t k,
                                                int64_t kc) {
    pack_lanes(job, 0, strip, l0, l1, k, kc);
    multiply(job, strip, l0, l1, shared, kc, job->C, job->ldc, k > 0 || job->with.accumulate, NULL, (gemm_ahead){0});
}

static void run_strip(void *arg, int64_t index, int worker) {
    const gemm_job *job = arg;
    const gemm_plan *p = &job->plan;
    float *strip = job->own + worker * job->own_size;
    int64_t l0 = index * p->strip, l1 = min_i(p->lanes, l0 + p->strip);
    int64_t k = job->k0;
    do { /* once when K = 0: C is the bias, or zero */
        int64_t kc = min_i(GEMM_KC, job->k1 - k);
        const float *shared = job->shared + steps(job, k - job->k0) * p->padded;
        const int two = p->parts > 1;
        if (two)
            add_first(job, strip, l0, l1, shared, k, kc);
        if (!two || !p->by_rows)
            pack_lanes(job, two, strip, l0, l1, k, kc);
        multiply(job, strip, l0, l1, two && p->by_rows ? shared + shared_size(p) : shared, kc, job->C, job->ldc,
                 two || k > 0 || job->with.accumulate, k + kc == p->K ? &job->with : NULL, next_block(job, l0, l1, k + kc));
        k += kc;
    } while (k < job->k1);
}

static void run_slice(void *arg, int64_t index, int worker) {
    const gemm_job *job = arg;
    const gemm_plan *p = &job->plan;
    float *strip = job->own + worker * job->own_size, *other = strip + strip_size(p);
    float *sum = job->partial + index * p->M * p->N;
    int64_t first = index * job->slice, end = min_i(p->K, first + job->slice);
    for (int64_t k = first; k < end; k += GEMM_KC) {
        int64_t kc = min_i(GEMM_KC, end - k);
        pack_others(job, 0, other, 0, p->others, k, kc);
        for (int64_t l0 = 0; l0 < p->lanes; l0 += p->strip) {
            int64_t l1 = min_i(p->lanes, l0 + p->strip);
            pack_lanes(job, 0, strip, l0, l1, k, kc);
            multiply(job, strip, l0, l1, other, kc, sum, p->N, k > first, NULL, (gemm_ahead){0});
        }
    }
}

/* Row m of C: the slices' sums in order. */
static void add_slices(void *arg, int64_t m, int worker) {
    (void)worker;
    const gemm_job *job = arg;
    int64_t N = job->plan.N;
    float *C = job->C + m * job->ldc;
    const float *sum = job->with.sum ? job->with.sum + m * job->ldc : NULL, *bias = job->with.bias;
    if (!job->with.accumulate)
        memset(C, 0, (size_t)N * sizeof *C);
    for (int64_t s = 0; s < job->slices; s++)
        for (int64_t n = 0; n < N; n++)
            C[n] += job->partial[(s * job->plan.M + m) * N + n];
    for (int64_t n = 0; bias && n < N; n++)
        C[n] += bias[n];
    for (int64_t n = 0; sum && n < N; n++)
        C[n] += sum[n];
    if (job->with.act != CDAD_ACT_NONE)
        CDAD_K(activate)(C, N, job->with.act);
}

static void gemm_by(gemm_form form, int parts, const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C,
                    int64_t ldc, const cdad_epilogue *with, void *scratch) {
    if (M <= 0 || N <= 0)
        return;
    gemm_job job = {.plan = make_plan(form, parts, M, N, K), .A = A, .B = B, .C = C, .ldc = ldc};
    if (with)
        job.with = *with;
    const gemm_plan *p = &job.plan;
    cdad_pool *pool = M * N * K < SERIAL_PRODUCTS ? NULL : ctx->pool;
    char *memory = scratch;
    int is_gradient = B.unfold || (!A.unfold && A.rs == 1 && A.cs != 1);
    int64_t slices = is_gradient && parts == 1 ? cut_k(M, N, K) : 1;
    if (slices > 1) {
        job.slice = ceil_div(ceil_div(K, GEMM_KC), slices) * GEMM_KC;
        job.slices = ceil_div(K, job.slice);
        job.partial = (float *)memory;
        job.own = (float *)(memory + bytes_of(slices * M * N));
        job.own_size = bytes_of(sliced_size(p)) / (int64_t)sizeof(float);
        cdad_pool_run(pool, job.slices, run_slice, &job);
        cdad_pool_run(pool, M, add_slices, &job);
        return;
    }
    job.shared = (float *)memory;
    job.own = (float *)(memory + bytes_of(shared_parts(p) * shared_size(p)));
    job.own_size = bytes_of(strip_size(p)) / (int64_t)sizeof(float);
    do {
        job.k1 = min_i(K, job.k0 + p->depth);
        cdad_pool_run(p->padded * (job.k1 - job.k0) < SERIAL_FLOATS ? NULL : pool, ceil_div(p->others, p->other_width),
                      pack_shared_panel, &job);
        cdad_pool_run(pool, p->strips, run_strip, &job);
        job.k0 = job.k1;
    } while (job.k0 < K);
}

void CDAD_K(gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, int64_t ldc,
                  const cdad_epilogue *with, void *scratch) {
    const int words = with && with->precision == CDAD_BFLOAT16 && !with->split; /* two products of words take longer than one of floats */
    gemm_by(words ? GEMM_WORDS : GEMM_FLOATS, 1, ctx, M, N, K, A, B, C, ldc, with, scratch);
}
int64_t CDAD_K(gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads) {
    return scratch_of(GEMM_FLOATS, 1, M, N, K, threads); /* words take half */
}
double CDAD_K(bf16_speed)(void) { return 2.0; }

#if GEMM_AMX
void CDAD_K(amx_gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, int64_t ldc,
                      const cdad_epilogue *with, void *scratch) {
    const int tiles = with && with->precision == CDAD_BFLOAT16;
    gemm_by(tiles ? GEMM_TILES : GEMM_FLOATS, tiles && with->split ? 2 : 1, ctx, M, N, K, A, B, C, ldc, with, scratch);
}
int64_t CDAD_K(amx_gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads) {
    return max_i(scratch_of(GEMM_FLOATS, 1, M, N, K, threads), scratch_of(GEMM_TILES, 2, M, N, K, threads));
}
double CDAD_K(amx_bf16_speed)(void) { return 6.0; }
#endif

/* What the files of the matrix product share: the tile's shape, packing, and the product of two panels.
 *
 * A panel holds GEMM_MR rows of A or GEMM_NR columns of B ("lanes") over one block of k: element (lane, k) is
 * panel[k * width + lane]. Lanes past the matrix' edge are zero and are never stored. */
#ifndef CDAD_KERNELS_CPU_GEMM_H
#define CDAD_KERNELS_CPU_GEMM_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

#define GEMM_STEP (CDAD_VBYTES == 64 ? 4 : 2) /* tiles are 1, 2 or 3 steps high */
#define GEMM_MR (3 * GEMM_STEP)
#define GEMM_NR (2 * (CDAD_VBYTES / 4))
#define GEMM_KC 384 /* the same for all shapes: it fixes the order of summation */
#define GEMM_AMX (CDAD_VBYTES == 64) /* whether this build's forms have GEMM_TILES, too */

/* What a panel holds. GEMM_WORDS: words, each the bfloat16 of steps k = 2i (its lower half) and 2i + 1, a zero where there is
 * none. GEMM_TILES: the same, as AMX' tiles read it: for each GEMM_GROUP steps, with zeros where there are fewer, those of
 * GEMM_LANES lanes of A one lane after the other; of B as GEMM_WORDS. */
typedef enum gemm_form { GEMM_FLOATS, GEMM_WORDS, GEMM_TILES } gemm_form;
enum { GEMM_GROUP = 32, GEMM_LANES = 32 };

/* Rows of A's panels, of which B's have GEMM_NR in every form. */
static inline int64_t gemm_rows(gemm_form form) { return form == GEMM_TILES ? GEMM_LANES : GEMM_MR; }
/* Floats, or words, a lane. */
static inline int64_t gemm_steps(gemm_form form, int64_t kc) {
    if (form == GEMM_TILES)
        return (kc + GEMM_GROUP - 1) / GEMM_GROUP * (GEMM_GROUP / 2);
    return form == GEMM_WORDS ? (kc + 1) / 2 : kc;
}

/* Packs rows m0 .. m0+rows-1 (1 <= rows <= GEMM_MR), k0 .. k0+kc-1 (kc <= GEMM_KC) of A. */
void CDAD_K(gemm_pack_a)(float *panel, const cdad_mat *A, int64_t m0, int64_t rows, int64_t k0, int64_t kc);

/* Packs columns n0 .. n0+cols-1 (1 <= cols <= GEMM_NR), k0 .. k0+kc-1 of B. */
void CDAD_K(gemm_pack_b)(float *panel, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc);

/* One of both, by rows of A or columns of B, in a form: n lanes from l0 on (kc <= GEMM_KC). */
void CDAD_K(gemm_panel)(gemm_form form, int rows, float *panel, const cdad_mat *m, int64_t l0, int64_t n, int64_t k0, int64_t kc);

/* The row (or column) of the image that is read for position `at`, or -1 outside; extent is the image's. */
static inline int64_t gemm_source(int64_t at, int64_t extent, const cdad_unfold *u) {
    if (at < 0)
        return -1;
    if (u->up > 1)
        at /= u->up;
    return at < extent ? at : -1;
}

/* The kc floats of row m of an unfolded matrix. */
void CDAD_K(gemm_unfold_line)(float *line, const cdad_unfold *u, const float *x, int64_t m, int64_t k0, int64_t kc);

/* to[i*rs + k] = element (i, k) of a panel of GEMM_NR lanes, i < lanes, k < kc. */
void CDAD_K(gemm_unpack)(float *to, int64_t rs, const float *panel, int64_t lanes, int64_t kc);

/* C[i,j] = sum_k a[k,i] * b[k,j], then + add[i*ldc + j], + bias[j], + sum[i*ldc + j] unless these are NULL; i < rows,
 * j < cols. The sum over k is one chain of multiply-adds from zero in its order, whatever rows and cols are. `add` may
 * be C. */
void CDAD_K(gemm_tile)(int64_t kc, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                       int64_t ldc, const float *add, const float *bias, const float *sum);

/* The same for panels of gemm_steps of GEMM_WORDS. The sum takes the odd step of a word first (see cdad_precision). */
void CDAD_K(gemm_tile_bf16)(int64_t words, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                            int64_t ldc, const float *add, const float *bias, const float *sum);
/* Whether the processor multiplies bfloat16 itself. */
int CDAD_K(gemm_has_dots)(void);
/* And in less time than its multiply-adds take: on Intel's they take twice as long. */
int CDAD_K(gemm_dots_pay)(void);

#if GEMM_AMX
/* The same for panels of GEMM_TILES: rows <= GEMM_LANES. The sum begins with `add`; a group of steps adds to it the sum of two
 * chains of multiply-adds from zero, of the even and of the odd steps. Between gemm_amx_begin and gemm_amx_end, on the same thread. */
void CDAD_K(gemm_tile_amx)(int64_t words, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                           int64_t ldc, const float *add, const float *bias, const float *sum);
void CDAD_K(gemm_amx_begin)(void);
void CDAD_K(gemm_amx_end)(void);
/* gemm_panel's GEMM_TILES. */
void CDAD_K(gemm_panel_amx)(int rows, float *panel, const cdad_mat *m, int64_t l0, int64_t n, int64_t k0, int64_t kc);
/* Columns of a plain B, of what rounding them leaves. */
void CDAD_K(gemm_panel_amx_rest)(float *panel, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc);
/* A's panel from B's of the same lanes. */
void CDAD_K(gemm_turn_amx)(float *a, const float *b, int64_t words);
#endif

typedef void (*gemm_tile_fn)(int64_t steps, const float *a, const float *b, int64_t rows, int64_t cols, float *C, int64_t ldc,
                             const float *add, const float *bias, const float *sum);
static inline gemm_tile_fn gemm_tile_of(gemm_form form) {
#if GEMM_AMX
    if (form == GEMM_TILES)
        return CDAD_K(gemm_tile_amx);
#endif
    return form == GEMM_WORDS ? CDAD_K(gemm_tile_bf16) : CDAD_K(gemm_tile);
}
/* Around the tiles of a task. */
static inline void gemm_begin(gemm_form form) {
#if GEMM_AMX
    if (form == GEMM_TILES)
        CDAD_K(gemm_amx_begin)();
#endif
    (void)form;
}
static inline void gemm_end(gemm_form form) {
#if GEMM_AMX
    if (form == GEMM_TILES)
        CDAD_K(gemm_amx_end)();
#endif
    (void)form;
}

/* Rows of memory that will be read next, fetched into the second-level cache while something else is computed: weights come
 * from main memory, and the processor does not foresee dozens of rows that end after a few lines. */
typedef struct gemm_ahead {
    const float *data;
    int64_t rows, stride, lines; /* rows `stride` floats apart, so many lines of each; rows 0: nothing */
    int64_t row, line;           /* the next one */
} gemm_ahead;
static inline void gemm_fetch(gemm_ahead *a, int64_t n) {
    for (; n > 0 && a->row < a->rows; n--) {
        __builtin_prefetch(a->data + a->row * a->stride + a->line * 16, 0, 2);
        if (++a->line == a->lines) {
            a->line = 0;
            a->row++;
        }
    }
}

/* x[i] = act(x[i]), i < n, on one thread. */
void CDAD_K(activate)(float *x, int64_t n, cdad_activation act);

#endif

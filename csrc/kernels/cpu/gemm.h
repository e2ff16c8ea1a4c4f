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

/* Packs rows m0 .. m0+rows-1 (1 <= rows <= GEMM_MR), k0 .. k0+kc-1 (kc <= GEMM_KC) of A. */
void CDAD_K(gemm_pack_a)(float *panel, const cdad_mat *A, int64_t m0, int64_t rows, int64_t k0, int64_t kc);

/* Packs columns n0 .. n0+cols-1 (1 <= cols <= GEMM_NR), k0 .. k0+kc-1 of B. */
void CDAD_K(gemm_pack_b)(float *panel, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc);

/* to[i*rs + k] = element (i, k) of a panel of GEMM_NR lanes, i < lanes, k < kc. */
void CDAD_K(gemm_unpack)(float *to, int64_t rs, const float *panel, int64_t lanes, int64_t kc);

/* C[i,j] = sum_k a[k,i] * b[k,j], then + add[i*ldc + j], + bias[j], + sum[i*ldc + j] unless these are NULL; i < rows,
 * j < cols. The sum over k is one chain of multiply-adds from zero in its order, whatever rows and cols are. `add` may
 * be C. */
void CDAD_K(gemm_tile)(int64_t kc, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                       int64_t ldc, const float *add, const float *bias, const float *sum);

/* The same for panels of words, each the bfloat16 of steps k = 2i (its lower half) and 2i + 1, a zero where there is none:
 * kc / 2 words a lane, rounded up. The sum takes the odd step of a word first (see cdad_epilogue). */
void CDAD_K(gemm_tile_bf16)(int64_t words, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                            int64_t ldc, const float *add, const float *bias, const float *sum);
/* to [(kc+1)/2, width] words = the panel of floats [kc, width], width GEMM_MR or GEMM_NR. */
void CDAD_K(gemm_words)(float *to, const float *panel, int64_t width, int64_t kc);
/* Whether the processor multiplies bfloat16 itself. */
int CDAD_K(gemm_has_dots)(void);

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

/* The micro-kernel of the matrix product: a tile of C in registers, a panel of A times a panel of B. */
#include "kernels/cpu/gemm.h"

typedef void (*tile_fn)(int64_t kc, const float *a, const float *b, float *C, int64_t ldc, int add,
                        const float *bias);

static inline __attribute__((always_inline)) void tile(int rows, int vectors, int64_t kc, const float *a,
                                                       const float *b, float *C, int64_t ldc, int add,
                                                       const float *bias) {
    vf acc[GEMM_MR][2];
    V_UNROLL for (int i = 0; i < rows; i++) {
        V_UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vf){0};
    }
    for (int64_t k = 0; k < kc; k++, a += GEMM_MR, b += GEMM_NR) {
        vf bv[2];
        V_UNROLL for (int j = 0; j < vectors; j++)
            bv[j] = v_load(b + j * VL);
        V_UNROLL for (int i = 0; i < rows; i++) {
            vf av = v_set1(a[i]);
            V_UNROLL for (int j = 0; j < vectors; j++)
                acc[i][j] += av * bv[j];
        }
    }
    V_UNROLL for (int i = 0; i < rows; i++) {
        V_UNROLL for (int j = 0; j < vectors; j++) {
            float *c = C + i * ldc + j * VL;
            vf v = acc[i][j];
            if (add)
                v += v_load(c);
            if (bias)
                v += v_load(bias + j * VL);
            v_store(c, v);
        }
    }
}

#define DEFINE_TILE(steps, vectors)                                                                         \
    static void tile_##steps##x##vectors(int64_t kc, const float *a, const float *b, float *C, int64_t ldc, \
                                         int add, const float *bias) {                                      \
        tile((steps)*GEMM_STEP, vectors, kc, a, b, C, ldc, add, bias);                                      \
    }
DEFINE_TILE(1, 1)
DEFINE_TILE(1, 2)
DEFINE_TILE(2, 1)
DEFINE_TILE(2, 2)
DEFINE_TILE(3, 1)
DEFINE_TILE(3, 2)

static const tile_fn tiles[3][2] = {{tile_1x1, tile_1x2}, {tile_2x1, tile_2x2}, {tile_3x1, tile_3x2}};

void CDAD_K(gemm_tile)(int64_t kc, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                       int64_t ldc, int add, const float *bias) {
    int64_t steps = (rows + GEMM_STEP - 1) / GEMM_STEP, vectors = (cols + VL - 1) / VL;
    tile_fn fn = tiles[steps - 1][vectors - 1];
    if (rows == steps * GEMM_STEP && cols == vectors * VL) {
        fn(kc, a, b, C, ldc, add, bias);
        return;
    }
    float t[GEMM_MR * GEMM_NR];
    fn(kc, a, b, t, GEMM_NR, 0, NULL);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float v = t[i * GEMM_NR + j];
            if (add)
                v += C[i * ldc + j];
            if (bias)
                v += bias[j];
            C[i * ldc + j] = v;
        }
}

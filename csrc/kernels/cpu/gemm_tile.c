/* The micro-kernels of the matrix product: a tile of C in registers, a panel of A times a panel of B. */
#include "kernels/cpu/gemm.h"

#define INLINE static inline __attribute__((always_inline))

/* A step of k takes a float of each lane, or a word of two bfloat16: then by the processor's dot product or, since a
 * product of two bfloat16 is exact in float32, by two multiply-adds, fused or not. */
enum { FLOATS, WORDS, DOTS };

#if defined(__AVX512F__) && CDAD_VBYTES == 64
/* As text: the processor is asked (gemm_has_dots), the compiler need not know the instruction. */
INLINE vf dot(vf sum, vf a, vf b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}
int CDAD_K(gemm_has_dots)(void) { return __builtin_cpu_supports("avx512bf16") != 0; }
int CDAD_K(gemm_dots_pay)(void) { return CDAD_K(gemm_has_dots)() && __builtin_cpu_is("amd"); }
#else
INLINE vf dot(vf sum, vf a, vf b) { return sum + a * b; } /* never run */
int CDAD_K(gemm_has_dots)(void) { return 0; }
int CDAD_K(gemm_dots_pay)(void) { return 0; }
#endif

INLINE vf even_of(vf words) { return (vf)((vi)words << 16); }
INLINE vf odd_of(vf words) { return (vf)((vi)words & ~0xffff); }
/* A word everywhere, whatever float it looks like. */
INLINE vf set1_word(const float *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return (vf)(word - (vi){0});
}

typedef void (*tile_fn)(int64_t steps, const float *a, const float *b, float *C, int64_t ldc, const float *add,
                        const float *bias, const float *sum);

INLINE void tile(int kind, int rows, int vectors, int64_t steps, const float *a, const float *b, float *C, int64_t ldc,
                 const float *add, const float *bias, const float *sum) {
    vf acc[GEMM_MR][2];
    V_UNROLL for (int i = 0; i < rows; i++) {
        V_UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vf){0};
    }
    for (int64_t k = 0; k < steps; k++, a += GEMM_MR, b += GEMM_NR) {
        vf bv[2], odd[2];
        V_UNROLL for (int j = 0; j < vectors; j++) {
            bv[j] = v_load(b + j * VL);
            if (kind == WORDS) {
                odd[j] = odd_of(bv[j]);
                bv[j] = even_of(bv[j]);
            }
        }
        V_UNROLL for (int i = 0; i < rows; i++) {
            const vf av = kind == FLOATS ? v_set1(a[i]) : set1_word(a + i);
            V_UNROLL for (int j = 0; j < vectors; j++) {
                if (kind == DOTS) {
                    acc[i][j] = dot(acc[i][j], av, bv[j]);
                } else if (kind == WORDS) {
                    acc[i][j] += odd_of(av) * odd[j];
                    acc[i][j] += even_of(av) * bv[j];
                } else {
                    acc[i][j] += av * bv[j];
                }
            }
        }
    }
    if (add)
        V_UNROLL for (int i = 0; i < rows; i++)
            V_UNROLL for (int j = 0; j < vectors; j++)
                acc[i][j] += v_load(add + i * ldc + j * VL);
    if (bias)
        V_UNROLL for (int j = 0; j < vectors; j++)
            V_UNROLL for (int i = 0; i < rows; i++)
                acc[i][j] += v_load(bias + j * VL);
    if (sum)
        V_UNROLL for (int i = 0; i < rows; i++)
            V_UNROLL for (int j = 0; j < vectors; j++)
                acc[i][j] += v_load(sum + i * ldc + j * VL);
    V_UNROLL for (int i = 0; i < rows; i++)
        V_UNROLL for (int j = 0; j < vectors; j++)
            v_store(C + i * ldc + j * VL, acc[i][j]);
}

#define DEFINE_TILE(kind, high, vectors)                                                                         \
    static void tile_##kind##_##high##x##vectors(int64_t steps, const float *a, const float *b, float *C,        \
                                                 int64_t ldc, const float *add, const float *bias,               \
                                                 const float *sum) {                                             \
        tile(kind, (high)*GEMM_STEP, vectors, steps, a, b, C, ldc, add, bias, sum);                              \
    }
#define DEFINE_TILES(kind)                                                                                       \
    DEFINE_TILE(kind, 1, 1)                                                                                      \
    DEFINE_TILE(kind, 1, 2)                                                                                      \
    DEFINE_TILE(kind, 2, 1)                                                                                      \
    DEFINE_TILE(kind, 2, 2)                                                                                      \
    DEFINE_TILE(kind, 3, 1)                                                                                      \
    DEFINE_TILE(kind, 3, 2)                                                                                      \
    static const tile_fn tiles_##kind[3][2] = {{tile_##kind##_1x1, tile_##kind##_1x2},                           \
                                               {tile_##kind##_2x1, tile_##kind##_2x2},                           \
                                               {tile_##kind##_3x1, tile_##kind##_3x2}};
DEFINE_TILES(FLOATS)
DEFINE_TILES(WORDS)
DEFINE_TILES(DOTS)

/* With the tile of this size, or, at an edge, with the next larger one and a copy. */
static void run_tile(const tile_fn tiles[3][2], int64_t steps, const float *a, const float *b, int64_t rows,
                     int64_t cols, float *C, int64_t ldc, const float *add, const float *bias,
                     const float *sum) {
    const int64_t high = (rows + GEMM_STEP - 1) / GEMM_STEP, vectors = (cols + VL - 1) / VL;
    const tile_fn fn = tiles[high - 1][vectors - 1];
    if (rows == high * GEMM_STEP && cols == vectors * VL) {
        fn(steps, a, b, C, ldc, add, bias, sum);
        return;
    }
    float t[GEMM_MR * GEMM_NR];
    fn(steps, a, b, t, GEMM_NR, NULL, NULL, NULL);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float v = t[i * GEMM_NR + j];
            if (add)
                v += add[i * ldc + j];
            if (bias)
                v += bias[j];
            if (sum)
                v += sum[i * ldc + j];
            C[i * ldc + j] = v;
        }
}

void CDAD_K(gemm_tile)(int64_t kc, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                       int64_t ldc, const float *add, const float *bias, const float *sum) {
    run_tile(tiles_FLOATS, kc, a, b, rows, cols, C, ldc, add, bias, sum);
}

void CDAD_K(gemm_tile_bf16)(int64_t words, const float *a, const float *b, int64_t rows, int64_t cols, float *C,
                            int64_t ldc, const float *add, const float *bias, const float *sum) {
    run_tile(CDAD_K(gemm_has_dots)() ? tiles_DOTS : tiles_WORDS, words, a, b, rows, cols, C, ldc, add, bias, sum);
}

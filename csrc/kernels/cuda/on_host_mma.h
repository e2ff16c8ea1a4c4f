/* Products of tensor cores for a C++ compiler: what <mma.h> declares of TF32. Here each thread of a warp holds a whole matrix. */
#ifndef CDAD_KERNELS_CUDA_ON_HOST_MMA_H
#define CDAD_KERNELS_CUDA_ON_HOST_MMA_H

#include <string.h>

namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
namespace precision {
struct tf32 {};
} // namespace precision
enum layout_t { mem_row_major, mem_col_major };

/* Row by row, however it lies in memory. */
template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment;
template <int M, int N, int K, typename Layout> struct fragment<matrix_a, M, N, K, precision::tf32, Layout> {
    enum { rows = M, columns = K, num_elements = M * K };
    float x[M * K];
};
template <int M, int N, int K, typename Layout> struct fragment<matrix_b, M, N, K, precision::tf32, Layout> {
    enum { rows = K, columns = N, num_elements = K * N };
    float x[K * N];
};
template <int M, int N, int K> struct fragment<accumulator, M, N, K, float> {
    enum { rows = M, columns = N, num_elements = M * N };
    float x[M * N];
};

/* To nearest, ties away from zero, as cvt.rna does. */
static inline float __float_to_tf32(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7F800000u) != 0x7F800000u)
        bits = (bits + 0x1000u) & ~0x1FFFu;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* Addresses and row strides that the hardware refuses end the process. */
static inline void check_place(const float *p, unsigned rs) {
    if ((size_t)p % 32 || rs % 4)
        abort();
}

template <typename F> void load(F &f, const float *p, unsigned rs, bool by_rows) {
    check_place(p, rs);
    for (unsigned i = 0; i < f.rows; i++)
        for (unsigned j = 0; j < f.columns; j++)
            f.x[i * f.columns + j] = by_rows ? p[i * rs + j] : p[i + j * rs];
}
template <typename Use, int M, int N, int K>
void load_matrix_sync(fragment<Use, M, N, K, precision::tf32, row_major> &f, const float *p, unsigned rs) {
    load(f, p, rs, true);
}
template <typename Use, int M, int N, int K>
void load_matrix_sync(fragment<Use, M, N, K, precision::tf32, col_major> &f, const float *p, unsigned rs) {
    load(f, p, rs, false);
}
template <int M, int N, int K>
void load_matrix_sync(fragment<accumulator, M, N, K, float> &f, const float *p, unsigned rs, layout_t layout) {
    load(f, p, rs, layout == mem_row_major);
}
template <int M, int N, int K>
void store_matrix_sync(float *p, const fragment<accumulator, M, N, K, float> &f, unsigned rs, layout_t layout) {
    check_place(p, rs);
    for (unsigned i = 0; i < M; i++)
        for (unsigned j = 0; j < N; j++)
            p[layout == mem_row_major ? i * rs + j : i + j * rs] = f.x[i * N + j];
}
template <typename F> void fill_fragment(F &f, float value) {
    for (float &x : f.x)
        x = value;
}
/* The hardware drops what a factor has beyond TF32. */
static inline float cut(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~0x1FFFu;
    memcpy(&x, &bits, sizeof bits);
    return x;
}
template <int M, int N, int K, typename A, typename B>
void mma_sync(fragment<accumulator, M, N, K, float> &d, const fragment<matrix_a, M, N, K, precision::tf32, A> &a,
              const fragment<matrix_b, M, N, K, precision::tf32, B> &b, const fragment<accumulator, M, N, K, float> &c) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            float sum = c.x[i * N + j];
            for (int k = 0; k < K; k++)
                sum += cut(a.x[i * K + k]) * cut(b.x[k * N + j]);
            d.x[i * N + j] = sum;
        }
}
} // namespace wmma
} // namespace nvcuda

#endif

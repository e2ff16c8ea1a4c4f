/* Products by cuBLAS. An operand that is unfolded from an image is gathered into scratch, so many rows at a time that a tile stays
 * within TILE_BYTES, and multiplied from there, unless conv.cu takes the product; in bfloat16 other operands too are rounded into scratch, as cuBLAS multiplies what
 * is bfloat16 in memory at more than twice the rate of floats. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/conv.h"
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/warp.h"

#ifdef CDAD_CUDA_ON_HOST
enum { TILE_BYTES = 8 << 10 }; /* so that tests have several */
#else
enum { TILE_BYTES = 128 << 20 }; /* smaller ones leave a large GPU idle at their ends */
#endif
enum {
    GATHER_ROWS = 8, /* of a block */
    LEAST = 64,      /* rows of a product that is worth rounding its factors */
    FEW = 128,       /* columns whose products take less time than gathering does */
    MOST_WEIGHT = 64 << 20 /* elements of a factor that is rounded at once */
};

/* What a thread moves: floats or four of them, as they are or rounded to bfloat16. */
typedef uint16_t half1;
struct __align__(8) half4 {
    uint32_t low, high;
};
__device__ static void put(float *to, float x) { *to = x; }
__device__ static void put(float4 *to, float4 x) { *to = x; }
__device__ static void put(half1 *to, float x) { *to = (half1)cuda_bf16x2(x, 0.0f); }
__device__ static void put(half4 *to, float4 x) {
    to->low = cuda_bf16x2(x.x, x.y);
    to->high = cuda_bf16x2(x.z, x.w);
}

/* to [rows,R*S*C]: rows `first` and following of the unfolded image, C counted in T. A block takes GATHER_ROWS rows; `lanes` of its
 * threads, a power of 2, take a row at a time, so that a thread finds out once which pixel of the window its column is. */
template <typename To, typename T>
__global__ static void gather_kernel(To *to, const T *x, cdad_unfold u, int64_t first, int64_t rows, int C, int lanes) {
    __shared__ int64_t image[GATHER_ROWS];
    __shared__ int top[GATHER_ROWS], left[GATHER_ROWS];
    const int64_t begin = (int64_t)blockIdx.x * GATHER_ROWS;
    const int64_t rest = rows - begin;
    const int n = rest < GATHER_ROWS ? (int)rest : (int)GATHER_ROWS, S = (int)u.S, width = (int)u.R * S * C;
    const int H = (int)(u.H * u.up), W = (int)(u.W * u.up), halved = u.up == 2;
    if ((int)threadIdx.x < n) {
        const int64_t row = first + begin + threadIdx.x;
        image[threadIdx.x] = row / (u.Q * u.P) * u.H;
        top[threadIdx.x] = (int)(row / u.Q % u.P * u.stride - u.pad_t);
        left[threadIdx.x] = (int)(row % u.Q * u.stride - u.pad_l);
    }
    __syncthreads();
    to += begin * width;
    for (int k = (int)threadIdx.x & (lanes - 1); k < width; k += lanes) {
        const int tap = k / C, c = k - tap * C, down = tap / S, right = tap - down * S;
        for (int r = (int)threadIdx.x / lanes; r < n; r += CUDA_THREADS / lanes) {
            const int h = top[r] + down, w = left[r] + right;
            T value = T();
            if (h >= 0 && h < H && w >= 0 && w < W)
                value = x[((image[r] + (h >> halved)) * u.W + (w >> halved)) * C + c];
            put(to + (int64_t)r * width + k, value);
        }
    }
}

template <typename To, typename T>
static void gather(const cdad_context *ctx, To *to, const T *x, const cdad_unfold &u, int64_t first, int64_t rows) {
    const int C = (int)(u.C * (int64_t)sizeof(float) / (int64_t)sizeof(T));
    const auto kernel = gather_kernel<To, T>;
    int lanes = 1;
    while (lanes < CUDA_THREADS && lanes < u.R * u.S * C)
        lanes *= 2;
    CDAD_LAUNCH_JOINED(kernel, (unsigned)((rows + GATHER_ROWS - 1) / GATHER_ROWS), CUDA_THREADS, cuda_stream(ctx), to, x, u, first,
                       rows, C, lanes);
}

void cuda_gather(const cdad_context *ctx, float *to, const cdad_mat &X, int64_t first, int64_t rows) {
    if (X.unfold->C % 4 == 0 && ((uintptr_t)X.data | (uintptr_t)to) % 16 == 0)
        gather(ctx, (float4 *)to, (const float4 *)X.data, *X.unfold, first, rows);
    else
        gather(ctx, to, X.data, *X.unfold, first, rows);
}

/* to [rows,width], dense = x, whose rows are rs apart; width and rs counted in T. */
template <typename I, typename To, typename T> __global__ static void round_kernel(To *to, const T *x, int64_t rs, I width, I n) {
    CUDA_EACH_OF(I, i, n) put(to + i, x[i / width * rs + i % width]);
}

template <typename To, typename T>
static void round_rows(const cdad_context *ctx, To *to, const T *x, int64_t rs, int64_t width, int64_t n) {
    const auto narrow = round_kernel<uint32_t, To, T>;
    const auto wide = round_kernel<int64_t, To, T>;
    if (n < INT64_C(1) << 31)
        CDAD_LAUNCH(narrow, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), to, x, rs, width, n);
    else
        CDAD_LAUNCH(wide, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), to, x, rs, width, n);
}

/* Rows first .. first+rows-1 of X [.,columns], rounded to bfloat16, in its order; the matrix of them, whose data are half1. */
static cdad_mat rounded(const cdad_context *ctx, half1 *to, const cdad_mat &X, int64_t first, int64_t rows, int64_t columns) {
    if (X.unfold) {
        if (X.unfold->C % 4 == 0 && (uintptr_t)X.data % 16 == 0)
            gather(ctx, (half4 *)to, (const float4 *)X.data, *X.unfold, first, rows);
        else
            gather(ctx, to, X.data, *X.unfold, first, rows);
        return cdad_mat{(const float *)to, columns, 1, NULL};
    }
    const bool by_rows = X.cs == 1;
    const float *from = X.data + first * X.rs;
    const int64_t rs = by_rows ? X.rs : X.cs, width = by_rows ? columns : rows, n = rows * columns;
    if ((width | rs) % 4 == 0 && (uintptr_t)from % 16 == 0)
        round_rows(ctx, (half4 *)to, (const float4 *)from, rs / 4, width / 4, n / 4);
    else
        round_rows(ctx, to, from, rs, width, n);
    return cdad_mat{(const float *)to, by_rows ? columns : 1, by_rows ? 1 : rows, NULL};
}

/* Rows of `width` elements (a phase of a convolution may have none) that make a tile. */
static int64_t tile_rows(int64_t rows, int64_t width, int64_t element) {
    return width == 0 ? 0 : cuda_max(1, cuda_min(rows, TILE_BYTES / (width * element)));
}

/* T: floats or four of them, in which N and ldc are counted. */
template <typename I, typename T> __device__ static void finish(float *C, const cdad_epilogue &with, int64_t ldc, I N, I count) {
    const int64_t each = sizeof(T) / sizeof(float);
    CUDA_EACH_OF(I, i, count) {
        const I n = i % N;
        const int64_t at = (i / N * ldc + n) * each;
        *(T *)(C + at) = cuda_finished(*(const T *)(C + at), at, n * each, C, with);
    }
}
template <typename I> __global__ static void finish_kernel(float *C, cdad_epilogue with, int64_t ldc, I N, I count) {
    finish<I, float>(C, with, ldc, N, count);
}
template <typename I> __global__ static void finish4_kernel(float *C, cdad_epilogue with, int64_t ldc, I N, I count) {
    finish<I, float4>(C, with, ldc, N, count);
}

/* `accumulate` was the product's. */
static void finish(const cdad_context *ctx, const cuda_product &p, cdad_epilogue with) {
    with.accumulate = 0;
    const int64_t n = p.M * p.N;
    if (!with.bias && !with.sum && !with.act)
        return;
    if ((p.N | p.ldc) % 4 == 0 && ((uintptr_t)p.C | (uintptr_t)with.bias | (uintptr_t)with.sum) % 16 == 0)
        CDAD_LAUNCH_EACH(finish4_kernel, n / 4, cuda_stream(ctx), p.C, with, p.ldc / 4, p.N / 4, n / 4);
    else
        CDAD_LAUNCH_EACH(finish_kernel, n, cuda_stream(ctx), p.C, with, p.ldc, p.N, n);
}

static void multiply_finished(const cdad_context *ctx, const cuda_product &p, cdad_epilogue with) {
    if ((with.bias || with.sum) && cuda_multiply_fused(ctx, &p, with.bias, with.sum))
        with.bias = with.sum = NULL;
    else
        cuda_multiply(ctx, &p, "gemm");
    finish(ctx, p, with);
}

/* Rows m and following of a product, whose A is there already. */
static void multiply_rows(const cdad_context *ctx, cuda_product p, int64_t m, cdad_epilogue with) {
    p.C += m * p.ldc;
    with.sum = with.sum ? with.sum + m * p.ldc : NULL;
    multiply_finished(ctx, p, with);
}

/* Products of floats, of which one may be unfolded. */
static void multiply_floats(const cdad_context *ctx, cuda_product p, const cdad_epilogue &with, float *tile) {
    const cdad_mat A = p.A, B = p.B;
    const int64_t M = p.M, K = p.K, width = A.unfold ? K : p.N, step = tile_rows(A.unfold ? M : K, width, sizeof(float));
    if (A.unfold) {
        p.A = cdad_mat{tile, K, 1, NULL};
        for (int64_t m = 0; m < M; m += step) {
            p.M = cuda_min(step, M - m);
            cuda_gather(ctx, tile, A, m, p.M);
            multiply_rows(ctx, p, m, with);
        }
    } else if (B.unfold) {
        p.B = cdad_mat{tile, p.N, 1, NULL};
        for (int64_t k = 0; k < K; k += step, p.beta = 1.0f) {
            p.K = cuda_min(step, K - k);
            cuda_gather(ctx, tile, B, k, p.K);
            p.A.data = A.data + k * A.cs;
            cuda_multiply(ctx, &p, "gemm");
        }
        finish(ctx, p, with);
    } else {
        multiply_finished(ctx, p, with);
    }
}

/* Where the second factor begins, after n elements. */
static int64_t after(int64_t n) { return (n + 127) / 128 * 128; }

/* Rows of A, which may be unfolded, with all of a plain B. */
static bool is_by_rows(const cuda_product &p) { return p.A.unfold || (p.A.cs == 1 && !p.B.unfold); }

/* Of factors rounded into scratch: rows of A with all of B, or, where A lies by columns, those with as many rows of B. */
static void multiply_rounded(const cdad_context *ctx, cuda_product p, const cdad_epilogue &with, half1 *scratch) {
    const cdad_mat A = p.A, B = p.B;
    const int64_t M = p.M, N = p.N, K = p.K;
    p.rounded = true;
    if (is_by_rows(p)) {
        const int64_t step = tile_rows(M, K, sizeof(half1));
        p.B = rounded(ctx, scratch + after(step * K), B, 0, K, N);
        for (int64_t m = 0; m < M; m += step) {
            p.M = cuda_min(step, M - m);
            p.A = rounded(ctx, scratch, A, m, p.M, K);
            multiply_rows(ctx, p, m, with);
        }
        return;
    }
    const int64_t step = tile_rows(K, M + N, sizeof(half1));
    const cdad_mat turned = {A.data, A.cs, 1, NULL};
    for (int64_t k = 0; k < K; k += step, p.beta = 1.0f) {
        p.K = cuda_min(step, K - k);
        rounded(ctx, scratch, turned, k, p.K, M);
        p.A = cdad_mat{(const float *)scratch, 1, M, NULL};
        p.B = rounded(ctx, scratch + after(step * M), B, k, p.K, N);
        cuda_multiply(ctx, &p, "gemm");
    }
    finish(ctx, p, with);
}

/* Few rows take less time than the weight takes to be rounded. */
static bool is_worth_rounding(const cuda_product &p) {
    return p.precision == CDAD_BFLOAT16 && (p.A.unfold || p.B.unfold || (p.M >= LEAST && p.K >= LEAST)) &&
           (is_by_rows(p) ? p.N * p.K <= MOST_WEIGHT : p.A.rs == 1 && (p.B.unfold || p.B.cs == 1));
}

void cuda_gemm(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, int64_t ldc,
               const cdad_epilogue *with, void *scratch) {
    if (with && (with->precision == CDAD_TFLOAT32 || N <= FEW) && cuda_conv_fits(M, N, K, A, B, with)) {
        cuda_conv(ctx, M, N, K, A, B, C, ldc, with, scratch);
        return;
    }
    const cdad_epilogue how = with ? *with : cdad_epilogue();
    const cuda_product p = {M, N, K, 1, A, B, C, ldc, 0, 0, 0, 1.0f, how.accumulate ? 1.0f : 0.0f, how.precision, false};
    if (is_worth_rounding(p))
        multiply_rounded(ctx, p, how, (half1 *)scratch);
    else
        multiply_floats(ctx, p, how, (float *)scratch);
    cuda_launched(ctx, "gemm");
}

/* For either operand gathered, both rounded by multiply_rounded's two ways, and conv.cu. */
int64_t cuda_gemm_scratch(int64_t M, int64_t N, int64_t K, int threads) {
    (void)threads;
    const int64_t floats = cuda_max(tile_rows(M, K, sizeof(float)) * K, tile_rows(K, N, sizeof(float)) * N);
    const int64_t step = tile_rows(K, M + N, sizeof(half1));
    const int64_t halves = cuda_max(after(tile_rows(M, K, sizeof(half1)) * K) + cuda_min(N * K, MOST_WEIGHT),
                                    after(step * M) + step * N);
    return cuda_max(cuda_conv_scratch(M, N, K), cuda_max(floats * (int64_t)sizeof(float), halves * (int64_t)sizeof(half1)));
}

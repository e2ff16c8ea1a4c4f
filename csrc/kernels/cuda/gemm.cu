/* Products by cuBLAS. An operand that is unfolded from an image is gathered into scratch, so many rows at a time that a tile stays
 * within TILE_BYTES, and multiplied from there, unless conv.cu or conv_hopper.cu takes the product; in bfloat16 other operands too are
 * rounded into scratch, as cuBLAS multiplies what is bfloat16 in memory at more than twice the rate of floats. */
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

/* Rows of bfloat16 begin every 16 bytes, where all copies of cuBLAS's fast kernels can: with other rows (1025 features) it has only
 * kernels of a third the rate. */
static int64_t padded(int64_t n) { return (n + 7) / 8 * 8; }

/* What rounding leaves. */
__device__ static float rest_of(float x) { return x - __uint_as_float(cuda_bf16x2(x, 0.0f) << 16); }

/* to [n/pitch,pitch] = x [rows,width], whose rows are rs apart, and zeros beyond it; to, pitch and n counted in fours. QUADS: so is x.
 * rest: what rounding leaves of x. */
template <typename I, bool QUADS>
__global__ static void round_kernel(half4 *to, const float *x, int64_t rs, I width, I rows, I pitch, I n, bool rest) {
    CUDA_EACH_OF(I, i, n) {
        const I row = i / pitch, c = 4 * (i % pitch);
        const float *from = x + row * rs + c;
        float4 four = {};
        if (row < rows && c < width) {
            if (QUADS) {
                four = *(const float4 *)from;
            } else {
                four.x = from[0];
                four.y = c + 1 < width ? from[1] : 0.0f;
                four.z = c + 2 < width ? from[2] : 0.0f;
                four.w = c + 3 < width ? from[3] : 0.0f;
            }
        }
        if (rest)
            four = float4{rest_of(four.x), rest_of(four.y), rest_of(four.z), rest_of(four.w)};
        put(to + i, four);
    }
}

/* to [padded(rows),padded(width)] or, where no zero rows are wanted, [rows,padded(width)]. */
static void round_rows(const cdad_context *ctx, half1 *to, const float *x, int64_t rs, int64_t rows, int64_t width, bool zero_rows,
                       bool rest) {
    const int64_t pitch = padded(width) / 4, n = (zero_rows ? padded(rows) : rows) * pitch;
    const bool quads = (width | rs) % 4 == 0 && (uintptr_t)x % 16 == 0, narrow = n < INT64_C(1) << 29;
    half4 *const fours = (half4 *)to;
    if (narrow) {
        const auto kernel = quads ? round_kernel<uint32_t, true> : round_kernel<uint32_t, false>;
        CDAD_LAUNCH(kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), fours, x, rs, (uint32_t)width, (uint32_t)rows, (uint32_t)pitch,
                    (uint32_t)n, rest);
    } else {
        const auto kernel = quads ? round_kernel<int64_t, true> : round_kernel<int64_t, false>;
        CDAD_LAUNCH(kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), fours, x, rs, width, rows, pitch, n, rest);
    }
}

/* Rows first .. first+rows-1 of X [.,columns], rounded to bfloat16, in its order; the matrix of them, whose data are half1. zeros: X is
 * padded in both directions. rest: of what rounding leaves, where X is plain. */
static cdad_mat rounded(const cdad_context *ctx, half1 *to, const cdad_mat &X, int64_t first, int64_t rows, int64_t columns, bool zeros,
                        bool rest = false) {
    if (X.unfold) {
        if (X.unfold->C % 4 == 0 && (uintptr_t)X.data % 16 == 0)
            gather(ctx, (half4 *)to, (const float4 *)X.data, *X.unfold, first, rows);
        else
            gather(ctx, to, X.data, *X.unfold, first, rows);
        return cdad_mat{(const float *)to, columns, 1, NULL};
    }
    const bool by_rows = X.cs == 1;
    round_rows(ctx, to, X.data + first * X.rs, by_rows ? X.rs : X.cs, by_rows ? rows : columns, by_rows ? columns : rows, zeros,
               rest);
    return cdad_mat{(const float *)to, by_rows ? padded(columns) : 1, by_rows ? 1 : padded(rows), NULL};
}

/* What a thread's last product left at the beginning of its scratch: a whole first factor, rounded. Consecutive ones often share it: the
 * gradient of an output, or what queries, keys and values are made of. */
static thread_local struct {
    const void *scratch;
    const float *data;
    int64_t rs, rows, columns;
} left;

/* `rounded` for the first factor, all rows of it or a part. */
static cdad_mat rounded_first(const cdad_context *ctx, half1 *scratch, const cdad_mat &X, int64_t first, int64_t rows, int64_t columns,
                              bool all) {
    const bool same = all && X.data == ctx->again && left.scratch == scratch && left.data == X.data && left.rs == X.rs &&
                      left.rows == rows && left.columns == columns;
    if (same)
        return cdad_mat{(const float *)scratch, padded(columns), 1, NULL};
    left = {};
    if (all && !X.unfold)
        left = {scratch, X.data, X.rs, rows, columns};
    return rounded(ctx, scratch, X, first, rows, columns, false);
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

/* C = `from`, whose rows are `pitch` apart, and what ends a product. */
template <typename I> __global__ static void move_kernel(float *C, const float *from, int64_t pitch, cdad_epilogue with, int64_t ldc, I N, I count) {
    CUDA_EACH_OF(I, i, count) {
        const I n = i % N;
        const int64_t m = i / N, at = m * ldc + n;
        C[at] = cuda_finished(from[m * pitch + n], at, n, C, with);
    }
}

/* Whether C's rows begin at 16 bytes. */
static bool is_of_fours(int64_t N) { return N % 4 == 0; }

/* Ends a product that lies in `room`. */
static void finish_from(const cdad_context *ctx, const cuda_product &p, const float *room, const cdad_epilogue &with) {
    CDAD_LAUNCH_EACH(move_kernel, p.M * p.N, cuda_stream(ctx), p.C, room, padded(p.N), with, p.ldc, p.N, p.M * p.N);
}

/* p as it is multiplied into `room`, whose rows are as long as its second factor's padded ones. */
static cuda_product into_room(cuda_product p, float *room) {
    p.C = room;
    p.N = p.ldc = padded(p.N);
    p.beta = 0.0f;
    return p;
}

static void multiply_finished(const cdad_context *ctx, const cuda_product &p, cdad_epilogue with) {
    if ((with.bias || with.sum) && cuda_multiply_fused(ctx, &p, with.bias, with.sum))
        with.bias = with.sum = NULL;
    else
        cuda_multiply(ctx, &p, "gemm");
    finish(ctx, p, with);
}

/* What is written from row m on; and what ends it, from element `at` of C on. */
static cuda_product rows_from(cuda_product p, int64_t m) {
    p.C += m * p.ldc;
    return p;
}
static cdad_epilogue with_from(cdad_epilogue with, int64_t at) {
    with.sum = with.sum ? with.sum + at : NULL;
    return with;
}

/* Rows m and following of a product, whose A is there already. */
static void multiply_rows(const cdad_context *ctx, const cuda_product &p, int64_t m, const cdad_epilogue &with) {
    multiply_finished(ctx, rows_from(p, m), with_from(with, m * p.ldc));
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

/* Rows of a tile of the first way of multiply_rounded. */
static int64_t step_by_rows(int64_t M, int64_t N, int64_t K) {
    return tile_rows(M, cuda_max(padded(K), is_of_fours(N) ? 0 : 2 * padded(N)), sizeof(half1));
}

/* Rows of A, which may be unfolded, with all of a plain B. */
static bool is_by_rows(const cuda_product &p) { return p.A.unfold || (p.A.cs == 1 && !p.B.unfold); }

/* Of factors rounded into scratch: rows of A with all of B, or, where A lies by columns, those with as many rows of B. Behind them is
 * room for results whose own rows begin at no 16 bytes. rest: by rows, with what rounding B leaves. */
static void multiply_rounded(const cdad_context *ctx, cuda_product p, const cdad_epilogue &with, half1 *scratch, bool rest = false) {
    const cdad_mat A = p.A, B = p.B;
    const int64_t M = p.M, N = p.N, K = p.K;
    p.rounded = true;
    if (is_by_rows(p)) {
        const int64_t step = step_by_rows(M, N, K);
        half1 *const second = scratch + after(step * padded(K));
        float *const room = (float *)(second + after(padded(N) * padded(K)));
        p.B = rounded(ctx, second, B, 0, K, N, true, rest);
        p.K = A.unfold ? K : padded(K);
        for (int64_t m = 0; m < M; m += step) {
            p.M = cuda_min(step, M - m);
            p.A = rounded_first(ctx, scratch, A, m, p.M, K, step >= M);
            if (is_of_fours(N)) {
                multiply_rows(ctx, p, m, with);
                continue;
            }
            const cuda_product q = into_room(p, room);
            cuda_multiply(ctx, &q, "gemm");
            finish_from(ctx, rows_from(p, m), room, with_from(with, m * p.ldc));
        }
        return;
    }
    const int64_t step = tile_rows(K, padded(M) + padded(N), sizeof(half1));
    half1 *const second = scratch + after(step * padded(M));
    float *const room = (float *)(second + after(step * padded(N)));
    const cdad_mat turned = {A.data, A.cs, 1, NULL};
    const bool direct = is_of_fours(N) || B.unfold; /* what is gathered has no padding */
    cuda_product q = direct ? p : into_room(p, room);
    for (int64_t k = 0; k < K; k += step, q.beta = 1.0f) {
        q.K = cuda_min(step, K - k);
        rounded_first(ctx, scratch, turned, k, q.K, M, step >= K);
        q.A = cdad_mat{(const float *)scratch, 1, padded(M), NULL};
        q.B = rounded(ctx, second, B, k, q.K, N, false);
        cuda_multiply(ctx, &q, "gemm");
    }
    if (direct)
        finish(ctx, p, with);
    else
        finish_from(ctx, p, room, with);
}

/* Where the weight's tiles begin in the scratch of a product by patches: behind the rounded image. */
static int64_t image_bytes(int64_t elements) { return after(elements) * (int64_t)sizeof(half1); }

/* In bfloat16, by conv_hopper.cu, where that is faster than gathering. */
static bool multiply_by_patches(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, float *C,
                                int64_t ldc, const cdad_epilogue *with, void *scratch) {
    if (cuda_conv_hopper_clocks(ctx, M, N, K, A, with) >= cuda_conv_gathered_clocks(M, N, K))
        return false;
    const cdad_unfold &u = *A.unfold;
    const int64_t pixels = u.N * u.H * u.W;
    rounded_first(ctx, (half1 *)scratch, cdad_mat{A.data, u.C, 1, NULL}, 0, pixels, u.C, true);
    cuda_conv_hopper(ctx, N, K, A, scratch, B, C, ldc, with, (char *)scratch + image_bytes(pixels * u.C));
    return true;
}

/* Few rows take less time than the weight takes to be rounded. */
static bool is_worth_rounding(const cuda_product &p) {
    return p.precision == CDAD_BFLOAT16 && (p.A.unfold || p.B.unfold || (p.M >= LEAST && p.K >= LEAST)) &&
           (is_by_rows(p) ? p.N * p.K <= MOST_WEIGHT : p.A.rs == 1 && (p.B.unfold || p.B.cs == 1));
}

/* B as the sum of what is rounded and its rest, two products; or floats. */
static void multiply_split(const cdad_context *ctx, cuda_product p, cdad_epilogue with, void *scratch) {
    p.precision = CDAD_BFLOAT16;
    if (!is_by_rows(p) || !is_worth_rounding(p)) {
        left = {};
        p.precision = CDAD_FLOAT32;
        multiply_floats(ctx, p, with, (float *)scratch);
        return;
    }
    cdad_epilogue first = {};
    first.accumulate = with.accumulate;
    multiply_rounded(ctx, p, first, (half1 *)scratch);
    p.beta = 1.0f;
    with.accumulate = 1;
    multiply_rounded(ctx, p, with, (half1 *)scratch, true);
}

void cuda_gemm(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, int64_t ldc,
               const cdad_epilogue *with, void *scratch) {
    if (with && cuda_conv_fits(M, N, K, A, B, with)) {
        const bool bf16 = with->precision == CDAD_BFLOAT16;
        if (bf16 && multiply_by_patches(ctx, M, N, K, A, B, C, ldc, with, scratch))
            return;
        if (!bf16 || N <= FEW) {
            left = {};
            cuda_conv(ctx, M, N, K, A, B, C, ldc, with, scratch);
            return;
        }
    }
    const cdad_epilogue how = with ? *with : cdad_epilogue();
    const cuda_product p = {M, N, K, 1, A, B, C, ldc, 0, 0, 0, 1.0f, how.accumulate ? 1.0f : 0.0f, how.precision, false};
    if (how.split && how.precision != CDAD_FLOAT32) {
        multiply_split(ctx, p, how, scratch);
    } else if (is_worth_rounding(p)) {
        multiply_rounded(ctx, p, how, (half1 *)scratch);
    } else {
        left = {};
        multiply_floats(ctx, p, how, (float *)scratch);
    }
    cuda_launched(ctx, "gemm");
}

/* For either operand gathered, both rounded by multiply_rounded's two ways, conv.cu, and patches, whose image is a ninth of A at most. */
int64_t cuda_gemm_scratch(int64_t M, int64_t N, int64_t K, int threads) {
    (void)threads;
    const int64_t floats = cuda_max(tile_rows(M, K, sizeof(float)) * K, tile_rows(K, N, sizeof(float)) * N);
    const int64_t rows = step_by_rows(M, N, K), step = tile_rows(K, padded(M) + padded(N), sizeof(half1));
    const int64_t room = is_of_fours(N) ? 0 : 2 * padded(N); /* halves of a row */
    const int64_t by_rows = N * K <= MOST_WEIGHT ? after(rows * padded(K)) + after(padded(N) * padded(K)) + rows * room : 0;
    const int64_t halves = cuda_max(by_rows, after(step * padded(M)) + after(step * padded(N)) + M * room);
    const int64_t tiles = cuda_conv_hopper_scratch(M, N, K), patches = tiles ? image_bytes(cuda_over(M * K, 9)) + tiles : 0;
    const int64_t gathered = cuda_max(floats * (int64_t)sizeof(float), halves * (int64_t)sizeof(half1));
    return cuda_max(cuda_max(cuda_conv_scratch(M, N, K), patches), gathered);
}

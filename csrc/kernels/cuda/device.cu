/* The CUDA device: its memory, its stream, its products, and the entry of the shared object. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/cublas.h"

extern "C" {
#include "kernels/cuda/entry.h"
}

struct cuda_device {
    cdad_device base; /* first: a cdad_device is cast to what holds it */
    int number;
    pid_t process; /* CUDA does not survive a fork */
    cudaStream_t stream;
    const cuda_cublas *cublas;
    void *handle;
    double *sums;
    pthread_mutex_t handle_lock, sums_lock, failure_lock;
    char name[32], text[288], failure[256];
};

static cuda_device *cast(cdad_device *d) { return (cuda_device *)d; }
static cuda_device *of(const cdad_context *ctx) { return cast(ctx->device); }

static cdad_status fail(cdad_error *err, cdad_status status, const char *format, ...) {
    va_list list;
    if (!err)
        return status;
    err->status = status;
    va_start(list, format);
    vsnprintf(err->message, sizeof err->message, format, list);
    va_end(list);
    return status;
}

/* Makes the device the thread's. */
static cdad_status enter(cuda_device *d, cdad_error *err) {
    if (getpid() != d->process)
        return fail(err, CDAD_NO_DEVICE, "%s was opened before a fork: start processes with \"spawn\"", d->name);
    const cudaError_t e = cudaSetDevice(d->number);
    return e == cudaSuccess ? CDAD_OK : fail(err, CDAD_NO_DEVICE, "%s: %s", d->name, cudaGetErrorString(e));
}

static void keep_failure(cuda_device *d, const char *what, const char *why) {
    pthread_mutex_lock(&d->failure_lock);
    if (!d->failure[0])
        snprintf(d->failure, sizeof d->failure, "%s: %s", what, why);
    pthread_mutex_unlock(&d->failure_lock);
}

cudaStream_t cuda_stream(const cdad_context *ctx) {
    cudaSetDevice(of(ctx)->number);
    return of(ctx)->stream;
}

void cuda_launched(const cdad_context *ctx, const char *what) {
    const cudaError_t e = cudaGetLastError();
    if (e != cudaSuccess)
        keep_failure(of(ctx), what, cudaGetErrorString(e));
}

/* Row-major X [rows,columns] as cuBLAS's column-major operand X^T: 'N' where rows are dense, 'T' where columns are. */
static int operand(const cdad_mat *X, int64_t rows, int64_t columns, int *op, int *ld) {
    if ((X->cs == 1 || columns == 1) && (rows == 1 || X->rs >= columns)) {
        *op = CUBLAS_N;
        *ld = (int)cuda_max(rows == 1 ? 1 : X->rs, columns);
        return 1;
    }
    if ((X->rs == 1 || rows == 1) && (columns == 1 || X->cs >= rows)) {
        *op = CUBLAS_T;
        *ld = (int)cuda_max(columns == 1 ? 1 : X->cs, rows);
        return 1;
    }
    return 0;
}

/* C^T = B^T A^T, in columns. */
void cuda_multiply(const cdad_context *ctx, const cuda_product *p, const char *what) {
    cuda_device *d = of(ctx);
    int op_a, op_b, lda, ldb;
    char text[64];
    if (!operand(&p->A, p->M, p->K, &op_a, &lda) || !operand(&p->B, p->K, p->N, &op_b, &ldb)) {
        keep_failure(d, what, "a matrix whose rows and columns are both apart");
        return;
    }
    cudaSetDevice(d->number);
    pthread_mutex_lock(&d->handle_lock);
    const int status = d->cublas->gemm(d->handle, op_b, op_a, (int)p->N, (int)p->M, (int)p->K, &p->alpha, p->B.data,
                                       CUBLAS_FLOAT, ldb, p->stride_b, p->A.data, CUBLAS_FLOAT, lda, p->stride_a,
                                       &p->beta, p->C, CUBLAS_FLOAT, (int)p->ldc, p->stride_c, (int)p->batch,
                                       p->bf16 ? CUBLAS_COMPUTE_BF16 : CUBLAS_COMPUTE_FLOAT, CUBLAS_DEFAULT);
    pthread_mutex_unlock(&d->handle_lock);
    if (status) {
        snprintf(text, sizeof text, "cuBLAS status %d", status);
        keep_failure(d, what, text);
    }
}

double *cuda_sums_take(const cdad_context *ctx) {
    pthread_mutex_lock(&of(ctx)->sums_lock);
    return of(ctx)->sums;
}

double cuda_sums_read(const cdad_context *ctx, const char *what) {
    cuda_device *d = of(ctx);
    double sum = 0.0;
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(&sum, d->sums, sizeof sum, cudaMemcpyDeviceToHost, d->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(d->stream);
    pthread_mutex_unlock(&d->sums_lock);
    if (e != cudaSuccess)
        keep_failure(d, what, cudaGetErrorString(e));
    return sum;
}

static cdad_status device_alloc(cdad_device *base, void **out, int64_t bytes, cdad_error *err) {
    cuda_device *d = cast(base);
    cdad_status status = enter(d, err);
    *out = NULL;
    if (status != CDAD_OK)
        return status;
    const cudaError_t e = cudaMalloc(out, (size_t)cuda_max(bytes, CDAD_ALIGN));
    if (e == cudaSuccess)
        return CDAD_OK;
    size_t left = 0, total = 0;
    *out = NULL;
    cudaGetLastError(); /* not a launch's failure */
    cudaMemGetInfo(&left, &total);
    return fail(err, e == cudaErrorMemoryAllocation ? CDAD_NO_MEMORY : CDAD_NO_DEVICE,
                "%s: %.1f MiB cannot be had, %.1f of %.1f MiB are free: %s", d->name, (double)bytes / 1048576.0,
                (double)left / 1048576.0, (double)total / 1048576.0, cudaGetErrorString(e));
}

static void device_release(cdad_device *base, void *p) {
    cuda_device *d = cast(base);
    if (enter(d, NULL) == CDAD_OK) /* in a forked child the memory is not its own */
        cudaFree(p);
}

static cdad_status told(cuda_device *d, const char *what, cudaError_t e, cdad_error *err) {
    return e == cudaSuccess ? CDAD_OK : fail(err, CDAD_NO_DEVICE, "%s: %s: %s", d->name, what, cudaGetErrorString(e));
}

static cdad_status move(cdad_device *base, void *to, const void *from, int64_t bytes, cudaMemcpyKind kind, int wait,
                        const char *what, cdad_error *err) {
    cuda_device *d = cast(base);
    const cdad_status status = enter(d, err);
    if (status != CDAD_OK)
        return status;
    cudaError_t e = cudaMemcpyAsync(to, from, (size_t)bytes, kind, d->stream);
    if (e == cudaSuccess && wait)
        e = cudaStreamSynchronize(d->stream);
    return told(d, what, e, err);
}

/* Memory of the host that is not pinned is copied, or staged, before the call returns. */
static cdad_status device_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    return move(d, to, from, bytes, cudaMemcpyHostToDevice, 0, "upload", err);
}
static cdad_status device_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    return move(d, to, from, bytes, cudaMemcpyDeviceToHost, 1, "download", err);
}
static cdad_status device_copy(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    return move(d, to, from, bytes, cudaMemcpyDeviceToDevice, 0, "copy", err);
}

static cdad_status device_zero(cdad_device *base, void *to, int64_t bytes, cdad_error *err) {
    cuda_device *d = cast(base);
    const cdad_status status = enter(d, err);
    return status != CDAD_OK ? status : told(d, "zeros", cudaMemsetAsync(to, 0, (size_t)bytes, d->stream), err);
}

static cdad_status device_check(cdad_device *base, int wait, cdad_error *err) {
    cuda_device *d = cast(base);
    cdad_status status = wait ? enter(d, err) : CDAD_OK;
    if (status == CDAD_OK && wait)
        status = told(d, "waiting", cudaStreamSynchronize(d->stream), err);
    pthread_mutex_lock(&d->failure_lock);
    if (status == CDAD_OK && d->failure[0])
        status = fail(err, CDAD_NO_DEVICE, "%s", d->failure);
    d->failure[0] = 0;
    pthread_mutex_unlock(&d->failure_lock);
    return status;
}

static const cdad_kernels kernels = {
    "cuda",
    cuda_gemm,
    cuda_gemm_scratch,
    NULL, /* gram_*: of the host alone */
    NULL,
    NULL,
    NULL,
    cuda_winograd,
    cuda_winograd_scratch,
    cuda_winograd_grad,
    cuda_winograd_grad_scratch,
    cuda_narrow_conv2d,
    cuda_narrow_conv2d_scratch,
    cuda_narrow_conv2d_grad_weight,
    cuda_narrow_conv2d_grad_weight_scratch,
    cuda_depthwise_conv2d,
    cuda_depthwise_conv2d_grad,
    cuda_max_pool2d,
    cuda_max_pool2d_grad,
    cuda_activation,
    cuda_activation_grad,
    cuda_affine,
    cuda_binary,
    cuda_reduce,
    cuda_reduce_scratch,
    cuda_geglu,
    cuda_geglu_grad,
    cuda_group_norm,
    cuda_group_norm_grad,
    cuda_layer_norm,
    cuda_layer_norm_grad,
    cuda_layer_norm_grad_scratch,
    cuda_attention,
    cuda_attention_grad,
    cuda_attention_scratch,
    cuda_upsample2x,
    cuda_upsample2x_grad,
    cuda_resize_bilinear,
    cuda_copy_columns,
    cuda_timestep_embedding,
    cuda_gather_rows,
    cuda_scatter_rows,
    cuda_mse,
    cuda_mse_grad,
    cuda_sum_squares,
    cuda_sum_squares_pulled,
    cuda_add_magnitudes,
    cuda_adamw,
    cuda_add_to,
};

/* How many devices there are, or why there are none. */
static int count_devices(char *why, size_t bytes) {
    int n = 0, driver = 0, runtime = 0;
    const cudaError_t e = cudaGetDeviceCount(&n);
    why[0] = 0;
    if (e == cudaSuccess && n > 0)
        return n;
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        snprintf(why, bytes, "no NVIDIA driver is loaded (libcuda.so.1)");
    else if (e == cudaErrorInsufficientDriver)
        snprintf(why, bytes, "the NVIDIA driver is for CUDA %d.%d, %d.%d or newer is needed", driver / 1000,
                 driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    else if (e == cudaErrorNoDevice || e == cudaSuccess)
        snprintf(why, bytes, "the NVIDIA driver finds no GPU");
    else
        snprintf(why, bytes, "%s", cudaGetErrorString(e));
    return 0;
}

static cdad_status start(cuda_device *d, const char *folders, cdad_error *err) {
    cudaDeviceProp properties;
    char where[512];
    cdad_status status;
    d->cublas = cuda_cublas_load(folders, where, sizeof where);
    if (!d->cublas)
        return fail(err, CDAD_NO_DEVICE, "%s: %s", d->name, where);
    if ((status = enter(d, err)) != CDAD_OK ||
        (status = told(d, "properties", cudaGetDeviceProperties(&properties, d->number), err)) != CDAD_OK)
        return status;
    if (properties.major < 8)
        return fail(err, CDAD_NO_DEVICE, "%s (%s) has compute capability %d.%d, 8.0 or more is needed", d->name,
                    properties.name, properties.major, properties.minor);
    snprintf(d->text, sizeof d->text, "%s", properties.name);
    if ((status = told(d, "stream", cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), err)) != CDAD_OK ||
        (status = device_alloc(&d->base, (void **)&d->sums, CUDA_SUMS * (int64_t)sizeof(double), err)) != CDAD_OK)
        return status;
    if (d->cublas->create(&d->handle) || d->cublas->set_stream(d->handle, d->stream))
        return fail(err, CDAD_NO_DEVICE, "%s: cuBLAS (%s) does not start", d->name, where);
    return CDAD_OK;
}

static cdad_status open_device(int number, const char *folders, cdad_device **out, cdad_error *err) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static cuda_device devices[CDAD_CUDA_MAX_DEVICES];
    static int opened[CDAD_CUDA_MAX_DEVICES];
    char why[256];
    cdad_status status = CDAD_OK;
    pthread_mutex_lock(&mutex);
    const int n = count_devices(why, sizeof why);
    if (n == 0)
        status = fail(err, CDAD_NO_DEVICE, "%s", why);
    else if (number < 0 || number >= n || number >= CDAD_CUDA_MAX_DEVICES)
        status = fail(err, CDAD_NO_DEVICE, "there are %d CUDA devices, and none is number %d", n, number);
    else if (!opened[number]) {
        cuda_device *d = &devices[number];
        *d = cuda_device();
        d->number = number;
        d->process = getpid();
        snprintf(d->name, sizeof d->name, "cuda:%d", number);
        pthread_mutex_init(&d->handle_lock, NULL);
        pthread_mutex_init(&d->sums_lock, NULL);
        pthread_mutex_init(&d->failure_lock, NULL);
        const cdad_device base = {d->name,        d->text,       &kernels,        0,           device_alloc,
                                  device_release, device_upload, device_download, device_copy, device_zero,
                                  device_check};
        d->base = base;
        status = start(d, folders, err);
        opened[number] = status == CDAD_OK;
    }
    if (status == CDAD_OK)
        *out = &devices[number].base;
    pthread_mutex_unlock(&mutex);
    return status;
}

static void probe(const char *folders, cdad_cuda_probe *out) {
    memset(out, 0, sizeof *out);
    cudaDriverGetVersion(&out->driver);
    cudaRuntimeGetVersion(&out->runtime);
    out->n_devices = (int)cuda_min(count_devices(out->error, sizeof out->error), CDAD_CUDA_MAX_DEVICES);
    for (int i = 0; i < out->n_devices; i++) {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, i) != cudaSuccess)
            continue;
        snprintf(out->devices[i].name, sizeof out->devices[i].name, "%.127s", p.name);
        out->devices[i].major = p.major;
        out->devices[i].minor = p.minor;
        out->devices[i].bytes = (int64_t)p.totalGlobalMem;
    }
    out->has_cublas = cuda_cublas_load(folders, out->cublas, sizeof out->cublas) != NULL;
}

extern "C" __attribute__((visibility("default"))) const cdad_cuda_table *cdad_cuda_entry(void);
extern "C" const cdad_cuda_table *cdad_cuda_entry(void) {
    static const cdad_cuda_table table = {CDAD_DEVICE_ABI, CDAD_CUDA_ARCHS, open_device, probe};
    return &table;
}

/* The CUDA device: its streams, its products, and the entry of the shared object. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/device.h"

extern "C" {
#include "kernels/cuda/entry.h"
}

static cuda_device *of(const cdad_context *ctx) { return cuda_cast(ctx->device); }

cdad_status cuda_fail(cdad_error *err, cdad_status status, const char *format, ...) {
    va_list list;
    if (!err)
        return status;
    err->status = status;
    va_start(list, format);
    vsnprintf(err->message, sizeof err->message, format, list);
    va_end(list);
    return status;
}

static cdad_status status_of(cudaError_t e) { return e == cudaErrorMemoryAllocation ? CDAD_NO_MEMORY : CDAD_NO_DEVICE; }

cdad_status cuda_told(const cuda_device *d, const char *what, cudaError_t e, cdad_error *err) {
    if (e == cudaSuccess)
        return CDAD_OK;
    cudaGetLastError(); /* not the next launch's failure */
    return cuda_fail(err, status_of(e), "%s: %s: %s", d->name, what, cudaGetErrorString(e));
}

cdad_status cuda_enter(const cuda_device *d, cdad_error *err) {
    if (getpid() != d->process)
        return cuda_fail(err, CDAD_NO_DEVICE, "%s was opened before a fork: start processes with \"spawn\"", d->name);
    const cudaError_t e = cudaSetDevice(d->number);
    return e == cudaSuccess ? CDAD_OK : cuda_fail(err, CDAD_NO_DEVICE, "%s: %s", d->name, cudaGetErrorString(e));
}

const cuda_queue *cuda_queue_of(const cuda_device *d) { return cuda_is_recording(d) ? &d->records : &d->work; }

/* The first of what this thread asked for since its last check: other threads' work is theirs. */
static thread_local struct {
    cdad_status status;
    char text[256];
} failure;

static void keep_failure(cdad_status status, const char *what, const char *why) {
    if (failure.text[0])
        return;
    failure.status = status;
    snprintf(failure.text, sizeof failure.text, "%s: %s", what, why);
}

cudaStream_t cuda_stream(const cdad_context *ctx) {
    cudaSetDevice(of(ctx)->number);
    return cuda_queue_of(of(ctx))->stream;
}

int64_t cuda_shared_bytes(const cdad_context *ctx) { return of(ctx)->shared_bytes; }
int cuda_capability(const cdad_context *ctx) { return of(ctx)->capability; }
int cuda_processors(const cdad_context *ctx) { return of(ctx)->processors; }

void cuda_launched(const cdad_context *ctx, const char *what) {
    const cudaError_t e = cudaGetLastError();
    (void)ctx;
    if (e != cudaSuccess)
        keep_failure(status_of(e), what, cudaGetErrorString(e));
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

static int type_of(const cuda_product *p) { return p->rounded ? CUBLAS_BFLOAT16 : CUBLAS_FLOAT; }

static int compute_of(const cuda_product *p) {
    static const int compute[] = {CUBLAS_COMPUTE_FLOAT, CUBLAS_COMPUTE_BF16, CUBLAS_COMPUTE_TF32}; /* by cdad_precision */
    return p->rounded ? CUBLAS_COMPUTE_FLOAT : compute[p->precision];
}

/* C^T = B^T A^T, in columns. */
void cuda_multiply(const cdad_context *ctx, const cuda_product *p, const char *what) {
    const int type = type_of(p);
    cuda_device *d = of(ctx);
    int op_a, op_b, lda, ldb;
    char text[64];
    if (!operand(&p->A, p->M, p->K, &op_a, &lda) || !operand(&p->B, p->K, p->N, &op_b, &ldb)) {
        keep_failure(CDAD_NO_DEVICE, what, "a matrix whose rows and columns are both apart");
        return;
    }
    cudaSetDevice(d->number);
    pthread_mutex_lock(&d->cublas_lock);
    const int status = d->cublas->gemm(cuda_queue_of(d)->cublas, op_b, op_a, (int)p->N, (int)p->M, (int)p->K, &p->alpha, p->B.data,
                                       type, ldb, p->stride_b, p->A.data, type, lda, p->stride_a, &p->beta, p->C,
                                       CUBLAS_FLOAT, (int)p->ldc, p->stride_c, (int)p->batch,
                                       compute_of(p), CUBLAS_DEFAULT);
    pthread_mutex_unlock(&d->cublas_lock);
    if (status) {
        snprintf(text, sizeof text, "cuBLAS status %d", status);
        keep_failure(status == CUBLAS_ALLOC_FAILED ? CDAD_NO_MEMORY : CDAD_NO_DEVICE, what, text);
    }
}

bool cuda_multiply_fused(const cdad_context *ctx, const cuda_product *p, const float *bias, const float *sum) {
    cuda_device *d = of(ctx);
    cuda_fused f = {};
    if (!d->fused || p->batch != 1 || p->alpha != 1.0f || p->beta != 0.0f || !operand(&p->A, p->M, p->K, &f.op_b, &f.ldb) ||
        !operand(&p->B, p->K, p->N, &f.op_a, &f.lda))
        return false;
    f.m = (int)p->N, f.n = (int)p->M, f.k = (int)p->K, f.ldd = (int)p->ldc;
    f.A = p->B.data, f.B = p->A.data, f.bias = bias, f.C = sum, f.D = p->C;
    f.type = type_of(p), f.compute = compute_of(p);
    f.workspace = d->workspace, f.workspace_bytes = CUDA_WORKSPACE_BYTES;
    cudaSetDevice(d->number);
    pthread_mutex_lock(&d->cublas_lock); /* whose workspace it is */
    f.stream = cuda_queue_of(d)->stream;
    const int status = d->cublas->fused(d->fused, &f);
    pthread_mutex_unlock(&d->cublas_lock);
    return status == 0;
}

double *cuda_sums_take(const cdad_context *ctx) {
    pthread_mutex_lock(&of(ctx)->sums_lock);
    return of(ctx)->sums;
}

void cuda_sums_give(const cdad_context *ctx) { pthread_mutex_unlock(&of(ctx)->sums_lock); }

double cuda_sums_read(const cdad_context *ctx, const char *what) {
    cuda_device *d = of(ctx);
    double sum = 0.0;
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess)
        e = cudaMemcpyAsync(&sum, d->sums, sizeof sum, cudaMemcpyDeviceToHost, cuda_queue_of(d)->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(cuda_queue_of(d)->stream);
    cuda_sums_give(ctx);
    if (e == cudaSuccess)
        return sum;
    keep_failure(status_of(e), what, cudaGetErrorString(e));
    return NAN;
}

static cdad_status device_check(cdad_device *base, int wait, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    cdad_status status = wait ? cuda_enter(d, err) : CDAD_OK;
    if (status == CDAD_OK && wait)
        status = cuda_told(d, "waiting", cudaStreamSynchronize(cuda_queue_of(d)->stream), err);
    if (status == CDAD_OK && failure.text[0])
        status = cuda_fail(err, failure.status, "%s", failure.text);
    failure.text[0] = 0;
    return status;
}

static cdad_status device_order(cdad_device *base, void *stream, int ours_first, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cudaStream_t other = (cudaStream_t)stream;
    cudaEvent_t event;
    const cdad_status status = cuda_enter(d, err);
    if (status != CDAD_OK)
        return status;
    if (!stream)
        return cuda_told(d, "waiting", cudaStreamSynchronize(d->work.stream), err);
    cudaError_t e = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (e != cudaSuccess)
        return cuda_told(d, "event", e, err);
    e = cudaEventRecord(event, ours_first ? d->work.stream : other);
    if (e == cudaSuccess)
        e = cudaStreamWaitEvent(ours_first ? other : d->work.stream, event, 0);
    cudaEventDestroy(event); /* goes when it was reached */
    return cuda_told(d, "order of streams", e, err);
}

static const cdad_kernels kernels = {
    "cuda",
    cuda_gemm,
    cuda_gemm_scratch,
    NULL, /* gram_panels to bf16_speed: of the host alone */
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    cuda_gram_add,
    cuda_gram_scratch,
    cuda_sketch_add,
    cuda_sketch_scratch,
    NULL, /* winograd*, narrow_*: all convolutions go by gemm */
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
    NULL,
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
    cuda_group_norm_scratch,
    cuda_layer_norm,
    cuda_layer_norm_grad,
    cuda_layer_norm_grad_scratch,
    cuda_attention,
    cuda_attention_grad,
    cuda_attention_scratch,
    cuda_upsample2x,
    cuda_upsample2x_grad,
    cuda_resize_bilinear,
    cuda_copy_runs,
    cuda_timestep_embedding,
    cuda_gather_rows,
    cuda_scatter_rows,
    cuda_mse,
    cuda_mse_grad,
    cuda_sum_squares,
    cuda_sum_squares_pulled,
    cuda_add_magnitudes,
    cuda_adamw,
    cuda_sum_squares_each,
    cuda_adamw_each,
    cuda_add_to,
};

/* CDAD_CUDA_GRAPHS=0 launches every kernel by itself. */
static cdad_device device_of(const cuda_device *d) {
    const char *graphs = getenv("CDAD_CUDA_GRAPHS");
    cdad_device base = cdad_device();
    base.name = d->name;
    base.text = d->text;
    base.kernels = &kernels;
    base.alloc = cuda_memory_alloc;
    base.release = cuda_memory_release;
    base.upload = cuda_upload;
    base.download = cuda_download;
    base.copy = cuda_copy;
    base.zero = cuda_zero;
    base.check = device_check;
    base.memory = cuda_memory;
    base.order = device_order;
    base.dlpack_type = 2; /* kDLCUDA */
    base.dlpack_number = d->number;
    if (!graphs || strcmp(graphs, "0") != 0) {
        base.record = cuda_record;
        base.recorded = cuda_recorded;
        base.replay = cuda_replay;
        base.forget = cuda_forget;
    }
    return base;
}

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

cdad_status cuda_queue_open(cuda_device *d, cuda_queue *q, cdad_error *err) {
    if (!q->stream) {
        const cudaError_t e = cudaStreamCreateWithFlags(&q->stream, cudaStreamNonBlocking);
        if (e != cudaSuccess)
            return cuda_told(d, "stream", e, err);
    }
    if (!d->workspace) { /* memory is had in the order of a stream, so the first one is there before it */
        const cdad_status status = cuda_memory_alloc(&d->base, &d->workspace, CUDA_WORKSPACE_BYTES, err);
        if (status != CDAD_OK)
            return status;
    }
    if (q->cublas)
        return CDAD_OK;
    void *made = NULL; /* on failure left behind: the library has no other use of it */
    const int created = d->cublas->create(&made);
    if (created == CUBLAS_ALLOC_FAILED)
        return cuda_fail(err, CDAD_NO_MEMORY, "%s: there is no memory for cuBLAS", d->name);
    if (created || d->cublas->set_stream(made, q->stream) ||
        d->cublas->set_workspace(made, d->workspace, CUDA_WORKSPACE_BYTES))
        return cuda_fail(err, CDAD_NO_DEVICE, "%s: cuBLAS does not start", d->name);
    q->cublas = made;
    return CDAD_OK;
}

static cdad_status start(cuda_device *d, const char *folders, cdad_error *err) {
    cudaDeviceProp properties;
    char where[512];
    cdad_status status;
    d->cublas = cuda_cublas_load(folders, where, sizeof where);
    if (!d->cublas)
        return cuda_fail(err, CDAD_NO_DEVICE, "%s: %s", d->name, where);
    if ((status = cuda_enter(d, err)) != CDAD_OK ||
        (status = cuda_told(d, "properties", cudaGetDeviceProperties(&properties, d->number), err)) != CDAD_OK)
        return status;
    if (properties.major < 8)
        return cuda_fail(err, CDAD_NO_DEVICE, "%s (%s) has compute capability %d.%d, 8.0 or more is needed", d->name,
                         properties.name, properties.major, properties.minor);
    snprintf(d->text, sizeof d->text, "%s", properties.name);
    d->shared_bytes = (int64_t)properties.sharedMemPerBlockOptin;
    d->capability = 10 * properties.major + properties.minor;
    d->processors = properties.multiProcessorCount;
    if (!d->fused && d->cublas->start_fused && d->cublas->start_fused(&d->fused))
        d->fused = NULL;
    if ((status = cuda_memory_open(d, err)) != CDAD_OK || (status = cuda_queue_open(d, &d->work, err)) != CDAD_OK)
        return status;
    return d->sums ? CDAD_OK : cuda_memory_alloc(&d->base, (void **)&d->sums, CUDA_SUMS * (int64_t)sizeof(double), err);
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
        status = cuda_fail(err, CDAD_NO_DEVICE, "%s", why);
    else if (number < 0 || number >= n || number >= CDAD_CUDA_MAX_DEVICES)
        status = cuda_fail(err, CDAD_NO_DEVICE, "there are %d CUDA devices, and none is number %d", n, number);
    else if (!opened[number]) {
        cuda_device *d = &devices[number];
        if (d->process != getpid()) { /* else what an attempt that failed had made is used again */
            *d = cuda_device();
            d->number = number;
            d->process = getpid();
            snprintf(d->name, sizeof d->name, "cuda:%d", number);
            pthread_mutex_init(&d->cublas_lock, NULL);
            pthread_mutex_init(&d->sums_lock, NULL);
            pthread_mutex_init(&d->slots_lock, NULL);
            pthread_mutex_init(&d->record_lock, NULL);
            d->base = device_of(d);
        }
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

/* The emulated device: a program runs there to the host's bits, what mixes up the two memories is told, and all is freed.
 * The planned device: sizes are the host's, and nothing runs. */
#include <stddef.h>

#include "continual/stream.h"
#include "graph/program.h"
#include "kernels/devices.h"
#include "kernels/kernels.h"

#include "check.h"

static cdad_graph *g;
static cdad_value x, y, z;

/* y = silu(x) + c, with a constant; z: y in other places. */
static cdad_status build(cdad_error *err) {
    static const float constant[6] = {1, 2, 3, 4, 5, 6};
    cdad_value c, s;
    const cdad_shape shape = cdad_shape_make(2, (int64_t)2, (int64_t)3);
    CDAD_TRY(cdad_graph_new(&g, err));
    CDAD_TRY(cdad_graph_input(g, "x", shape, &x, err));
    CDAD_TRY(cdad_graph_const(g, shape, constant, &c, err));
    CDAD_TRY(cdad_node_add(g, cdad_op_find("silu"), 1, &x, &s, err, NULL));
    CDAD_TRY(cdad_node_add(g, cdad_op_find("add"), 2, (cdad_value[]){s, c}, &y, err, NULL));
    return cdad_node_add(g, cdad_op_find("pad_columns"), 1, &y, &z, err, "begin", 1.0, "width", 5.0, NULL);
}

static cdad_status run_on(const cdad_context *ctx, float *to, cdad_error *err) {
    static const float given[6] = {-2, -1, 0, 1, 2, 3};
    cdad_status status = CDAD_OK;
    cdad_program *p = NULL;
    CDAD_TRY_DONE(cdad_program_new(&p, g, 1, &z, NULL, ctx, err));
    CDAD_TRY_DONE(cdad_program_feed(p, x, given, err));
    CDAD_TRY_DONE(cdad_program_run(p, ctx, err));
    CDAD_TRY_DONE(cdad_program_read(p, z, to, err));
done:
    cdad_program_free(p);
    return status;
}

static cdad_status run_with_host_memory(const cdad_context *ctx, cdad_error *err) {
    static const float given[6];
    cdad_status status = CDAD_OK;
    cdad_program *p = NULL;
    CDAD_TRY_DONE(cdad_program_new(&p, g, 1, &z, NULL, ctx, err));
    CDAD_TRY_DONE(cdad_program_bind(p, x, given, err));
    CDAD_TRY_DONE(cdad_program_run(p, ctx, err));
done:
    cdad_program_free(p);
    return status;
}

/* A table is a name and functions; streams, which are the host's, have theirs in its tables alone. */
static int is_complete(const cdad_kernels *kernels, int is_host) {
    const size_t first = offsetof(cdad_kernels, gram_panels) / sizeof(void *);
    const size_t last = offsetof(cdad_kernels, gram_rounds_fast) / sizeof(void *);
    int complete = 1;
    for (size_t i = 0; i < sizeof *kernels / sizeof(void *); i++)
        complete &= (((void *const *)(uintptr_t)kernels)[i] != NULL) == (is_host || i < first || i > last);
    return complete;
}

/* A stream, of host memory, takes no device's kernels. */
static void stream_on(const cdad_context *ctx) {
    static const float X[6] = {1, 2, 3, 4, 5, 6};
    cdad_stream *s = NULL;
    float *U;
    int64_t k;
    double energy;
    CHECK_OK(cdad_stream_new(&s, 3, CDAD_STREAM_EXACT, 0.99, err));
    CHECK_FAILS(CDAD_INVALID, "cannot work on emulated",
                cdad_stream_add(s, ctx, (cdad_mat){.data = X, .rs = 3, .cs = 1}, 2, err));
    CHECK_FAILS(CDAD_INVALID, "cannot work on emulated", cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    cdad_stream_free(s);
}

/* A program is planned without memory, tells its sizes, and does not run; what is written there is lost. */
static void plan_on(const cdad_context *host) {
    static const float given[6];
    cdad_device *device = NULL;
    cdad_program *p = NULL, *there = NULL;
    void *large = NULL, *other = NULL;
    float got;
    CHECK_OK(cdad_device_open("planned", "", &device, err));
    if (!device)
        return;
    const cdad_context ctx = {.kernels = device->kernels, .device = device, .host_kernels = host->kernels};
    CHECK_OK(cdad_program_new(&p, g, 1, &z, NULL, host, err));
    CHECK_OK(cdad_program_new(&there, g, 1, &z, NULL, &ctx, err));
    CHECK(cdad_program_arena_bytes(there) == cdad_program_arena_bytes(p), "another arena");
    CHECK_OK(cdad_program_feed(there, x, given, err));
    CHECK_FAILS(CDAD_INVALID, "nothing runs on the device 'planned'", cdad_program_run(there, &ctx, err));
    cdad_program_free(p);
    cdad_program_free(there);
    CHECK_OK(cdad_device_alloc_zero(device, &large, INT64_C(1) << 42, err)); /* more than any machine has */
    CHECK_OK(cdad_device_alloc(device, &other, 0, err));
    CHECK(large && other && large != other, "addresses");
    CHECK_OK(cdad_device_copy(device, other, large, 4, err));
    CHECK_FAILS(CDAD_INVALID, "only planned", cdad_device_download(device, &got, large, 4, err));
    cdad_device_free(device, large);
    cdad_device_free(device, other);
    CHECK_FAILS(CDAD_SHAPE, "an allocation of -1", cdad_device_alloc(device, &other, -1, err));
}

/* What is used and its peak are counted; a limit refuses what would pass it, and what is freed counts no more. */
static void memory_on(cdad_device *device) {
    void *one = NULL, *two = NULL;
    const int64_t before = device->memory(device, 1).used;
    CHECK_OK(cdad_device_alloc(device, &one, 1000, err));
    CHECK(device->memory(device, 0).used == before + 1000, "what is used");
    device->limit = before + 1500;
    CHECK_FAILS(CDAD_NO_MEMORY, "would pass the limit", cdad_device_alloc(device, &two, 501, err));
    CHECK(!two && device->memory(device, 0).used == before + 1000, "what was refused");
    CHECK_OK(cdad_device_alloc(device, &two, 500, err));
    cdad_device_free(device, one);
    cdad_device_free(device, two);
    CHECK(device->memory(device, 0).used == before && device->memory(device, 0).peak == before + 1500, "the peak");
    CHECK(device->memory(device, 1).peak == before + 1500 && device->memory(device, 0).peak == before, "a forgotten peak");
    device->limit = 0;
}

int cdad_test_devices(void) {
    cdad_device *device = NULL, *none = NULL;
    float want[10], got[10];
    CHECK_OK(cdad_device_open("emulated", "", &device, err));
    CHECK_OK(cdad_device_open("cpu", "", &none, err));
    CHECK_FAILS(CDAD_INVALID, "no device 'tpu'", cdad_device_open("tpu", "", &none, err));
    CHECK_FAILS(CDAD_INVALID, "no device 'cuda:x'", cdad_device_open("cuda:x", "", &none, err));
    CHECK_FAILS(CDAD_INVALID, "no device 'cuda:-1'", cdad_device_open("cuda:-1", "", &none, err));
    CHECK(!none && device, "the devices");
    if (!device)
        return failures;
    CHECK(is_complete(device->kernels, 0), "a slot is empty, or a stream's is not");
    for (int i = 0; cdad_kernels_at(i); i++)
        CHECK(is_complete(cdad_kernels_at(i), 1), "a slot of %s is empty", cdad_kernels_at(i)->name);
    const cdad_context host = {.kernels = cdad_kernels_at(0)};
    const cdad_context there = {.kernels = device->kernels, .device = device, .host_kernels = cdad_kernels_at(0)};
    const int64_t before = device->memory(device, 0).used;
    cdad_program *p = NULL;
    void *memory;
    stream_on(&there);
    CHECK_OK(build(err));
    CHECK_OK(run_on(&host, want, err));
    CHECK_OK(run_on(&there, got, err));
    CHECK(same(want, got, 10), "other bits");
    CHECK_FAILS(CDAD_INVALID, "x of activation is not in the device's memory", run_with_host_memory(&there, err));
    CHECK_FAILS(CDAD_INVALID, "silu [2,3] on emulated", run_with_host_memory(&there, err));
    CHECK_OK(cdad_program_new(&p, g, 1, &y, NULL, &there, err));
    CHECK_FAILS(CDAD_INVALID, "planned for emulated runs on cpu", cdad_program_run(p, &host, err));
    cdad_program_free(p);
    plan_on(&host);
    for (int64_t n = 1; n < 20; n++) { /* each allocation fails once, the device's too */
        cdad_alloc_fail_after(n);
        (void)!run_on(&there, got, NULL);
    }
    cdad_alloc_fail_after(0);
    CHECK(device->memory(device, 0).used == before, "%" PRId64 " bytes were not freed", device->memory(device, 0).used - before);
    CHECK_OK(cdad_device_alloc_zero(device, &memory, 40, err));
    CHECK_OK(cdad_device_upload(device, memory, want, 40, err));
    CHECK_FAILS(CDAD_INVALID, "upload to", cdad_device_upload(device, (char *)memory + 4, want, 40, err));
    CHECK_FAILS(CDAD_INVALID, "download from", cdad_device_download(device, got, want, 40, err));
    CHECK_OK(cdad_device_zero(device, memory, 4, err));
    CHECK_OK(cdad_device_download(device, got, memory, 40, err));
    CHECK(got[0] == 0.0f && same(got + 1, want + 1, 9), "what was copied");
    CHECK_OK(device->order(device, NULL, 1, err));
    CHECK_OK(device->order(device, CDAD_DEFAULT_STREAM, 0, err));
    CHECK_FAILS(CDAD_INVALID, "there is no stream 0x7", device->order(device, (void *)7, 1, err));
    cdad_device_free(device, memory);
    memory_on(device);
    CHECK_FAILS(CDAD_INVALID, "zeros to", cdad_device_zero(device, memory, 4, err));
    cdad_graph_free(g);
    return failures;
}

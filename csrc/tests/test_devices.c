/* The emulated device: a program runs there to the host's bits, what mixes up the two memories is told, and all is freed.
 * The planned device: sizes are the host's, and nothing runs. */
#include <math.h>
#include <stddef.h>

#include "continual/stream.h"
#include "graph/program.h"
#include "kernels/devices.h"
#include "kernels/kernels.h"
#include "optim/adamw.h"

#include "stream_check.h"

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

/* A table is a name and functions; Gram matrices are summed by other ones on the host than on a device, which alone has some for many
 * parameters, and by whole numbers on some hosts. */
static int is_complete(const cdad_kernels *kernels, int is_host) {
    const size_t first = offsetof(cdad_kernels, gram_panels) / sizeof(void *);
    const size_t there = offsetof(cdad_kernels, gram_add) / sizeof(void *);
    const size_t last = offsetof(cdad_kernels, gram_scratch) / sizeof(void *);
    const size_t bytes = offsetof(cdad_kernels, gram_bytes_panels) / sizeof(void *);
    const size_t each = offsetof(cdad_kernels, sum_squares_each) / sizeof(void *);
    int complete = 1;
    for (size_t i = 0; i < sizeof *kernels / sizeof(void *); i++) {
        const int is_gram = i >= first && i <= last, is_each = i == each || i == each + 1;
        const int is_bytes = i >= bytes && i < bytes + 3;
        const int wanted = is_bytes ? is_host && kernels->gram_bytes_tile : is_gram ? (i < there) == is_host : !is_each || !is_host;
        complete &= (((void *const *)(uintptr_t)kernels)[i] != NULL) == wanted;
    }
    return complete;
}

/* Features of a device go into exact streams and sketches alone, whose sum stays there until it is settled, and is then the host's to the
 * bit. */
static void stream_on(const cdad_context *host, const cdad_context *ctx, cdad_stream_method method) {
    enum { ROWS = 500, D = 450, SIDE = 5, C = 50 };
    const cdad_unfold u = {.N = 20, .H = SIDE, .W = SIDE, .C = C, .P = SIDE, .Q = SIDE, .R = 3, .S = 3, .stride = 1, .pad_t = 1,
                           .pad_l = 1, .up = 1};
    float *X = normal(ROWS * D, 1), *U;
    cdad_stream *s = new_stream(D, method, 0.9), *want = new_stream(D, method, 0.9);
    cdad_stream *other = new_stream(D, CDAD_STREAM_INCREMENTAL, 0.9);
    const cdad_mat image = {.data = X, .unfold = &u}, plain = dense(X, D);
    cdad_mat image_there = image, plain_there = plain;
    void *memory = NULL;
    double energy;
    int64_t k;
    cdad_stream_energy told;
    CHECK_OK(cdad_device_mirror(ctx->device, &memory, X, ROWS * D * (int64_t)sizeof *X, err));
    image_there.data = plain_there.data = memory;
    CHECK_FAILS(CDAD_INVALID, "cannot work on emulated", cdad_stream_add(other, ctx, plain_there, ROWS, err));
    CHECK_FAILS(CDAD_INVALID, "lie without gaps",
                cdad_stream_add(s, ctx, (cdad_mat){.data = memory, .rs = 1, .cs = ROWS}, ROWS, err));
    EACH_ALLOCATION_FAILS(cdad_stream_add(s, ctx, plain_there, ROWS, NULL), cdad_stream_rows(s) == 0);
    CHECK_OK(cdad_stream_add(s, ctx, image_there, 20 * SIDE * SIDE, err));
    CHECK_OK(cdad_stream_add(want, host, plain, ROWS, err));
    CHECK_OK(cdad_stream_add(want, host, image, 20 * SIDE * SIDE, err));
    CHECK_FAILS(CDAD_INVALID, "still on emulated", cdad_stream_basis(s, host, NULL, 0, &U, &k, &energy, err));
    CHECK_FAILS(CDAD_INVALID, "still on emulated", cdad_stream_merge(want, host, s, err));
    CHECK_FAILS(CDAD_INVALID, "still on emulated", cdad_stream_energies(s, host, &told, err));
    CHECK_FAILS(CDAD_INVALID, "still on emulated", cdad_stream_state_size(s, &k, err));
    CHECK_FAILS(CDAD_INVALID, "cannot work on emulated", cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    EACH_ALLOCATION_FAILS(cdad_stream_settle(s, NULL), cdad_stream_rows(s) == 2 * ROWS);
    CHECK_OK(cdad_stream_settle(s, err));
    CHECK(same_state(s, want, 0), "other sums");
    X[7] = NAN;
    CHECK_OK(cdad_device_upload(ctx->device, memory, X, ROWS * D * (int64_t)sizeof *X, err));
    CHECK_FAILS(CDAD_NOT_FINITE, "not all are finite", cdad_stream_add(s, ctx, plain_there, ROWS, err));
    CHECK_FAILS(CDAD_NOT_FINITE, "not all are finite", cdad_stream_add(s, ctx, image_there, 20 * SIDE * SIDE, err));
    CHECK(same_state(s, want, 0), "features that are not finite are added");
    cdad_free(X);
    cdad_device_free(ctx->device, memory);
    cdad_stream_free(s);
    cdad_stream_free(want);
    cdad_stream_free(other);
}

/* A launch that fails for want of memory may have left anything: not what is told where nothing was added yet. */
static int launched;
static void failing_sketch(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                           const int32_t *signs, int64_t M, int rounded, void *scratch) {
    (void)ctx, (void)Y, (void)squares, (void)X, (void)first, (void)rows, (void)d, (void)signs, (void)M, (void)rounded, (void)scratch;
    launched = 1;
}
static void failing_add(const cdad_context *ctx, double *G, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16, void *scratch) {
    (void)ctx, (void)X, (void)first, (void)rows, (void)d, (void)bf16, (void)scratch, (void)G;
    launched = 1;
}
static cdad_status failing_check(cdad_device *d, int wait, cdad_error *err) {
    (void)d, (void)wait;
    return launched ? cdad_fail(err, CDAD_NO_MEMORY, "no room for a launch") : CDAD_OK;
}
static void spoiled_stream_on(const cdad_context *ctx, cdad_stream_method method) {
    enum { ROWS = 3, D = 20 };
    cdad_device *const device = ctx->device;
    cdad_status (*const check)(cdad_device *, int, cdad_error *) = device->check;
    cdad_kernels kernels = *ctx->kernels;
    cdad_context failing = *ctx;
    float *X = normal(ROWS * D, 1);
    cdad_stream *s = new_stream(D, method, 0.9);
    void *memory = NULL;
    CHECK_OK(cdad_device_mirror(device, &memory, X, ROWS * D * (int64_t)sizeof *X, err));
    kernels.gram_add = failing_add;
    kernels.sketch_add = failing_sketch;
    launched = 0;
    failing.kernels = &kernels;
    device->check = failing_check;
    CHECK_FAILS(CDAD_NO_DEVICE, "no room for a launch", cdad_stream_add(s, &failing, dense(memory, D), ROWS, err));
    device->check = check;
    CHECK_FAILS(CDAD_INVALID, "stopped half-way", cdad_stream_add(s, ctx, dense(memory, D), ROWS, err));
    cdad_device_free(device, memory);
    cdad_stream_free(s);
    cdad_free(X);
}

/* What has come half-way is not what came before: it may not come again. And an add that found no memory leaves none there. */
static int downloads; /* that go well */
static cdad_status (*downloading)(cdad_device *, void *, const void *, int64_t, cdad_error *);
static cdad_status failing_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    return downloads-- > 0 ? downloading(d, to, from, bytes, err) : cdad_fail(err, CDAD_NO_MEMORY, "no room for a copy");
}
static void half_a_stream_from(const cdad_context *ctx, cdad_stream_method method) {
    enum { ROWS = 30, D = 500 };
    cdad_device *const device = ctx->device;
    float *X = normal(ROWS * D, 1);
    void *memory = NULL;
    CHECK_OK(cdad_device_mirror(device, &memory, X, ROWS * D * (int64_t)sizeof *X, err));
    for (int good = 0; good < 4; good++) {
        cdad_stream *s = new_stream(D, method, 0.9);
        CHECK_OK(cdad_stream_add(s, ctx, dense(memory, D), ROWS, err));
        downloading = device->download;
        device->download = failing_download;
        downloads = good;
        const cdad_status status = cdad_stream_settle(s, NULL);
        device->download = downloading;
        const int begun = good > (method == CDAD_STREAM_SKETCH); /* whose total comes first */
        const int all = method == CDAD_STREAM_EXACT && good > 2; /* three strips */
        CHECK(status == (all ? CDAD_OK : begun ? CDAD_NO_DEVICE : CDAD_NO_MEMORY), "after %d: status %d", good, status);
        if (begun && !all)
            CHECK_FAILS(CDAD_INVALID, "half-way", cdad_stream_add(s, ctx, dense(memory, D), ROWS, err));
        else
            CHECK_OK(cdad_stream_settle(s, err));
        cdad_stream_free(s);
    }
    const int64_t used = device->memory(device, 0).used;
    cdad_stream *s = new_stream(D, method, 0.9);
    int found = 0;
    for (int64_t more = 0; found != 1 && more < 64 << 20; more += 100000) {
        device->limit = used + more;
        found = cdad_stream_add(s, ctx, dense(memory, D), ROWS, NULL) == CDAD_OK;
        device->limit = 0;
        CHECK(found || device->memory(device, 0).used == used, "%" PRId64 " bytes stay", device->memory(device, 0).used - used);
    }
    CHECK(found, "no memory would do");
    cdad_stream_free(s);
    cdad_device_free(device, memory);
    cdad_free(X);
}

/* Parameters whose first values did not arrive are none: zeros would pass for them. */
static cdad_status failing_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    (void)d, (void)to, (void)from, (void)bytes;
    return cdad_fail(err, CDAD_NO_DEVICE, "the cable is out");
}
static void first_values_on(cdad_device *device) {
    cdad_status (*const upload)(cdad_device *, void *, const void *, int64_t, cdad_error *) = device->upload;
    cdad_params *params;
    CHECK_OK(cdad_params_new(&params, err));
    params->device = device;
    CHECK_OK(cdad_params_register(params, "w", cdad_shape_make(2, (int64_t)2, (int64_t)3), (cdad_init){0}, err));
    device->upload = failing_upload;
    CHECK_FAILS(CDAD_NO_DEVICE, "the cable is out", cdad_params_allocate(params, 0, err));
    device->upload = upload;
    CHECK(!params->values, "they pass for allocated");
    CHECK_OK(cdad_params_allocate(params, 0, err));
    cdad_params_free(params);
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

/* Stands for a device that records: the emulated one's kernels work at once, and what is asked of recordings is counted. */
static int made, replayed, forgotten, refuses;
static cdad_status fake_record(cdad_device *d, cdad_error *err) {
    (void)d, (void)err;
    return CDAD_OK;
}
static cdad_status fake_recorded(cdad_device *d, void **out, cdad_error *err) {
    (void)d;
    *out = NULL;
    if (refuses)
        return cdad_fail(err, CDAD_NO_DEVICE, "the recording is invalid");
    *out = &made;
    made++;
    return CDAD_OK;
}
static cdad_status fake_replay(cdad_device *d, void *recording, cdad_error *err) {
    (void)d, (void)recording, (void)err;
    replayed++;
    return CDAD_OK;
}
static void fake_forget(cdad_device *d, void *recording) {
    (void)d, (void)recording;
    forgotten++;
}

static cdad_status no_tap(void *arg, const cdad_context *ctx, const cdad_node *node, const float *input, const cdad_shape *shape,
                          cdad_error *err) {
    (void)arg, (void)ctx, (void)node, (void)input, (void)shape, (void)err;
    return CDAD_OK;
}

/* A tap ends what is recorded, so that it is another recording with it than without; one that fails leaves the steps to be run. */
static void record_taps_on(const cdad_context *ctx) {
    static const float ones[6] = {1, 1, 1, 1, 1, 1};
    float given[6] = {0}, got[4];
    cdad_graph *layers = NULL;
    cdad_program *p = NULL;
    cdad_value in, first, w, out;
    const cdad_shape shape = cdad_shape_make(2, (int64_t)2, (int64_t)3);
    CHECK_OK(cdad_graph_new(&layers, err));
    CHECK_OK(cdad_graph_input(layers, "in", shape, &in, err));
    CHECK_OK(cdad_node_add(layers, cdad_op_find("affine"), 1, &in, &first, err, "a", 2.0, NULL));
    CHECK_OK(cdad_graph_param(layers, "w", shape, &w, err));
    CHECK_OK(cdad_node_add(layers, cdad_op_find("linear"), 2, (cdad_value[]){first, w}, &out, err, NULL));
    CHECK_OK(cdad_program_new(&p, layers, 1, &out, NULL, ctx, err));
    CHECK_OK(cdad_program_feed(p, w, ones, err));
    for (int i = 0; i < 8; i++) {
        refuses = i == 1 || i == 4;
        CHECK_OK(i % 3 == 0 ? cdad_program_tap(p, w, i == 3 ? no_tap : NULL, NULL, 0, err) : CDAD_OK);
        given[0] = (float)i;
        const int before = replayed;
        CHECK_OK(cdad_program_feed(p, in, given, err));
        CHECK_OK(cdad_program_run(p, ctx, err));
        CHECK_OK(cdad_program_read(p, out, got, err));
        const int wanted = i == 2 || i == 5 || i == 7;
        CHECK(cdad_program_is_recorded(p) == wanted && replayed - before == wanted, "run %d", i);
        CHECK(got[0] == 2 * given[0] && got[2] == 0, "run %d: %g", i, (double)got[0]);
    }
    refuses = 0;
    cdad_program_free(p);
    cdad_graph_free(layers);
}

/* A recording is made by the second run alike, and is dropped when a value lies elsewhere. */
static void record_on(const cdad_context *ctx) {
    static const float given[6] = {-2, -1, 0, 1, 2, 3};
    cdad_device *d = ctx->device;
    cdad_program *p = NULL;
    void *one = NULL, *two = NULL;
    d->record = fake_record;
    d->recorded = fake_recorded;
    d->replay = fake_replay;
    d->forget = fake_forget;
    CHECK_OK(cdad_device_mirror(d, &one, given, sizeof given, err));
    CHECK_OK(cdad_device_mirror(d, &two, given, sizeof given, err));
    CHECK_OK(cdad_program_new(&p, g, 1, &y, NULL, ctx, err));
    for (int i = 0; i < 6; i++) {
        CHECK_OK(cdad_program_bind(p, x, i < 3 ? one : two, err));
        CHECK_OK(cdad_program_run(p, ctx, err));
        CHECK(cdad_program_is_recorded(p) == (i % 3 > 0), "run %d is%s replayed", i, i % 3 ? " not" : "");
    }
    CHECK(made == 2 && replayed == 4 && forgotten == 1, "%d made, %d replayed, %d dropped", made, replayed, forgotten);
    cdad_program_free(p);
    CHECK(forgotten == 2, "a recording outlives its program");
    record_taps_on(ctx);
    cdad_device_free(d, one);
    cdad_device_free(d, two);
    d->record = NULL;
    d->recorded = NULL;
    d->replay = NULL;
    d->forget = NULL;
}

/* A gradient of n numbers that is not finite, not held with others: its parameter is as before, and the step's end tells it by name. */
static void gradient_on(const cdad_context *ctx, int64_t n) {
    static float bad[CDAD_SMALL8], before[CDAD_SMALL8], after[CDAD_SMALL8];
    const size_t bytes = (size_t)n * sizeof *bad;
    const cdad_optimizer_config config = {.lr = 0.1, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8};
    cdad_params *params = NULL;
    cdad_optimizer *o = NULL;
    void *grad = NULL;
    double norm;
    bad[2] = NAN;
    CHECK_OK(cdad_params_new(&params, err));
    params->device = ctx->device;
    CHECK_OK(cdad_params_register(params, "w", cdad_shape_make(2, (int64_t)2, n / 2), (cdad_init){0}, err));
    CHECK_OK(cdad_params_allocate(params, 0, err));
    CHECK_OK(cdad_device_download(ctx->device, before, params->values, (int64_t)bytes, err));
    CHECK_OK(cdad_optimizer_new(&o, params, &config, err));
    CHECK_OK(cdad_device_mirror(ctx->device, &grad, bad, (int64_t)bytes, err));
    CHECK_OK(cdad_optimizer_begin(o, ctx, 1.0, err));
    CHECK_OK(cdad_optimizer_use(o, ctx, 0, grad, err));
    CHECK_FAILS(CDAD_NOT_FINITE, "the gradient of w is not finite", cdad_optimizer_end(o, ctx, &norm, err));
    CHECK_OK(cdad_device_download(ctx->device, after, params->values, (int64_t)bytes, err));
    CHECK(same(before, after, (int)n), "a gradient that is not finite moves a weight");
    cdad_device_free(ctx->device, grad);
    cdad_optimizer_free(o);
    cdad_params_free(params);
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
    CHECK(is_complete(device->kernels, 0), "a slot is empty, or one of the host's is not");
    for (int i = 0; cdad_kernels_at(i); i++)
        CHECK(is_complete(cdad_kernels_at(i), 1), "a slot of %s is empty", cdad_kernels_at(i)->name);
    const cdad_context host = {.kernels = cdad_kernels_at(0)};
    const cdad_context there = {.kernels = device->kernels, .device = device, .host_kernels = cdad_kernels_at(0)};
    const int64_t before = device->memory(device, 0).used;
    cdad_program *p = NULL;
    void *memory;
    stream_on(&host, &there, CDAD_STREAM_EXACT);
    stream_on(&host, &there, CDAD_STREAM_SKETCH);
    spoiled_stream_on(&there, CDAD_STREAM_EXACT);
    spoiled_stream_on(&there, CDAD_STREAM_SKETCH);
    half_a_stream_from(&there, CDAD_STREAM_EXACT);
    half_a_stream_from(&there, CDAD_STREAM_SKETCH);
    first_values_on(device);
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
    record_on(&there);
    gradient_on(&there, 6);
    gradient_on(&there, CDAD_SMALL8);
    CHECK_FAILS(CDAD_INVALID, "zeros to", cdad_device_zero(device, memory, 4, err));
    cdad_graph_free(g);
    return failures;
}

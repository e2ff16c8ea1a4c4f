/* Three small runs, repeated as often as wanted: benchmarks/instructions.py counts their instructions. */
#include "base/memory.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "train/trainer.h"
#include "check.h"

int cdad_counted(const char *name, int repeats);

static const cdad_kernels *kernels;
static cdad_context ctx;

/* A convolution in both ways, and its weight's gradient. */
static void convolution(int repeats) {
    enum { N = 2, SIDE = 16, C = 48, O = 40, K = 9 * C, M = N * SIDE * SIDE };
    const cdad_unfold u = {N, SIDE, SIDE, C, SIDE, SIDE, 3, 3, 1, 1, 1, 1};
    const cdad_mat x = {.data = zeros(M * C * 4), .unfold = &u}, w = {.data = zeros(O * K * 4), .rs = 1, .cs = K};
    const cdad_mat dy = {.data = zeros(M * O * 4), .rs = 1, .cs = O};
    float *y = floats(M * O), *dw = floats(O * K);
    void *direct = zeros(kernels->gemm_scratch(M, O, K, 1)), *turned = zeros(kernels->gemm_scratch(O, K, M, 1));
    void *tiles = zeros(kernels->winograd_scratch(&u, O, 4, 1));
    for (int i = 0; i < repeats; i++) {
        kernels->gemm(&ctx, M, O, K, x, w, y, O, NULL, direct);
        kernels->winograd(&ctx, y, x.data, w, 3 * C, C, NULL, &u, O, 4, tiles);
        kernels->gemm(&ctx, O, K, M, dy, x, dw, K, NULL, turned);
    }
    void *owned[] = {(void *)(uintptr_t)x.data, (void *)(uintptr_t)w.data, (void *)(uintptr_t)dy.data, y, dw, direct, turned, tiles};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        cdad_free(owned[i]);
}

static void attention(int repeats) {
    enum { N = 1, T = 144, L = 4, D = 16, ALL = N * T * L * D };
    const cdad_attention_dims d = {.N = N, .T = T, .S = T, .L = L, .D = D, .q_rs = L * D, .k_rs = L * D, .v_rs = L * D,
                                   .grid_h = 12, .grid_w = 12, .mask_h = 3, .mask_w = 3, .scale = 0.25f};
    float *q = zeros(ALL * 4), *out = floats(ALL), *lse = floats(N * L * T), *dq = floats(ALL), *dk = floats(ALL), *dv = floats(ALL);
    void *scratch = zeros(kernels->attention_scratch(&d, 1));
    for (int i = 0; i < repeats; i++) {
        kernels->attention(&ctx, out, lse, q, q, q, &d, scratch);
        kernels->attention_grad(&ctx, dq, dk, dv, q, q, q, out, lse, out, &d, scratch);
    }
    void *owned[] = {q, out, lse, dq, dk, dv, scratch};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        cdad_free(owned[i]);
}

static cdad_status training(int repeats, cdad_error *err) {
    enum { BATCH = 2, LATENT = BATCH * 8 * 8 * 4, IMAGE = BATCH * 32 * 32 * 3 };
    cdad_denoiser_config c = {
        .unet = {.in_channels = 4, .out_channels = 4, .model_channels = 16, .n_levels = 2, .channel_mult = {1, 2},
                 .num_res_blocks = 1, .n_attention = 1, .attention_resolutions = {1}, .num_heads = 2, .norm_groups = 4},
        .amn = {.channels = 16, .hint = {.n_hidden = 2, .hidden = {8, 16}, .strides = {2, 2}}, .n_layers = 1, .num_heads = 2,
                .dim_feedforward = 32, .neighbor_h = 3, .neighbor_w = 3},
        .image_h = 32, .image_w = 32, .latent_h = 8, .latent_w = 8,
        .prediction = CDAD_PREDICT_V, .amn_target = CDAD_AMN_NORMALIZED};
    const cdad_optimizer_config adamw = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01,
                                         .clip_norm = 1.0};
    cdad_status status = CDAD_OK;
    cdad_params *params = NULL;
    cdad_trainer *trainer = NULL;
    cdad_step_result result;
    float *latent = zeros(LATENT * 4), *image = zeros(IMAGE * 4);
    CDAD_TRY_DONE(cdad_schedule_init(&c.schedule, 1000, 0.00085, 0.012, 1, err));
    CDAD_TRY_DONE(cdad_params_new(&params, err));
    CDAD_TRY_DONE(cdad_trainer_new(&trainer, &c, params, &(cdad_batching){.n = BATCH, .accumulate = 1}, &adamw, 5, &ctx, err));
    for (int i = 0; i < repeats; i++)
        CDAD_TRY_DONE(cdad_trainer_step(trainer, &ctx, latent, image, image, NULL, 1.0, &result, err));
done:
    cdad_trainer_free(trainer);
    cdad_params_free(params);
    cdad_free(latent);
    cdad_free(image);
    return status;
}

/* Prints the instruction set that was run; returns the number of failed checks. */
int cdad_counted(const char *name, int repeats) {
    kernels = ctx.kernels = cdad_kernels_select(NULL);
    CHECK_OK(cdad_pool_new(&ctx.pool, 1, err));
    if (strcmp(name, "convolution") == 0)
        convolution(repeats);
    else if (strcmp(name, "attention") == 0)
        attention(repeats);
    else if (strcmp(name, "training_step") == 0)
        CHECK_OK(training(repeats, err));
    else
        CHECK(0, "there is no case %s", name);
    cdad_pool_free(ctx.pool);
    puts(kernels->name);
    return failures;
}

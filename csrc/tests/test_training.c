/* The training graph of a small denoiser, and steps with it: planned memory, failing allocations, cancellation. */
#include <math.h>
#include <time.h>

#include "graph_check.h"
#include "train/trainer.h"

int cdad_test_training(void);

enum { BATCH = 2, LATENT = BATCH * 4 * 4 * 2, IMAGE = BATCH * 8 * 8 * 3, CONTEXT = BATCH * 3 * 6 };

/* Everything that the full model has: two levels, attention to itself and to a context, the masked network. */
static cdad_denoiser_config small_config(void) {
    cdad_denoiser_config c = {
        .unet = {.in_channels = 2, .out_channels = 2, .model_channels = 8, .n_levels = 2, .channel_mult = {1, 2},
                 .num_res_blocks = 1, .n_attention = 1, .attention_resolutions = {2}, .num_heads = 2,
                 .context_dim = 6, .norm_groups = 4},
        .amn = {.channels = 8, .hint = {.n_hidden = 1, .hidden = {4}, .strides = {2}}, .n_layers = 1, .num_heads = 2,
                .dim_feedforward = 12, .neighbor_h = 3, .neighbor_w = 3},
        .image_h = 8,
        .image_w = 8,
        .latent_h = 4,
        .latent_w = 4,
        .context_length = 3,
        .prediction = CDAD_PREDICT_V,
        .amn_target = CDAD_AMN_NORMALIZED,
    };
    CHECK_OK(cdad_schedule_init(&c.schedule, 50, 0.00085, 0.012, 1, err));
    return c;
}

static void test_schedules(void) {
    cdad_schedule plain, zero;
    int64_t t[10];
    CHECK_OK(cdad_schedule_init(&plain, 1000, 0.00085, 0.012, 0, err));
    CHECK(fabs(plain.alphas_cumprod[999] - 0.0047) < 1e-4, "alpha_bar_T %g", plain.alphas_cumprod[999]);
    CHECK_OK(cdad_ddim_timesteps(&plain, 10, t, err));
    CHECK(t[0] == 1 && t[1] == 101 && t[9] == 901, "timesteps %d .. %d", (int)t[0], (int)t[9]);

    CHECK_OK(cdad_schedule_init(&zero, 1000, 0.00085, 0.012, 1, err));
    CHECK(zero.alphas_cumprod[999] == 0.0, "alpha_bar_T %g", zero.alphas_cumprod[999]);
    CHECK(fabs(zero.alphas_cumprod[0] - plain.alphas_cumprod[0]) < 1e-12, "alpha_bar_0 %g", zero.alphas_cumprod[0]);
    for (int i = 1; i < 1000; i++)
        CHECK(zero.alphas_cumprod[i] < zero.alphas_cumprod[i - 1] && zero.alphas_cumprod[i] < plain.alphas_cumprod[i],
              "alpha_bar_%d %g", i, zero.alphas_cumprod[i]);
    CHECK_OK(cdad_ddim_timesteps(&zero, 10, t, err));
    CHECK(t[0] == 99 && t[1] == 199 && t[9] == 999, "timesteps %d .. %d", (int)t[0], (int)t[9]);
    CHECK_OK(cdad_ddim_timesteps(&zero, 7, t, err));
    CHECK(t[6] == 999, "the last of 7 timesteps is %d", (int)t[6]);
    CHECK_FAILS(CDAD_INVALID, "sampling steps", cdad_ddim_timesteps(&zero, 1000, t, err));
    CHECK_FAILS(CDAD_INVALID, "betas", cdad_schedule_init(&zero, 1000, 0.012, 0.00085, 1, err));
}

static const cdad_optimizer_config adamw = {
    .lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01, .clip_norm = 1.0, .ema_decay = 0.9};

typedef struct batch {
    float latent[LATENT], image[IMAGE], perturbed[IMAGE], context[CONTEXT];
} batch;

static batch make_batch(void) {
    batch b;
    cdad_random_normal(b.latent, LATENT, 1, 1, 0);
    cdad_random_uniform(b.image, IMAGE, 1, 2, 0);
    cdad_random_uniform(b.perturbed, IMAGE, 1, 3, 0);
    cdad_random_normal(b.context, CONTEXT, 1, 4, 0);
    return b;
}

/* The losses and every gradient, planned in one arena, are those of the plain evaluation, bit by bit. Returns the bytes of
 * the arena with which gradients are handed over. */
static int64_t check_plan(const cdad_denoiser_config *c, int recompute, const cdad_context *ctx, const cdad_context *other) {
    cdad_graph *g = NULL;
    cdad_params *params = NULL;
    cdad_error err_record = {0};
    cdad_builder b;
    cdad_training_graph v;
    int64_t handing = 0;
    CHECK_OK(cdad_graph_new(&g, err));
    CHECK_OK(cdad_params_new(&params, err));
    cdad_builder_init(&b, g, params, &err_record);
    const cdad_status status = cdad_training_build(&b, c, BATCH, &v);
    CHECK(status == CDAD_OK, "%s", err_record.message);
    if (status == CDAD_OK) {
        cdad_value *wanted = zeros(g->n_values * (int64_t)sizeof *wanted);
        cdad_value *outputs = zeros(2 * g->n_values * (int64_t)sizeof *outputs);
        int64_t n = 0, sum = 0;
        for (int64_t i = 0; i < g->n_values; i++)
            if (g->values[i].kind == CDAD_VALUE_PARAM)
                wanted[n++] = (cdad_value)i;
        CHECK_OK(cdad_graph_backward(g, v.loss, n, wanted, recompute, outputs, err));
        outputs[n] = v.loss;
        outputs[n + 1] = v.prediction;
        const int64_t arena = check_program(g, ctx, other, n + 2, outputs, n, "training graph");
        for (int64_t i = 0; i < g->n_values; i++)
            sum += g->values[i].kind == CDAD_VALUE_NODE ? count_of(g, (cdad_value)i) * (int64_t)sizeof(float) : 0;
        CHECK(arena > 0 && arena < sum / 3, "an arena of %" PRId64 " bytes for values of %" PRId64, arena, sum);
        cdad_handover *handovers = zeros(n * (int64_t)sizeof *handovers);
        for (int64_t i = 0; i < n; i++)
            handovers[i] = (cdad_handover){.value = outputs[i], .spares = wanted[i]};
        handing = check_handovers(g, ctx, v.loss, n, handovers);
        const int64_t keeping = check_program(g, ctx, other, n + 2, outputs, 0, "all gradients in the arena");
        CHECK(handing < keeping, "handing gradients over takes %" PRId64 " bytes, keeping them %" PRId64, handing, keeping);
        cdad_free(handovers);
        cdad_free(wanted);
        cdad_free(outputs);
    }
    cdad_graph_free(g);
    cdad_params_free(params);
    return handing;
}

static void test_plan(const cdad_denoiser_config *c, const cdad_context *ctx, const cdad_context *other) {
    const int64_t keeping = check_plan(c, 0, ctx, other), recomputing = check_plan(c, 1, ctx, other);
    CHECK(recomputing < keeping, "recomputing takes %" PRId64 " bytes, keeping %" PRId64, recomputing, keeping);
}

typedef struct model {
    cdad_params *params;
    cdad_trainer *trainer;
} model;

static void free_model(model *m) {
    cdad_trainer_free(m->trainer);
    cdad_params_free(m->params);
    *m = (model){0};
}

static cdad_status new_model_with(model *m, const cdad_denoiser_config *c, const cdad_batching *batching,
                                  const cdad_optimizer_config *how, const cdad_context *ctx, cdad_error *err) {
    cdad_status status = CDAD_OK;
    *m = (model){0};
    CDAD_TRY_DONE(cdad_params_new(&m->params, err));
    CDAD_TRY_DONE(cdad_trainer_new(&m->trainer, c, m->params, batching, how, 5, ctx, err));
done:
    if (status != CDAD_OK)
        free_model(m);
    return status;
}

static cdad_status new_model_by(model *m, const cdad_denoiser_config *c, const cdad_optimizer_config *how,
                                const cdad_context *ctx, cdad_error *err) {
    return new_model_with(m, c, &(cdad_batching){.n = BATCH, .accumulate = 1}, how, ctx, err);
}

static cdad_status new_model(model *m, const cdad_denoiser_config *c, const cdad_context *ctx, cdad_error *err) {
    return new_model_by(m, c, &adamw, ctx, err);
}

static cdad_status step(model *m, const batch *b, const cdad_context *ctx, cdad_step_result *r, cdad_error *err) {
    return cdad_trainer_step(m->trainer, ctx, b->latent, b->image, b->perturbed, b->context, 1.0, r, err);
}

typedef struct state {
    float *weights, *m, *v, *ema;
    int64_t step, moving; /* floats of a moment, 0: there is none */
} state;

static float *copied(const float *from, int64_t n) {
    float *to = floats(n);
    memcpy(to, from, (size_t)n * sizeof *to);
    return to;
}

static float *copied_moment(const cdad_moment *m) {
    return m->memory ? copied(cdad_moment_data(m), m->bytes / (int64_t)sizeof(float)) : NULL;
}

/* Weights and optimiser now; freed by free_state. */
static state save_state(const model *m) {
    const cdad_optimizer *o = cdad_trainer_optimizer(m->trainer);
    const int64_t n = m->params->total;
    return (state){.weights = copied(m->params->values, n), .m = copied_moment(&o->m), .v = copied_moment(&o->v),
                   .ema = copied(o->ema, n), .step = o->step, .moving = o->m.bytes / (int64_t)sizeof(float)};
}

/* Whether a moment of float32 is so many numbers, or all zero where `want` is NULL. */
static int same_moment(const cdad_moment *m, const float *want, int64_t n) {
    const float *const have = m->memory ? cdad_moment_data(m) : NULL;
    if (want)
        return have && m->bytes == n * (int64_t)sizeof *have && same(have, want, n);
    for (int64_t i = 0; have && i < m->bytes / (int64_t)sizeof *have; i++)
        if (have[i] != 0)
            return 0;
    return 1;
}

static int same_state(const model *m, const state *s) {
    const cdad_optimizer *o = cdad_trainer_optimizer(m->trainer);
    const int64_t n = m->params->total;
    return same(m->params->values, s->weights, n) && same_moment(&o->m, s->m, s->moving) && same_moment(&o->v, s->v, s->moving) &&
           same(o->ema, s->ema, n) && o->step == s->step;
}

static void free_state(state *s) {
    float *all[] = {s->weights, s->m, s->v, s->ema};
    for (int i = 0; i < 4; i++)
        cdad_free(all[i]);
}

/* A step that fails for want of memory, or of finite values, changes nothing; the next one goes on as if it had not
 * been. `other` has more threads: steps with it need more scratch. */
static void test_failing_steps(const cdad_denoiser_config *c, const cdad_context *ctx, const cdad_context *other) {
    const batch b = make_batch();
    batch bad = b;
    /* Protected weights: the optimiser needs scratch, and room for the complement of the wider basis. */
    const float narrow[8] = {[2] = 1.0f}, wide[8 * 6] = {0, [6] = 1, [12 + 1] = 1, [18 + 2] = 1, [24 + 3] = 1, [30 + 4] = 1, [42 + 5] = 1};
    const char *const weight = "amn.encoder.layers.0.linear1.weight", *const other_weight = "amn.encoder.layers.0.self_attn.k_proj.weight";
    model m, undisturbed;
    cdad_step_result r = {0}, want = {0};
    CHECK_OK(new_model(&undisturbed, c, ctx, err));
    EACH_ALLOCATION_FAILS(new_model(&m, c, ctx, err), !m.trainer && !m.params);
    cdad_optimizer *const o = cdad_trainer_optimizer(m.trainer), *const p = cdad_trainer_optimizer(undisturbed.trainer);
    CHECK_OK(cdad_optimizer_protect(o, weight, 0, narrow, 1, err));
    CHECK_OK(cdad_optimizer_protect(p, weight, 0, narrow, 1, err));
    EACH_ALLOCATION_FAILS(cdad_optimizer_protect(o, other_weight, 0, wide, 6, err), 1);
    CHECK_OK(cdad_optimizer_protect(p, other_weight, 0, wide, 6, err));
    CHECK_FAILS(CDAD_INVALID, "wants a context",
                cdad_trainer_step(m.trainer, ctx, b.latent, b.image, b.perturbed, NULL, 1.0, &r, err));
    for (int i = 0; i < 3; i++) {
        state before = save_state(&m);
        bad.latent[0] = NAN;
        CHECK_FAILS(CDAD_NOT_FINITE, "the loss is not finite", step(&m, &bad, ctx, &r, err));
        CHECK(same_state(&m, &before), "step %d: a loss that is not finite changes the model", i);
        EACH_ALLOCATION_FAILS(step(&m, &b, i % 2 ? ctx : other, &r, err), same_state(&m, &before));
        CHECK(!same_state(&m, &before) && r.loss > 0 && r.grad_norm > 0, "step %d changes nothing", i);
        free_state(&before);
        CHECK_OK(step(&undisturbed, &b, ctx, &want, err));
        state after = save_state(&undisturbed);
        CHECK(same_state(&m, &after) && r.loss == want.loss && r.loss_cdm == want.loss_cdm &&
                  r.loss_amn == want.loss_amn && r.grad_norm == want.grad_norm,
              "step %d: failures before it, or threads, change its result (loss %.9g, %.9g is wanted)", i, r.loss,
              want.loss);
        free_state(&after);
    }
    free_model(&m);
    free_model(&undisturbed);
}

static int stop(void *unused) {
    (void)unused;
    return 1;
}

static const cdad_kernels *usual;
static int updates;

static int stop_after_an_update(void *unused) {
    (void)unused;
    return updates > 0;
}

/* Longer than the executor waits before it asks for a stop. */
static void doze(void) { nanosleep(&(struct timespec){.tv_nsec = 25000000}, NULL); }

static void slow_adamw(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g,
                       int64_t n, const cdad_adamw *h) {
    usual->adamw(ctx, w, m, v, e, du, g, n, h);
    if (++updates < 3)
        doze();
}

static void slow_group_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                            const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu, void *scratch) {
    doze();
    usual->group_norm(ctx, y, mean, rstd, x, gamma, beta, N, HW, C, G, eps, silu, scratch);
}

static float *parameter(const model *m, const char *name, int64_t *count) {
    const int64_t i = cdad_params_find(m->params, name);
    *count = m->params->items[i].count;
    return m->params->values + m->params->items[i].offset;
}

/* Gradients that are used as they come give the bits of a step that has them all at once and clips nothing. */
static void test_gradients_as_they_come(const cdad_denoiser_config *c, const cdad_context *ctx) {
    const batch b = make_batch();
    batch large = b;
    const float narrow[8] = {[2] = 1.0f}, wide[8 * 6] = {0, [6] = 1, [12 + 1] = 1, [18 + 2] = 1, [24 + 3] = 1, [30 + 4] = 1, [42 + 5] = 1};
    cdad_optimizer_config how = adamw;
    model models[2];
    cdad_step_result r[2] = {{0}};
    float *importance = NULL; /* kind 3 */
    for (int turn = 0; turn < 4; turn++) {
        const int kind = (turn + 3) % 4; /* 2, the last: the paper's projection, of the gradient; 3: a penalty, a path */
        how.projection = kind == 2 ? CDAD_PROJECT_GRADIENT : CDAD_PROJECT_UPDATE;
        for (int i = 0; i < 2; i++) {
            how.clip_norm = i ? 0 : 1e30;
            CHECK_OK(new_model_by(&models[i], c, &how, ctx, err));
            cdad_optimizer *const o = cdad_trainer_optimizer(models[i].trainer);
            CHECK(cdad_trainer_holds_gradients(models[i].trainer) == !i && !o->grads, "a block of gradients");
            if (kind == 3) {
                if (i == 0)
                    importance = floats(models[i].params->total);
                for (int64_t k = 0; k < models[i].params->total; k++)
                    importance[k] = (float)(k % 7);
                cdad_optimizer_penalize(o, importance, importance, 0.5); /* the anchor is far away */
                EACH_ALLOCATION_FAILS(cdad_optimizer_follow(o, 1, err), !o->path);
            }
            if (kind == 0 || kind == 3)
                continue;
            CHECK_OK(cdad_optimizer_protect(o, "amn.encoder.layers.0.linear1.weight", 0, narrow, 1, err));
            CHECK_OK(cdad_optimizer_protect(o, "amn.encoder.layers.0.self_attn.k_proj.weight", 0, wide, 6, err));
            CHECK_OK(cdad_optimizer_protect(o, "amn.encoder.layers.0.linear1.bias", 1, NULL, 0, err));
            CHECK_OK(cdad_optimizer_confine(o, "amn.encoder.layers.0.self_attn.v_proj.weight", wide, 6, err));
            CHECK_OK(cdad_optimizer_confine(o, "amn.encoder.layers.0.self_attn.q_proj.weight", wide, 0, err));
        }
        for (int k = 0; k < 3; k++) {
            for (int i = 0; i < 2; i++)
                CHECK_OK(step(&models[i], &b, ctx, &r[i], err));
            state want = save_state(&models[0]);
            CHECK(same_state(&models[1], &want) && r[0].loss == r[1].loss, "kind %d, step %d: another result", kind, k);
            CHECK(fabs(r[0].grad_norm - r[1].grad_norm) < 1e-12 * r[0].grad_norm, "gradient norm %.17g, %.17g is wanted",
                  r[1].grad_norm, r[0].grad_norm);
            free_state(&want);
        }
        if (kind == 3) {
            cdad_optimizer *const o = cdad_trainer_optimizer(models[1].trainer);
            CHECK(same(cdad_trainer_optimizer(models[0].trainer)->path, o->path, models[0].params->total),
                  "gradients as they come give another path");
            CHECK_OK(cdad_optimizer_protect(o, "amn.encoder.layers.0.linear1.weight", 0, narrow, 1, err));
            CHECK_FAILS(CDAD_INVALID, "protected by a basis", step(&models[1], &b, ctx, &r[1], err));
            cdad_free(importance);
        }
        free_model(&models[0]);
        if (kind != 2)
            free_model(&models[1]);
    }
    model *const m = &models[1];
    CHECK(!cdad_trainer_optimizer(m->trainer)->grads, "a block of gradients");
    state before = save_state(m);
    batch bad = b;
    bad.latent[0] = NAN;
    CHECK_FAILS(CDAD_NOT_FINITE, "the loss is not finite", step(m, &bad, ctx, &r[0], err));
    CHECK(same_state(m, &before), "a loss that is not finite changes the model");
    EACH_ALLOCATION_FAILS(step(m, &b, ctx, &r[0], err), same_state(m, &before));
    free_state(&before);

    /* A gradient of infinity beside finite losses: the last convolution has huge weights, but is given zeros. */
    int64_t n;
    memset(parameter(m, "unet.out.0.weight", &n), 0, sizeof(float) * 8);
    memset(parameter(m, "unet.out.0.bias", &n), 0, sizeof(float) * 8);
    float *w = parameter(m, "unet.out.2.weight", &n);
    for (int64_t i = 0; i < n; i++)
        w[i] = 1e38f;
    for (int i = 0; i < LATENT; i++)
        large.latent[i] *= 1e5f;
    CHECK_FAILS(CDAD_NOT_FINITE, "a part of the weights was updated already: go on from a checkpoint: the gradient of unet.",
                step(m, &large, ctx, &r[0], err));
    free_model(m);

    /* A step can be stopped before its updates, but not in the midst of them. */
    for (int held = 0; held < 2; held++) {
        how.clip_norm = held;
        CHECK_OK(new_model_by(m, c, &how, ctx, err));
        cdad_context stopped = *ctx;
        cdad_kernels slow = *(usual = ctx->kernels);
        slow.group_norm = slow_group_norm;
        stopped.kernels = &slow;
        stopped.poll = stop;
        before = save_state(m);
        CHECK_FAILS(CDAD_CANCELLED, "cancelled", step(m, &b, &stopped, &r[0], err));
        CHECK(same_state(m, &before), "a step that was stopped changes the model");
        free_state(&before);

        slow = *usual;
        slow.adamw = slow_adamw;
        stopped.poll = stop_after_an_update;
        updates = 0;
        CHECK_OK(step(m, &b, &stopped, &r[0], err));
        state after = save_state(m);
        CHECK(updates > 1 && after.step == 1, "%d updates, step %d", updates, (int)after.step);
        free_state(&after);
        free_model(m);
    }
}

/* Ablation and distillation are planned as the full model is. */
static void test_variants(cdad_denoiser_config c, const cdad_context *ctx, const cdad_context *other) {
    const batch b = make_batch();
    model m, taught;
    cdad_step_result r = {0}, plain = {0};
    CHECK_OK(new_model(&m, &c, ctx, err));
    CHECK_FAILS(CDAD_INVALID, "not made to distil", cdad_trainer_teach(m.trainer, m.params->values, 1.0, err));
    c.distills = 1;
    EACH_ALLOCATION_FAILS(new_model(&taught, &c, ctx, err), !taught.trainer && !taught.params);
    CHECK_OK(step(&m, &b, ctx, &plain, err));
    CHECK_OK(step(&taught, &b, other, &r, err));
    CHECK(r.loss == plain.loss && same(m.params->values, taught.params->values, m.params->total), "a teacher of weight 0");
    float *zero = floats(m.params->total);
    CHECK_OK(cdad_trainer_teach(taught.trainer, zero, 2.0, err));
    CHECK_OK(step(&m, &b, ctx, &plain, err));
    EACH_ALLOCATION_FAILS(step(&taught, &b, other, &r, err), 1);
    CHECK(r.loss > plain.loss && r.loss_cdm == plain.loss_cdm, "a teacher's term: %g, without it %g", r.loss, plain.loss);
    cdad_free(zero);
    free_model(&taught);
    free_model(&m);
    c.distills = 0;
    c.objective = CDAD_OBJECTIVE_OUTPUT;
    test_plan(&c, ctx, other);
    c.objective = CDAD_OBJECTIVE_LOSS;
    c.condition = CDAD_CONDITION_CONTROLNET;
    c.controlnet = c.amn.hint;
    test_plan(&c, ctx, other);
    EACH_ALLOCATION_FAILS(new_model(&m, &c, ctx, err), !m.trainer && !m.params);
    CHECK_OK(cdad_trainer_step(m.trainer, ctx, b.latent, NULL, b.perturbed, b.context, 1.0, &r, err));
    CHECK(r.loss == r.loss_cdm && r.loss_amn == 0, "L_amn with a ControlNet: %g", r.loss_amn);
    free_model(&m);
    c.condition = CDAD_CONDITION_NONE;
    test_plan(&c, ctx, other);
    EACH_ALLOCATION_FAILS(new_model(&m, &c, ctx, err), !m.trainer && !m.params);
    CHECK_OK(cdad_trainer_step(m.trainer, ctx, b.latent, NULL, NULL, b.context, 1.0, &r, err));
    CHECK(r.loss == r.loss_cdm && r.loss_amn == 0, "L_amn without its network: %g", r.loss_amn);
    free_model(&m);
}

/* Blocks that run again change no bit of a step; parts of a batch, whose gradients are added up, are a batch up to rounding. */
static void test_batching(cdad_denoiser_config c, const cdad_context *ctx, const cdad_context *other) {
    const batch b = make_batch();
    const cdad_batching plain = {.n = BATCH, .accumulate = 1}, again = {.n = BATCH, .accumulate = 1, .recompute = 1};
    const cdad_batching parts = {.n = BATCH, .accumulate = BATCH, .recompute = 1};
    const float wide[8 * 6] = {0, [6] = 1, [12 + 1] = 1, [18 + 2] = 1, [24 + 3] = 1, [30 + 4] = 1, [42 + 5] = 1};
    cdad_optimizer_config how = adamw;
    model m[3];
    cdad_step_result r[3];
    c.distills = 1;
    for (int clips = 0; clips < 2; clips++) {
        how.clip_norm = clips ? 0.5 : 0;
        CHECK_OK(new_model_with(&m[0], &c, &plain, &how, ctx, err));
        CHECK_OK(new_model_with(&m[1], &c, &again, &how, other, err));
        EACH_ALLOCATION_FAILS(new_model_with(&m[2], &c, &parts, &how, ctx, err), !m[2].trainer && !m[2].params);
        CHECK(cdad_trainer_arena_bytes(m[1].trainer) < cdad_trainer_arena_bytes(m[0].trainer), "the memory of recomputing");
        CHECK(cdad_trainer_holds_gradients(m[1].trainer) == clips && cdad_trainer_holds_gradients(m[2].trainer),
              "a block of gradients");
        float *zero = floats(m[0].params->total);
        for (int i = 0; i < 3; i++) {
            CHECK_OK(cdad_trainer_teach(m[i].trainer, zero, 2.0, err));
            CHECK_OK(cdad_optimizer_protect(cdad_trainer_optimizer(m[i].trainer),
                                            "amn.encoder.layers.0.self_attn.k_proj.weight", 0, wide, 6, err));
            CHECK_OK(step(&m[i], &b, i == 1 ? other : ctx, &r[i], err));
        }
        const cdad_optimizer *const o = cdad_trainer_optimizer(m[0].trainer), *const p = cdad_trainer_optimizer(m[2].trainer);
        const float *const a = cdad_moment_data(&o->m), *const q = cdad_moment_data(&p->m);
        double difference = 0, size = 0;
        CHECK(o->m.bytes == p->m.bytes && !o->grads == !clips && p->grads, "moments of %lld bytes", (long long)p->m.bytes);
        for (int64_t k = 0; k < o->m.bytes / (int64_t)sizeof *a; k++) {
            difference += fabs((double)a[k] - (double)q[k]);
            size += fabs((double)a[k]);
        }
        CHECK(difference < 1e-5 * size && fabs(r[2].grad_norm / r[0].grad_norm - 1) < 1e-5, "accumulated gradients: %g of %g",
              difference, size);
        CHECK(fabs(r[2].loss / r[0].loss - 1) < 1e-6 && fabs(r[2].loss_cdm / r[0].loss_cdm - 1) < 1e-6 &&
                  fabs(r[2].loss_amn / r[0].loss_amn - 1) < 1e-6,
              "the loss of parts is %.9g, %.9g is wanted", r[2].loss, r[0].loss);
        for (int i = 0; i < 2; i++) {
            CHECK_OK(step(&m[0], &b, ctx, &r[0], err));
            CHECK_OK(step(&m[1], &b, ctx, &r[1], err));
            state want = save_state(&m[0]);
            CHECK(same_state(&m[1], &want) && r[0].loss == r[1].loss && r[0].grad_norm == r[1].grad_norm,
                  "recomputing, step %d", i);
            free_state(&want);
        }
        state before = save_state(&m[2]);
        batch bad = b;
        bad.latent[LATENT - 1] = NAN; /* in the last part */
        CHECK_FAILS(CDAD_NOT_FINITE, "the loss is not finite", step(&m[2], &bad, ctx, &r[2], err));
        CHECK(same_state(&m[2], &before), "a part's loss that is not finite changes the model");
        EACH_ALLOCATION_FAILS(step(&m[2], &b, other, &r[2], err), same_state(&m[2], &before));
        CHECK(!same_state(&m[2], &before), "a step changes nothing");
        CHECK_FAILS(CDAD_INVALID, "neither clips nor accumulates",
                    cdad_trainer_magnitudes(m[2].trainer, ctx, b.latent, b.image, b.perturbed, b.context, b.latent,
                                            (const int64_t[BATCH]){1, 2}, 0, &r[2], err));
        free_state(&before);
        cdad_free(zero);
        for (int i = 0; i < 3; i++)
            free_model(&m[i]);
    }
    for (int64_t accumulate = -1; accumulate <= 3; accumulate += accumulate == 0 ? 3 : 1)
        CHECK_FAILS(CDAD_INVALID, "a batch of 2 cannot be cut into",
                    new_model_with(&m[0], &c, &(cdad_batching){.n = BATCH, .accumulate = accumulate}, &how, ctx, err));
    c.objective = CDAD_OBJECTIVE_OUTPUT;
    CHECK_FAILS(CDAD_INVALID, "cannot be added up", new_model_with(&m[0], &c, &parts, &how, ctx, err));
}

/* Moments are of what moves: of a confined weight's coordinates, of nothing that is frozen; what moves as before keeps its own. A
 * task's end gives the memory back, and the next one begins as a new trainer does. */
static void test_moments_of_what_moves(cdad_denoiser_config c, const cdad_context *ctx) {
    enum { D = 8, RANK = 3 };
    const char *const confined = "amn.encoder.layers.0.self_attn.k_proj.weight", *const frozen = "amn.encoder.layers.0.linear1.bias";
    const float V[D * RANK] = {0, [3] = 1, [6 + 1] = 1, [12 + 2] = 1};
    const batch b = make_batch();
    model m, fresh;
    cdad_step_result r, want;
    float *most;
    for (int clips = 0; clips < 2; clips++) {
        cdad_optimizer_config how = adamw;
        how.projection = CDAD_PROJECT_UPDATE;
        how.clip_norm = clips ? 0.5 : 0;
        CHECK_OK(new_model_by(&m, &c, &how, ctx, err));
        cdad_optimizer *const o = cdad_trainer_optimizer(m.trainer);
        const cdad_params *const p = m.params;
        const int64_t whole = 2 * p->total * (int64_t)sizeof(float), k = cdad_params_find(p, confined), f = cdad_params_find(p, frozen);
        const int64_t outputs = p->items[k].shape.dim[0], bytes = outputs * (int64_t)sizeof(float);
        const int64_t less = cdad_align_up(bytes * D) - cdad_align_up(bytes * RANK) + cdad_align_up(p->items[f].count * (int64_t)sizeof(float));
        CHECK(!o->m.memory && cdad_optimizer_moment_bytes(o) == whole, "before a step");
        CHECK_OK(step(&m, &b, ctx, &r, err));
        state before = save_state(&m);
        CHECK(before.moving == p->total, "%lld numbers have moments", (long long)before.moving);
        CHECK_OK(cdad_optimizer_confine(o, confined, V, RANK, err));
        CHECK_OK(cdad_optimizer_protect(o, frozen, 1, NULL, 0, err));
        CHECK(same_state(&m, &before), "what is protected changes moments before they are needed");
        EACH_ALLOCATION_FAILS(cdad_optimizer_moments(o, err), same_state(&m, &before));
        CHECK(o->m.bytes == whole / 2 - less && o->v.bytes == o->m.bytes && o->m.counts[k] == outputs * RANK && o->m.counts[f] == 0,
              "a moment of %lld bytes", (long long)o->m.bytes);
        float *const none = floats(outputs * RANK);
        for (int64_t i = 0; i < p->n; i++) {
            const float *const have = cdad_moment_of(&o->v, i, &most), *const had = before.v + p->items[i].offset;
            CHECK(same(have, i == k ? none : had, o->v.counts[i]), "%s", p->items[i].name);
        }
        cdad_free(none);
        free_state(&before);
        before = save_state(&m);
        CHECK_OK(step(&m, &b, ctx, &r, err));
        CHECK(!same_state(&m, &before), "a step changes nothing");
        free_state(&before);

        cdad_shared *const kept = o->m.memory;
        cdad_shared_hold(kept);
        cdad_optimizer_reset(o);
        CHECK(!o->m.memory && !o->v.memory && !o->grads && !o->scratch && o->age == 0 && o->step == 2, "after a task");
        CHECK(isfinite(((float *)cdad_shared_data(kept))[0]), "what another owner holds");
        cdad_shared_drop(kept);
        CHECK_OK(cdad_optimizer_protect(o, confined, 0, NULL, 0, err));
        CHECK_OK(cdad_optimizer_protect(o, frozen, 0, NULL, 0, err));
        CHECK_OK(new_model_by(&fresh, &c, &how, ctx, err));
        cdad_optimizer *const q = cdad_trainer_optimizer(fresh.trainer);
        memcpy(fresh.params->values, p->values, (size_t)p->total * sizeof *p->values);
        memcpy(q->ema, o->ema, (size_t)p->total * sizeof *q->ema);
        q->step = o->step;
        CHECK_OK(step(&m, &b, ctx, &r, err));
        CHECK_OK(step(&fresh, &b, ctx, &want, err));
        state after = save_state(&fresh);
        CHECK(same_state(&m, &after) && r.loss == want.loss && r.grad_norm == want.grad_norm, "a task after another is not as one alone");
        free_state(&after);
        free_model(&fresh);
        free_model(&m);
    }
}

int cdad_test_training(void) {
    cdad_context ctx = {.kernels = cdad_kernels_select(NULL)}, other = ctx;
    CHECK_OK(cdad_pool_new(&other.pool, 3, err));
    test_schedules();
    cdad_denoiser_config c = small_config();
    test_plan(&c, &ctx, &other);
    test_failing_steps(&c, &ctx, &other);
    test_gradients_as_they_come(&c, &other);
    test_variants(c, &ctx, &other);
    test_batching(c, &ctx, &other);
    test_moments_of_what_moves(c, &other);
    c.unet.context_dim = 0;
    c.prediction = CDAD_PREDICT_EPSILON;
    CHECK_OK(cdad_schedule_init(&c.schedule, 50, 0.00085, 0.012, 0, err));
    c.amn_target = CDAD_AMN_AS_WRITTEN;
    test_plan(&c, &ctx, &other);
    cdad_pool_free(other.pool);
    return failures;
}

/* Parameter registry. */
#include "nn/params.h"

#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "graph/program.h"

cdad_status cdad_params_new(cdad_params **out, cdad_error *err) {
    return cdad_alloc_zero((void **)out, sizeof(cdad_params), err);
}

void cdad_params_free(cdad_params *p) {
    if (!p)
        return;
    for (int64_t i = 0; i < p->n; i++)
        cdad_free(p->items[i].name);
    cdad_free(p->items);
    cdad_params_release(p);
    cdad_free(p);
}

void cdad_params_release(cdad_params *p) {
    cdad_device_free(p->device, p->values);
    p->values = NULL;
}

int64_t cdad_params_find(const cdad_params *p, const char *name) {
    for (int64_t i = 0; i < p->n; i++)
        if (strcmp(p->items[i].name, name) == 0)
            return i;
    return -1;
}

cdad_status cdad_params_register(cdad_params *p, const char *name, cdad_shape shape, cdad_init init,
                                 cdad_error *err) {
    const int64_t found = cdad_params_find(p, name);
    if (found >= 0) {
        char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
        CDAD_FAIL_IF(!cdad_shape_equal(&p->items[found].shape, &shape), err, CDAD_SHAPE,
                     "parameter %s is %s; this model wants %s", name, cdad_shape_text(&p->items[found].shape, a),
                     cdad_shape_text(&shape, b));
        return CDAD_OK;
    }
    CDAD_FAIL_IF(p->values, err, CDAD_INVALID, "the model has no parameter %s", name);
    CDAD_TRY(cdad_shape_check(&shape, err));
    CDAD_TRY(cdad_grow((void **)&p->items, p->n, &p->capacity, sizeof *p->items, err));
    cdad_param item = {.shape = shape, .init = init, .offset = p->total, .count = cdad_shape_count(&shape)};
    CDAD_TRY(cdad_strdup(&item.name, name, err));
    p->items[p->n++] = item;
    p->total += cdad_align_up(item.count * (int64_t)sizeof(float)) / (int64_t)sizeof(float);
    return CDAD_OK;
}

void cdad_params_forget(cdad_params *p, int64_t n) {
    while (!p->values && p->n > n) {
        cdad_free(p->items[--p->n].name);
        p->total = p->items[p->n].offset;
    }
}

static void initialise(const cdad_param *item, float *w, uint64_t seed) {
    const uint64_t stream = cdad_stream_of_name(item->name);
    const float scale = item->init.scale;
    switch (item->init.kind) {
    case CDAD_INIT_CONST:
        for (int64_t k = 0; k < item->count; k++)
            w[k] = scale;
        break;
    case CDAD_INIT_UNIFORM:
        cdad_random_uniform(w, item->count, seed, stream, 0);
        for (int64_t k = 0; k < item->count; k++)
            w[k] = (2.0f * w[k] - 1.0f) * scale;
        break;
    case CDAD_INIT_NORMAL:
        cdad_random_normal(w, item->count, seed, stream, 0);
        for (int64_t k = 0; k < item->count; k++)
            w[k] *= scale;
        break;
    }
}

/* One after the other, through memory of the host. */
static cdad_status initialise_device(cdad_params *p, uint64_t seed, cdad_error *err) {
    cdad_status status = CDAD_OK;
    int64_t most = 0;
    float *w = NULL;
    for (int64_t i = 0; i < p->n; i++)
        most = p->items[i].count > most ? p->items[i].count : most;
    CDAD_TRY_DONE(cdad_alloc((void **)&w, most * (int64_t)sizeof *w, err));
    for (int64_t i = 0; i < p->n; i++) {
        initialise(&p->items[i], w, seed);
        CDAD_TRY_DONE(cdad_params_write(p, i, w, err));
    }
done:
    cdad_free(w);
    if (status != CDAD_OK) /* zeros would pass for weights */
        cdad_params_release(p);
    return status;
}

cdad_status cdad_params_allocate(cdad_params *p, uint64_t seed, cdad_error *err) {
    CDAD_FAIL_IF(p->values, err, CDAD_INVALID, "the parameters are allocated already");
    int64_t bytes = 0;
    CDAD_TRY(cdad_size_mul(p->total, sizeof(float), &bytes, err));
    CDAD_TRY(cdad_device_alloc_zero(p->device, (void **)&p->values, bytes, err));
    if (p->device && p->device->is_planned)
        return CDAD_OK;
    if (p->device)
        return initialise_device(p, seed, err);
    for (int64_t i = 0; i < p->n; i++)
        initialise(&p->items[i], p->values + p->items[i].offset, seed);
    return CDAD_OK;
}

cdad_status cdad_params_write(cdad_params *p, int64_t i, const float *from, cdad_error *err) {
    float *to = p->values + p->items[i].offset;
    return to == from ? CDAD_OK
                      : cdad_device_upload(p->device, to, from, p->items[i].count * (int64_t)sizeof(float), err);
}

cdad_status cdad_params_bind(const cdad_params *p, const float *base, const cdad_graph *g, cdad_program *program,
                             cdad_error *err) {
    for (int64_t v = 0; v < g->n_values; v++) {
        if (g->values[v].kind != CDAD_VALUE_PARAM || !cdad_program_uses(program, (cdad_value)v))
            continue;
        const int64_t i = cdad_params_find(p, g->values[v].name);
        CDAD_FAIL_IF(i < 0, err, CDAD_INVALID, "the store has no parameter %s", g->values[v].name);
        CDAD_TRY(cdad_program_bind(program, (cdad_value)v, base + p->items[i].offset, err));
    }
    return CDAD_OK;
}

/* Recording the features of weights. */
#include "train/recorder.h"

#include <inttypes.h>

#include "base/memory.h"
#include "continual/features.h"
#include "ops/window.h"

typedef struct recorded {
    const char *param;  /* of the parameter store */
    cdad_unfold unfold; /* of a convolution's input; R = 0 for a plain matrix */
    int64_t d, rows, capacity;
    float *data; /* [capacity,d] */
} recorded;

struct cdad_recorder {
    cdad_sampler *sampler;
    recorded *items;
    int64_t n;
};

void cdad_recorder_free(cdad_recorder *r) {
    if (!r)
        return;
    for (int64_t i = 0; i < r->n; i++) {
        const cdad_status ignored = cdad_sampler_tap(r->sampler, r->items[i].param, NULL, NULL, 0, NULL);
        (void)ignored; /* it can only fail for a name that the sampler does not know */
        cdad_free(r->items[i].data);
    }
    cdad_free(r->items);
    cdad_free(r);
}

static cdad_status record(void *arg, const cdad_context *ctx, const cdad_node *node, const float *input,
                          const cdad_shape *shape, cdad_error *err) {
    recorded *item = arg;
    const cdad_unfold *u = &item->unfold;
    const int64_t rows = u->R ? u->N * u->P * u->Q : cdad_shape_count(shape) / item->d;
    const cdad_mat X = {.data = input, .rs = item->d, .cs = 1, .unfold = u->R ? u : NULL};
    (void)node;
    while (item->capacity < item->rows + rows)
        CDAD_TRY(cdad_grow((void **)&item->data, item->capacity, &item->capacity, item->d * (int64_t)sizeof(float), err));
    cdad_features_gather(ctx, item->data + item->rows * item->d, X, 0, rows, item->d);
    item->rows += rows;
    return CDAD_OK;
}

static cdad_status add_item(cdad_recorder *r, const cdad_param *p, cdad_error *err) {
    const cdad_graph *g;
    const cdad_node *node = p->shape.ndim >= 2 ? cdad_sampler_weight_node(r->sampler, p->name, &g) : NULL;
    CDAD_FAIL_IF(!node, err, CDAD_INVALID, "the sampler's model has no weight %s", p->name);
    for (int64_t i = 0; i < r->n; i++)
        CDAD_FAIL_IF(r->items[i].param == p->name, err, CDAD_INVALID, "%s is recorded already", p->name);
    recorded *item = &r->items[r->n];
    *item = (recorded){.param = p->name, .d = p->count / p->shape.dim[0]};
    if (p->shape.ndim == 4)
        item->unfold = cdad_conv2d_unfold(node->attr, cdad_graph_shape(g, node->in[0]), &p->shape,
                                          cdad_graph_shape(g, node->out[0]));
    r->n++;
    return cdad_sampler_tap(r->sampler, p->name, record, item, 0, err);
}

cdad_status cdad_recorder_new(cdad_recorder **out, cdad_sampler *sampler, const cdad_params *params,
                              const int64_t *chosen, int64_t n, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_recorder *r = NULL;
    *out = NULL;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&r, sizeof *r, err));
    r->sampler = sampler;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&r->items, n * (int64_t)sizeof *r->items, err));
    for (int64_t i = 0; i < n; i++) {
        if (chosen[i] < 0 || chosen[i] >= params->n) {
            status = cdad_fail(err, CDAD_INVALID, "there is no parameter number %" PRId64, chosen[i]);
            goto done;
        }
        CDAD_TRY_DONE(add_item(r, &params->items[chosen[i]], err));
    }
    *out = r;
    r = NULL;
done:
    cdad_recorder_free(r);
    return status;
}

const float *cdad_recorder_rows(const cdad_recorder *r, int64_t i, int64_t *rows, int64_t *d) {
    *rows = r->items[i].rows;
    *d = r->items[i].d;
    return r->items[i].data;
}

void cdad_recorder_clear(cdad_recorder *r) {
    for (int64_t i = 0; i < r->n; i++)
        r->items[i].rows = 0;
}

/* Network: one of the models as a planned program for one batch shape. */
#include "python/config.h"

#include <string.h>

#define MAX_VALUES 8

/* What a builder is given and fills in. */
typedef struct network_spec {
    PyObject *config;
    int64_t n, h, w; /* batch and image size (of a latent for decoders; number of tokens and 1 for texts) */
    int n_in, n_out;
    cdad_value in[MAX_VALUES], out[MAX_VALUES];
} network_spec;

/* 0, or -1 with a Python exception for a bad config; failures of the graph stay in the builder. */
typedef int (*network_fn)(cdad_builder *b, network_spec *s);

static cdad_value image_input(cdad_builder *b, network_spec *s, const char *name) {
    const cdad_value v = cdad_build_input(b, name, cdad_shape_make(4, s->n, s->h, s->w, (int64_t)3));
    s->in[s->n_in++] = v;
    return v;
}

static cdad_value latent_input(cdad_builder *b, network_spec *s, int64_t channels) {
    const cdad_value v = cdad_build_input(b, "latent", cdad_shape_make(4, s->n, s->h, s->w, channels));
    s->in[s->n_in++] = v;
    return v;
}

static int vae_encode(cdad_builder *b, network_spec *s) {
    cdad_vae_config c = {0};
    if (cdad_py_vae_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_vae_encode_build(b, &c, image_input(b, s, "image"));
    return 0;
}

static int vae_decode(cdad_builder *b, network_spec *s) {
    cdad_vae_config c = {0};
    if (cdad_py_vae_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_vae_decode_build(b, &c, latent_input(b, s, c.z_channels));
    return 0;
}

static int tiny_encode(cdad_builder *b, network_spec *s) {
    cdad_tiny_ae_config c = {0};
    if (cdad_py_tiny_ae_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_tiny_ae_encode_build(b, &c, image_input(b, s, "image"), NULL);
    return 0;
}

static int tiny_decode(cdad_builder *b, network_spec *s) {
    cdad_tiny_ae_config c = {0};
    if (cdad_py_tiny_ae_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_tiny_ae_decode_build(b, &c, latent_input(b, s, c.latent_channels));
    return 0;
}

static int dct_encode(cdad_builder *b, network_spec *s) {
    cdad_dct_config c = {0};
    if (cdad_py_dct_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_dct_encode_build(b, &c, image_input(b, s, "image"));
    return 0;
}

static int dct_decode(cdad_builder *b, network_spec *s) {
    cdad_dct_config c = {0};
    if (cdad_py_dct_config(s->config, &c) < 0)
        return -1;
    s->out[s->n_out++] = cdad_dct_decode_build(b, &c, latent_input(b, s, c.latent_channels));
    return 0;
}

static int efficientnet_features(cdad_builder *b, network_spec *s) {
    if (s->config != Py_None) {
        PyErr_SetString(PyExc_ValueError, "efficientnet_lite0 has no configuration: None is wanted");
        return -1;
    }
    cdad_efficientnet_lite0_build(b, image_input(b, s, "image"), s->out);
    s->n_out = 3;
    return 0;
}

static int resnet_features(cdad_builder *b, network_spec *s) {
    cdad_resnet_config c = {0};
    if (cdad_py_resnet_config(s->config, &c) < 0)
        return -1;
    cdad_resnet_build(b, &c, image_input(b, s, "image"), s->out);
    s->n_out = CDAD_RESNET_STAGES + 1;
    return 0;
}

static int tiny_features(cdad_builder *b, network_spec *s) {
    cdad_tiny_ae_config c = {0};
    if (cdad_py_tiny_ae_config(s->config, &c) < 0)
        return -1;
    cdad_tiny_ae_encode_build(b, &c, image_input(b, s, "image"), s->out);
    s->n_out = 3;
    return 0;
}

static int clip_text(cdad_builder *b, network_spec *s) {
    cdad_clip_text_config c = {0};
    if (cdad_py_clip_text_config(s->config, &c) < 0)
        return -1;
    if (s->w != 1) {
        PyErr_Format(PyExc_ValueError, "clip_text: a size of %lld x %lld; (tokens, 1) is wanted", (long long)s->h,
                     (long long)s->w);
        return -1;
    }
    const cdad_value ids = s->in[s->n_in++] = cdad_build_input(b, "ids", cdad_shape_make(2, s->n, s->h));
    s->out[s->n_out++] = cdad_clip_text_build(b, &c, ids);
    return 0;
}

static int condition(cdad_builder *b, network_spec *s) {
    cdad_denoiser_config c;
    if (cdad_py_denoiser_config(s->config, &c) < 0)
        return -1;
    s->in[s->n_in++] = cdad_image_input(b, &c, "image", s->n);
    s->out[s->n_out++] = cdad_condition_build(b, &c, s->in[0]);
    return 0;
}

static int unet(cdad_builder *b, network_spec *s) {
    cdad_denoiser_config c;
    if (cdad_py_denoiser_config(s->config, &c) < 0)
        return -1;
    const cdad_value x = s->in[s->n_in++] = cdad_latent_input(b, &c, "x", s->n);
    const cdad_value t = s->in[s->n_in++] = cdad_build_input(b, "t", cdad_shape_make(1, s->n));
    const cdad_value control = s->in[s->n_in++] = cdad_build_input(
        b, "control", cdad_shape_make(4, s->n, c.latent_h, c.latent_w, c.unet.model_channels));
    const cdad_value context = cdad_context_input(b, &c, s->n);
    if (context != CDAD_NONE)
        s->in[s->n_in++] = context;
    s->out[s->n_out++] = cdad_denoise_build(b, &c, x, t, context, control);
    return 0;
}

static const struct {
    const char *name;
    network_fn build;
} kinds[] = {
    {"vae_encode", vae_encode},       {"vae_decode", vae_decode},
    {"tiny_encode", tiny_encode},     {"tiny_decode", tiny_decode},
    {"dct_encode", dct_encode},       {"dct_decode", dct_decode},
    {"tiny_features", tiny_features}, {"efficientnet_lite0", efficientnet_features},
    {"resnet", resnet_features},      {"condition", condition},
    {"unet", unet},                   {"clip_text", clip_text},
};

typedef enum { NO_DISTANCE, EUCLIDEAN, MAHALANOBIS } distance_kind;

static int distance_kind_of(const char *name) {
    if (!name)
        return NO_DISTANCE;
    if (strcmp(name, "euclidean") == 0)
        return EUCLIDEAN;
    if (strcmp(name, "mahalanobis") == 0)
        return MAHALANOBIS;
    PyErr_Format(PyExc_ValueError, "distance is 'euclidean', 'mahalanobis' or None, not '%s'", name);
    return -1;
}

/* features -> distance: for two images, per layer the squared L2 distance of the features over the channels
 * (paper, Eq. 1), bilinearly enlarged to the image: maps [N,H,W,layers]. Mahalanobis': the features' difference first
 * goes through one more input a layer, a whitening matrix [C,C]. */
static int distance(cdad_builder *b, network_spec *s, network_fn features, distance_kind how) {
    network_spec a = *s, c = *s;
    if (features(b, &a) < 0 || features(b, &c) < 0)
        return -1;
    s->in[s->n_in++] = a.in[0];
    s->in[s->n_in++] = c.in[0];
    for (int i = 0; i < a.n_out; i++) {
        cdad_value d = cdad_build_op(b, "sub", 2, CDAD_IN(a.out[i], c.out[i]), NULL);
        if (how == MAHALANOBIS) {
            const int64_t channels = cdad_build_channels(b, d);
            const cdad_value white = cdad_build_input(b, "whitening", cdad_shape_make(2, channels, channels));
            s->in[s->n_in++] = white;
            d = cdad_build_op(b, "linear", 2, CDAD_IN(d, white), NULL);
        }
        cdad_value sum = cdad_build_op(b, "mul", 2, CDAD_IN(d, d), NULL);
        sum = cdad_build_op(b, "reduce_sum", 1, &sum, "axes", 8.0, NULL); /* over the channels */
        const cdad_value map = cdad_build_op(b, "resize_bilinear", 1, &sum, "h", (double)s->h, "w", (double)s->w, NULL);
        s->out[0] = i == 0 ? map : cdad_build_op(b, "concat", 2, CDAD_IN(s->out[0], map), NULL);
    }
    s->n_out = 1;
    return 0;
}

typedef struct py_network {
    PyObject_HEAD
    cdad_py_params *params;
    cdad_graph *graph;
    cdad_program *program;
    network_spec spec;
} py_network;

static void network_dealloc(PyObject *o) {
    py_network *self = (py_network *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_program_free(self->program);
    cdad_graph_free(self->graph);
    Py_XDECREF(self->params);
    type->tp_free(o);
    Py_DECREF(type);
}

static network_fn find_kind(const char *name) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return kinds[i].build;
    PyErr_Format(PyExc_ValueError, "there is no network '%s'", name);
    return NULL;
}

static int build(py_network *self, const char *kind, distance_kind how, int tf32) {
    cdad_error err = {0};
    cdad_builder b;
    const network_fn fn = find_kind(kind);
    const int64_t known = self->params->params->n;
    if (!fn)
        return -1;
    if (cdad_graph_new(&self->graph, &err) != CDAD_OK)
        goto raise;
    cdad_builder_init(&b, self->graph, self->params->params, &err);
    b.precision = tf32 ? CDAD_TFLOAT32 : CDAD_FLOAT32;
    if ((how == NO_DISTANCE ? fn(&b, &self->spec) : distance(&b, &self->spec, fn, how)) < 0)
        goto fail;
    if (b.status != CDAD_OK)
        goto raise;
    const cdad_context ctx = cdad_py_context(self->params->params->device);
    const cdad_program_options options = {.workspace = self->params->params->workspace};
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        goto fail;
    const cdad_status status =
        cdad_program_new(&self->program, self->graph, self->spec.n_out, self->spec.out, &options, &ctx, &err);
    cdad_py_lock_give(&self->params->workspace->lock);
    if (status == CDAD_OK)
        return 0;
raise:
    cdad_py_raise(&err);
fail:
    cdad_params_forget(self->params->params, known);
    return -1;
}

static PyObject *network_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "kind", "config", "batch", "size", "distance", "tf32", NULL};
    PyObject *params, *config;
    const char *kind, *measure = NULL;
    long long n, h, w;
    int tf32 = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OsOL(LL)|zp:Network", names, &params, &kind, &config, &n, &h, &w,
                                     &measure, &tf32))
        return NULL;
    const int how = distance_kind_of(measure);
    if (how < 0)
        return NULL;
    cdad_py_params *store = cdad_py_params_check(NULL, params);
    py_network *self = store ? (py_network *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->params = (cdad_py_params *)Py_NewRef(params);
    self->spec = (network_spec){.config = config, .n = n, .h = h, .w = w};
    if (build(self, kind, (distance_kind)how, tf32) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->spec.config = NULL; /* borrowed for the building only */
    return (PyObject *)self;
}

static PyObject *network_run(PyObject *o, PyObject *args) {
    py_network *self = (py_network *)o;
    const network_spec *s = &self->spec;
    cdad_device *const device = self->params->params->device;
    cdad_py_input inputs[MAX_VALUES] = {0};
    PyObject *result = NULL;
    int on_device = 0;
    cdad_error err = {0};
    if (PyTuple_Size(args) != s->n_in)
        return PyErr_Format(PyExc_TypeError, "run() takes %d arrays, not %zd", s->n_in, PyTuple_Size(args));
    if (!self->params->params->values)
        return PyErr_Format(PyExc_ValueError, "the parameters are not allocated yet");
    for (int i = 0; i < s->n_in; i++) {
        const cdad_value_info *info = &self->graph->values[s->in[i]];
        if (cdad_py_input_of(&inputs[i], PyTuple_GetItem(args, i), &info->shape, device, info->name) < 0)
            goto done;
        on_device |= inputs[i].on_device;
    }
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        goto done;
    const cdad_context ctx = cdad_py_context(device);
    cdad_status status = CDAD_OK;
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; status == CDAD_OK && i < s->n_in; i++)
        status = cdad_py_give(self->program, s->in[i], &inputs[i], &err);
    if (status == CDAD_OK)
        status = cdad_params_bind(self->params->params, self->params->params->values, self->graph, self->program,
                                  &err);
    if (status == CDAD_OK)
        status = cdad_program_run(self->program, &ctx, &err);
    Py_END_ALLOW_THREADS
    if (status != CDAD_OK)
        cdad_py_raise(&err);
    else
        result = PyTuple_New(s->n_out);
    for (int j = 0; result && j < s->n_out; j++) {
        PyObject *a =
            cdad_py_value(self->program, s->out[j], cdad_graph_shape(self->graph, s->out[j]), on_device ? device : NULL);
        if (!a) {
            Py_CLEAR(result);
            break;
        }
        PyTuple_SetItem(result, j, a);
    }
    cdad_py_lock_give(&self->params->workspace->lock);
done:
    for (int i = 0; i < s->n_in; i++)
        Py_XDECREF(inputs[i].held);
    return result;
}

static PyObject *network_memory(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(cdad_program_workspace_bytes(((py_network *)o)->program));
}

static PyObject *network_flops(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(cdad_program_flops(((py_network *)o)->program));
}

static PyObject *network_output_shapes(PyObject *o, void *unused) {
    const py_network *self = (py_network *)o;
    PyObject *shapes = PyTuple_New(self->spec.n_out);
    (void)unused;
    for (int j = 0; shapes && j < self->spec.n_out; j++) {
        PyObject *shape = cdad_py_shape_tuple(cdad_graph_shape(self->graph, self->spec.out[j]));
        if (!shape) {
            Py_CLEAR(shapes);
            break;
        }
        PyTuple_SetItem(shapes, j, shape);
    }
    return shapes;
}

static PyMethodDef network_methods[] = {
    {"run", network_run, METH_VARARGS, "run($self, /, *arrays)\n--\n\nRuns the network; returns a tuple of float32 "
                                       "arrays: of the host, or, where an array of the network's device is among those given, "
                                       "DeviceArrays. The GIL is released."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef network_getset[] = {
    {"memory_bytes", network_memory, NULL, "Arena and scratch in bytes, of the parameters' workspace.", NULL},
    {"output_shapes", network_output_shapes, NULL, "The shapes of what run() returns.", NULL},
    {"flops", network_flops, NULL, "Operations of the products of a run.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot network_slots[] = {
    {Py_tp_new, network_new},
    {Py_tp_dealloc, network_dealloc},
    {Py_tp_methods, network_methods},
    {Py_tp_getset, network_getset},
    {Py_tp_doc, "Network(params, kind, config, batch, size, distance=None, tf32=False)\n--\n\nA model planned for one batch "
                "shape; size is the image's, the latent's of a decoder, (tokens, 1) of a text. "
                "With distance='euclidean' a feature extractor takes two images and gives, per layer, the squared "
                "distance of their features, enlarged to the image; with 'mahalanobis' it takes a whitening matrix "
                "[C,C] a layer too, by which their difference is multiplied first. tf32: on a CUDA device, products may "
                "round their factors to TF32."},
    {0, NULL}};
static PyType_Spec network_spec_ = {.name = "cdad._core.Network",
                                    .basicsize = sizeof(py_network),
                                    .flags = Py_TPFLAGS_DEFAULT,
                                    .slots = network_slots};

int cdad_py_add_network(PyObject *module) { return cdad_py_add_type(module, &network_spec_, NULL); }

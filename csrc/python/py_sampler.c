/* Sampler: reconstructions; Collector: significant representations of a model; Recorder: features as they are. */
#include "python/config.h"
#include "train/collector.h"
#include "train/recorder.h"

#include <string.h>

typedef struct py_sampler {
    PyObject_HEAD
    cdad_py_params *params;
    cdad_sampler *sampler;
    cdad_denoiser_config config;
    int64_t n;
    PyObject *attached; /* a collector or a recorder, borrowed, or NULL */
} py_sampler;

typedef struct py_collector {
    PyObject_HEAD
    py_sampler *sampler;
    cdad_collector *collector;
} py_collector;

typedef struct py_recorder {
    PyObject_HEAD
    py_sampler *sampler;
    PyObject *names; /* tuple of str */
    cdad_recorder *recorder;
} py_recorder;

static PyObject *sampler_type;

static void sampler_dealloc(PyObject *o) {
    py_sampler *self = (py_sampler *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_sampler_free(self->sampler);
    Py_XDECREF(self->params);
    type->tp_free(o);
    Py_DECREF(type);
}

static PyObject *sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "config", "batch", NULL};
    PyObject *params, *config;
    long long n;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOL:Sampler", names, &params, &config, &n))
        return NULL;
    cdad_py_params *store = cdad_py_params_check(NULL, params);
    py_sampler *self = store ? (py_sampler *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->params = (cdad_py_params *)Py_NewRef(params);
    self->n = n;
    if (cdad_py_denoiser_config(config, &self->config) < 0)
        goto fail;
    cdad_error err = {0};
    const cdad_context ctx = cdad_py_context(store->params->device);
    if (cdad_py_lock_take(&store->workspace->lock) < 0)
        goto fail;
    const cdad_status status = cdad_sampler_new(&self->sampler, &self->config, store->params, n, &ctx, &err);
    cdad_py_lock_give(&store->workspace->lock);
    if (status == CDAD_OK)
        return (PyObject *)self;
    cdad_py_raise(&err);
fail:
    Py_DECREF(self);
    return NULL;
}

static cdad_shape latent_shape(const py_sampler *self) {
    const cdad_denoiser_config *c = &self->config;
    return cdad_shape_make(4, self->n, c->latent_h, c->latent_w, c->unet.in_channels);
}

/* Gathers the steps of a sampling: [steps, N,h,w,c] each. */
typedef struct trace {
    float *x, *x0;
    int64_t count;
} trace;

static void keep_step(void *arg, int64_t step, const float *x, const float *x0) {
    const trace *t = arg;
    memcpy(t->x + step * t->count, x, (size_t)t->count * sizeof(float));
    memcpy(t->x0 + step * t->count, x0, (size_t)t->count * sizeof(float));
}

static PyObject *sampler_denoise(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"image", "start", "context", "steps", "skip", "uncond", "guidance", "weights", "trace",
                            "stop", "twin", NULL};
    py_sampler *self = (py_sampler *)o;
    const cdad_denoiser_config *c = &self->config;
    PyObject *image_arg, *start_arg, *context_arg = Py_None, *uncond_arg = Py_None, *weights_arg = Py_None,
             *twin_arg = Py_None;
    PyObject *out = NULL, *xs = NULL, *x0s = NULL, *result = NULL, *attached;
    PyArrayObject *start = NULL, *context = NULL, *uncond = NULL, *weights = NULL,
                  *twin = NULL;
    long long steps = 10, skip = 0, stop = 0;
    double guidance = 1.0;
    int want_trace = 0;
    cdad_device *const device = self->params->params->device;
    const float *block = NULL;
    float *mirror = NULL; /* of the block on the device */
    cdad_py_input image = {0};
    cdad_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OLLOdOpLO:denoise", names, &image_arg, &start_arg,
                                     &context_arg, &steps, &skip, &uncond_arg, &guidance, &weights_arg, &want_trace, &stop,
                                     &twin_arg))
        return NULL;
    const cdad_shape z = latent_shape(self);
    const cdad_shape x = cdad_shape_make(4, self->n, c->image_h, c->image_w, (int64_t)3);
    const cdad_shape k = cdad_shape_make(3, self->n, c->context_length, c->unet.context_dim);
    const cdad_shape all = cdad_shape_make(1, self->params->params->total);
    const int of_trainer = cdad_py_is_trainer(weights_arg);
    if (cdad_py_input_of(&image, image_arg, &x, device, "image") < 0 || !(start = cdad_py_floats(start_arg, &z, "start")) ||
        (twin_arg != Py_None && !(twin = cdad_py_floats(twin_arg, &z, "twin"))) ||
        (context_arg != Py_None && !(context = cdad_py_floats(context_arg, &k, "context"))) ||
        (uncond_arg != Py_None && !(uncond = cdad_py_floats(uncond_arg, &k, "uncond"))) ||
        (of_trainer && !(block = cdad_py_trained_weights(weights_arg, self->params))) ||
        (!of_trainer && weights_arg != Py_None && !(weights = cdad_py_floats(weights_arg, &all, "weights"))) ||
        !(out = cdad_py_new_floats(&z, NULL)))
        goto done;
    trace t = {.count = cdad_shape_count(&z)};
    if (want_trace) {
        if (stop) {
            PyErr_SetString(PyExc_ValueError, "trace and stop exclude each other");
            goto done;
        }
        if (steps < 1 || steps >= CDAD_MAX_TIMESTEPS || skip < 0) {
            PyErr_Format(PyExc_ValueError, "%lld sampling steps", steps);
            goto done;
        }
        const cdad_shape s = cdad_shape_make(5, (int64_t)(steps - skip), z.dim[0], z.dim[1], z.dim[2], z.dim[3]);
        cdad_error ignored;
        if (cdad_shape_check(&s, &ignored) != CDAD_OK) {
            PyErr_Format(PyExc_ValueError, "%lld of %lld sampling steps cannot be skipped", skip, steps);
            goto done;
        }
        xs = cdad_py_new_floats(&s, NULL);
        x0s = xs ? cdad_py_new_floats(&s, NULL) : NULL;
        if (!x0s)
            goto done;
        t.x = cdad_py_data((PyArrayObject *)xs);
        t.x0 = cdad_py_data((PyArrayObject *)x0s);
    }
    if (weights)
        block = cdad_py_data(weights);
    if (weights && device) {
        if (cdad_device_mirror(device, (void **)&mirror, block, all.dim[0] * (int64_t)sizeof(float), &err) != CDAD_OK) {
            cdad_py_raise(&err);
            goto done;
        }
        block = mirror;
    }
    const cdad_sampling how = {.steps = steps,
                               .skip = skip,
                               .stop = stop,
                               .is_there = image.on_device,
                               .guidance = guidance,
                               .uncond = cdad_py_data(uncond),
                               .weights = block};
    cdad_status status;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        goto done;
    attached = Py_XNewRef(self->attached); /* not to be freed meanwhile */
    const cdad_context ctx = cdad_py_context(device);
    Py_BEGIN_ALLOW_THREADS
    status = cdad_sampler_denoise(self->sampler, &ctx, cdad_py_data((PyArrayObject *)out), image.data,
                                  cdad_py_data(start), cdad_py_data(twin), cdad_py_data(context), &how, want_trace ? keep_step : NULL, &t,
                                  &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->params->workspace->lock);
    Py_XDECREF(attached);
    if (status != CDAD_OK)
        cdad_py_raise(&err);
    else
        result = want_trace ? PyTuple_Pack(3, out, xs, x0s) : Py_NewRef(out);
done:
    cdad_device_free(device, mirror);
    Py_XDECREF(image.held);
    Py_XDECREF(start);
    Py_XDECREF(twin);
    Py_XDECREF(context);
    Py_XDECREF(uncond);
    Py_XDECREF(weights);
    Py_XDECREF(out);
    Py_XDECREF(xs);
    Py_XDECREF(x0s);
    return result;
}

static PyObject *sampler_start(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"latent", "streams", "seed", "steps", "skip", NULL};
    py_sampler *self = (py_sampler *)o;
    PyObject *latent_arg, *streams_arg, *out = NULL;
    unsigned long long seed;
    long long steps = 10, skip = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOK|LL:start", names, &latent_arg, &streams_arg, &seed, &steps,
                                     &skip))
        return NULL;
    const cdad_shape z = latent_shape(self);
    PyArrayObject *latent = cdad_py_floats(latent_arg, &z, "latent");
    PyArrayObject *streams = latent ? cdad_py_integers(streams_arg, self->n, "streams") : NULL;
    if (streams && (out = cdad_py_new_floats(&z, NULL))) {
        const cdad_sampling how = {.steps = steps, .skip = skip};
        cdad_error err = {0};
        if (cdad_sampler_start(&self->config, cdad_py_data((PyArrayObject *)out), cdad_py_data(latent), self->n, &how,
                               seed, PyArray_DATA(streams), &err) != CDAD_OK) {
            Py_CLEAR(out);
            cdad_py_raise(&err);
        }
    }
    Py_XDECREF(latent);
    Py_XDECREF(streams);
    return out;
}

static PyObject *sampler_memory(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(cdad_sampler_workspace_bytes(((py_sampler *)o)->sampler));
}

static PyObject *sampler_condition_bytes(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(cdad_sampler_condition_bytes(((py_sampler *)o)->sampler));
}

static PyObject *sampler_flops(PyObject *o, void *unused) {
    double condition, unet;
    (void)unused;
    cdad_sampler_flops(((py_sampler *)o)->sampler, &condition, &unet);
    return Py_BuildValue("(dd)", condition, unet);
}

/* What taps a sampler is attached to it while no network runs, and as long as it lives: a run holds what is attached. 0, or -1
 * with an exception; the lock is taken then. */
static int begin_attaching(const py_sampler *s) {
    if (cdad_py_lock_take(&s->params->workspace->lock) < 0)
        return -1;
    if (!s->attached)
        return 0;
    cdad_py_lock_give(&s->params->workspace->lock);
    PyErr_SetString(PyExc_ValueError, "a Collector or Recorder is attached to this sampler already");
    return -1;
}

static void end_attaching(py_sampler *s, PyObject *attached) {
    s->attached = attached;
    cdad_py_lock_give(&s->params->workspace->lock);
}

static void detach(py_sampler *s, const PyObject *o) {
    if (s && s->attached == o)
        s->attached = NULL;
}

static void collector_dealloc(PyObject *o) {
    py_collector *self = (py_collector *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_collector_free(self->collector);
    detach(self->sampler, o);
    Py_XDECREF(self->sampler);
    type->tp_free(o);
    Py_DECREF(type);
}

/* The indices of parameters that are named, [*n] to be freed by PyMem_Free; NULL with an exception set. */
static int64_t *named_params(const cdad_params *p, PyObject *names, Py_ssize_t *n) {
    PyObject *all = PySequence_Fast(names, "a sequence of parameters' names is wanted");
    if (!all)
        return NULL;
    *n = PySequence_Fast_GET_SIZE(all);
    int64_t *found = PyMem_Calloc((size_t)*n + 1, sizeof *found);
    if (!found)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; found && i < *n; i++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(all, i));
        found[i] = name ? cdad_params_find(p, name) : -1;
        if (found[i] >= 0)
            continue;
        if (name)
            PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
        PyMem_Free(found);
        found = NULL;
    }
    Py_DECREF(all);
    return found;
}

/* What a collector is to take, [params->n]: the weights that are named. */
static unsigned char *wanted_params(const cdad_params *p, PyObject *names) {
    Py_ssize_t n;
    int64_t *chosen = named_params(p, names, &n);
    unsigned char *wanted = chosen ? PyMem_Calloc((size_t)p->n, 1) : NULL;
    if (chosen && !wanted)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; wanted && i < n; i++)
        wanted[chosen[i]] = 1;
    PyMem_Free(chosen);
    return wanted;
}

/* What was made for `known` parameters serves no more of them, which another thread may have added while the lock was waited for. */
static int are_as_many(py_sampler *s, int64_t known) {
    if (s->params->params->n == known)
        return 1;
    end_attaching(s, NULL);
    PyErr_SetString(PyExc_RuntimeError, "parameters were added meanwhile");
    return 0;
}

static PyObject *collector_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"sampler", "method", "gamma", "runs", "memory", "names", NULL};
    PyObject *sampler, *names = Py_None;
    const char *name = "exact";
    double gamma = 0.999;
    long long runs = 0, memory = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|sdLLO:Collector", keywords, &sampler, &name, &gamma, &runs, &memory,
                                     &names))
        return NULL;
    if (Py_TYPE(sampler) != (PyTypeObject *)sampler_type)
        return PyErr_Format(PyExc_TypeError, "a Sampler is wanted, not %R", Py_TYPE(sampler));
    const int method = cdad_py_stream_method(name);
    if (method < 0)
        return NULL;
    py_sampler *s = (py_sampler *)sampler;
    unsigned char *wanted = names == Py_None ? NULL : wanted_params(s->params->params, names);
    if (names != Py_None && !wanted)
        return NULL;
    const int64_t known = s->params->params->n;
    py_collector *self = (py_collector *)PyType_GenericAlloc(type, 0);
    if (self)
        self->sampler = (py_sampler *)Py_NewRef(sampler);
    if (!self || begin_attaching(s) < 0 || !are_as_many(s, known)) {
        PyMem_Free(wanted);
        Py_XDECREF(self);
        return NULL;
    }
    const cdad_collecting how = {
        .method = (cdad_stream_method)method, .gamma = gamma, .runs = runs, .memory = memory, .wanted = wanted};
    cdad_error err = {0};
    const cdad_status status = cdad_collector_new(&self->collector, s->sampler, s->params->params, &how, &err);
    end_attaching(s, status == CDAD_OK ? (PyObject *)self : NULL);
    PyMem_Free(wanted);
    if (status == CDAD_OK)
        return (PyObject *)self;
    Py_DECREF(self);
    return cdad_py_raise(&err);
}

static PyObject *collector_plan(PyObject *o, PyObject *unused) {
    py_collector *self = (py_collector *)o;
    const cdad_params *p = self->sampler->params->params;
    PyObject *dict = PyDict_New();
    (void)unused;
    for (int64_t i = 0; dict && i < p->n; i++) {
        const cdad_stream_plan *plan = cdad_collector_plan(self->collector, i);
        if (!plan)
            continue;
        PyObject *item = Py_BuildValue("(LsLL)", (long long)plan->d, cdad_py_stream_method_name(plan->method),
                                       (long long)plan->rank, (long long)plan->bytes);
        if (!item || PyDict_SetItemString(dict, p->items[i].name, item) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(item);
    }
    return dict;
}

/* {name: U [d,k]} -> old [params->n]; the arrays are kept alive by `held`. */
static int read_bases(const cdad_params *p, PyObject *dict, cdad_weight_basis *old, PyObject *held) {
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) {
        const char *name = PyUnicode_AsUTF8(key);
        const int64_t i = name ? cdad_params_find(p, name) : -1;
        if (i < 0) {
            if (name)
                PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
            return -1;
        }
        PyArrayObject *U = cdad_py_floats_any(value, name);
        if (!U)
            return -1;
        const int64_t d = p->items[i].count / p->items[i].shape.dim[0];
        const int fits = PyArray_NDIM(U) == 2 && PyArray_DIM(U, 0) == d && PyArray_DIM(U, 1) <= d;
        if (fits)
            old[i] = (cdad_weight_basis){.U = cdad_py_data(U), .d = d, .k = PyArray_DIM(U, 1)};
        else
            PyErr_Format(PyExc_ValueError, "the basis of %s is [%lld, rank]", name, (long long)d);
        const int kept = fits ? PyList_Append(held, (PyObject *)U) : -1;
        Py_DECREF(U);
        if (kept < 0)
            return -1;
    }
    return 0;
}

/* Takes the bases over. */
static PyObject *bases_dict(const cdad_params *p, cdad_weight_basis *bases) {
    PyObject *dict = PyDict_New();
    for (int64_t i = 0; dict && i < p->n; i++) {
        if (!bases[i].U)
            continue;
        const cdad_shape shape = cdad_shape_make(2, bases[i].d, bases[i].k);
        PyObject *U = cdad_py_taken_floats(&shape, bases[i].U);
        bases[i].U = NULL;
        PyObject *item = U ? Py_BuildValue("(Ndd)", U, bases[i].energy, bases[i].capped) : NULL;
        if (!item || PyDict_SetItemString(dict, p->items[i].name, item) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(item);
    }
    return dict;
}

static PyObject *collector_bases(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"old", "max_share", "max_added", NULL};
    py_collector *self = (py_collector *)o;
    const cdad_params *p = self->sampler->params->params;
    PyObject *old_arg, *given, *held, *result = NULL;
    double max_share = 1.0;
    long long max_added = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|dL:bases", names, &PyDict_Type, &old_arg, &max_share, &max_added))
        return NULL;
    if (!p->values) /* until then their number may grow */
        return PyErr_Format(PyExc_ValueError, "the parameters are not allocated yet");
    cdad_weight_basis *old = PyMem_Calloc((size_t)p->n + 1, sizeof *old);
    cdad_weight_basis *out = PyMem_Calloc((size_t)p->n + 1, sizeof *out);
    given = PyDict_Copy(old_arg); /* what its arrays run when they are asked may change it */
    held = PyList_New(0);
    if (!old || !out || !given || !held) {
        PyErr_NoMemory();
        goto done;
    }
    if (read_bases(p, given, old, held) < 0)
        goto done;
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->sampler->params->workspace->lock) < 0)
        goto done;
    const cdad_context ctx = cdad_py_context(NULL); /* streams are the host's */
    Py_BEGIN_ALLOW_THREADS
    status = cdad_collector_bases(self->collector, &ctx, old, max_share, max_added, out, &err);
    Py_END_ALLOW_THREADS
    if (cdad_collector_ended(self->collector))
        detach(self->sampler, o);
    cdad_py_lock_give(&self->sampler->params->workspace->lock);
    result = status == CDAD_OK ? bases_dict(p, out) : cdad_py_raise(&err);
    for (int64_t i = 0; i < p->n; i++)
        cdad_free(out[i].U);
done:
    PyMem_Free(old);
    PyMem_Free(out);
    Py_XDECREF(given);
    Py_XDECREF(held);
    return result;
}

static void recorder_dealloc(PyObject *o) {
    py_recorder *self = (py_recorder *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_recorder_free(self->recorder);
    detach(self->sampler, o);
    Py_XDECREF(self->names);
    Py_XDECREF(self->sampler);
    type->tp_free(o);
    Py_DECREF(type);
}

static PyObject *recorder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *keywords[] = {"sampler", "names", NULL};
    PyObject *sampler, *names_arg;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Recorder", keywords, &sampler, &names_arg))
        return NULL;
    if (Py_TYPE(sampler) != (PyTypeObject *)sampler_type)
        return PyErr_Format(PyExc_TypeError, "a Sampler is wanted, not %R", Py_TYPE(sampler));
    py_sampler *s = (py_sampler *)sampler;
    PyObject *names = PySequence_Tuple(names_arg);
    if (!names)
        return NULL;
    Py_ssize_t n;
    int64_t *chosen = named_params(s->params->params, names, &n);
    py_recorder *self = NULL;
    if (!chosen)
        goto done;
    self = (py_recorder *)PyType_GenericAlloc(type, 0);
    if (!self)
        goto done;
    self->sampler = (py_sampler *)Py_NewRef(sampler);
    self->names = Py_NewRef(names);
    if (begin_attaching(s) < 0) {
        Py_CLEAR(self);
        goto done;
    }
    cdad_error err = {0};
    const cdad_status status = cdad_recorder_new(&self->recorder, s->sampler, s->params->params, chosen, n, &err);
    end_attaching(s, status == CDAD_OK ? (PyObject *)self : NULL);
    if (status != CDAD_OK) {
        Py_CLEAR(self);
        cdad_py_raise(&err);
    }
done:
    PyMem_Free(chosen);
    Py_DECREF(names);
    return (PyObject *)self;
}

static PyObject *recorder_take(PyObject *o, PyObject *unused) {
    (void)unused;
    py_recorder *self = (py_recorder *)o;
    PyObject *dict = PyDict_New();
    if (dict && cdad_py_lock_take(&self->sampler->params->workspace->lock) < 0)
        Py_CLEAR(dict);
    if (!dict)
        return NULL;
    for (Py_ssize_t i = 0; dict && i < PyTuple_GET_SIZE(self->names); i++) {
        int64_t rows, d;
        const float *data = cdad_recorder_rows(self->recorder, i, &rows, &d);
        npy_intp dims[2] = {(npy_intp)rows, (npy_intp)d};
        PyObject *X = PyArray_SimpleNew(2, dims, NPY_FLOAT32);
        if (X && rows > 0)
            memcpy(PyArray_DATA((PyArrayObject *)X), data, (size_t)rows * (size_t)d * sizeof(float));
        if (!X || PyDict_SetItem(dict, PyTuple_GET_ITEM(self->names, i), X) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(X);
    }
    if (dict)
        cdad_recorder_clear(self->recorder);
    cdad_py_lock_give(&self->sampler->params->workspace->lock);
    return dict;
}

static PyMethodDef sampler_methods[] = {
    {"denoise", (PyCFunction)(void (*)(void))sampler_denoise, METH_VARARGS | METH_KEYWORDS,
     "denoise($self, image, start, context=None, steps=10, skip=0, uncond=None, guidance=1.0, weights=None, "
     "trace=False, stop=0, twin=None)\n--\n\nDDIM from x_T = start under tau(image) by `weights` (a block; a Trainer: its "
     "moving average; None: the parameters), or after stop > 0 steps the x0 "
     "predicted there; with a second start the mean of both; the image may lie on the sampler's device; with trace (out, x of every step, x0 of every step), of the "
     "first. The GIL is released."},
    {"start", (PyCFunction)(void (*)(void))sampler_start, METH_VARARGS | METH_KEYWORDS,
     "start($self, latent, streams, seed, steps=10, skip=0)\n--\n\nx_T = q_sample(latent, T-1) with the noise of "
     "(seed, streams[i])."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef sampler_getset[] = {{"memory_bytes", sampler_memory, NULL, "Arena and scratch in bytes, of the parameters' workspace.", NULL},
                                       {"condition_bytes", sampler_condition_bytes, NULL, "Bytes of a batch's condition, kept apart.", NULL},
                                       {"flops", sampler_flops, NULL,
                                        "(condition, U-Net): operations of the products of a batch's condition, and of one "
                                        "evaluation of the U-Net.", NULL},
                                       {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot sampler_slots[] = {
    {Py_tp_new, sampler_new},
    {Py_tp_dealloc, sampler_dealloc},
    {Py_tp_methods, sampler_methods},
    {Py_tp_getset, sampler_getset},
    {Py_tp_doc, "Sampler(params, config, batch)\n--\n\nReconstructs batches of one size."},
    {0, NULL}};
static PyType_Spec sampler_spec = {.name = "cdad._core.Sampler",
                                   .basicsize = sizeof(py_sampler),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = sampler_slots};

static PyMethodDef collector_methods[] = {
    {"plan", collector_plan, METH_NOARGS,
     "plan($self)\n--\n\n{weight: (width d, method, directions kept at most, bytes held at most)}; bytes are 0 where an "
     "earlier weight reads the same features. No memory is taken before features come."},
    {"bases", (PyCFunction)(void (*)(void))collector_bases, METH_VARARGS | METH_KEYWORDS,
     "bases($self, old, max_share=1.0, max_added=0)\n--\n\n{weight: (U [d, rank], share of energy kept, share lost to the "
     "caps)} after the earlier tasks' bases `old` {weight: U} (paper, Eq. 6); a rank stays within max_share * d where the old "
     "one does, and within max_added (0: any number) of the old one. Features are given back as bases are made of them: it can be called once, and nothing is collected any "
     "more. The GIL is released."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot collector_slots[] = {
    {Py_tp_new, collector_new},
    {Py_tp_dealloc, collector_dealloc},
    {Py_tp_methods, collector_methods},
    {Py_tp_doc, "Collector(sampler, method='exact', gamma=0.999, runs=0, memory=0, names=None)\n--\n\nTakes in the input features of every "
                "weight, or of those that are named, while the sampler runs, from now on, each in a Stream of that method. With 'auto', runs (of the "
                "model to come, at most; 0: unknown) and memory (bytes for all streams; 0: any) help to choose."},
    {0, NULL}};
static PyType_Spec collector_spec = {.name = "cdad._core.Collector",
                                     .basicsize = sizeof(py_collector),
                                     .flags = Py_TPFLAGS_DEFAULT,
                                     .slots = collector_slots};

static PyMethodDef recorder_methods[] = {
    {"take", recorder_take, METH_NOARGS,
     "take($self)\n--\n\n{weight: its input features [rows, d] since the last call}, images unfolded."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot recorder_slots[] = {
    {Py_tp_new, recorder_new},
    {Py_tp_dealloc, recorder_dealloc},
    {Py_tp_methods, recorder_methods},
    {Py_tp_doc, "Recorder(sampler, names)\n--\n\nKeeps the input features of these weights while the sampler runs, from "
                "now on: memory grows until they are taken."},
    {0, NULL}};
static PyType_Spec recorder_spec = {.name = "cdad._core.Recorder",
                                    .basicsize = sizeof(py_recorder),
                                    .flags = Py_TPFLAGS_DEFAULT,
                                    .slots = recorder_slots};

int cdad_py_add_sampler(PyObject *module) {
    return cdad_py_add_type(module, &sampler_spec, &sampler_type) < 0 ||
                   cdad_py_add_type(module, &collector_spec, NULL) < 0 ||
                   cdad_py_add_type(module, &recorder_spec, NULL) < 0
               ? -1
               : 0;
}

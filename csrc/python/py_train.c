/* Trainer: training steps as single calls into the core. */
#include "train/trainer.h"
#include "python/config.h"

#include <string.h>

typedef struct py_trainer {
    PyObject_HEAD
    cdad_py_params *params;
    cdad_trainer *trainer;
    cdad_denoiser_config config;
    int64_t n;
    PyObject *bases; /* {name: array}: keeps alive what the optimiser borrows */
    cdad_py_lock lock;
} py_trainer;

static void trainer_dealloc(PyObject *o) {
    py_trainer *self = (py_trainer *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_trainer_free(self->trainer);
    if (self->lock)
        PyThread_free_lock(self->lock);
    Py_XDECREF(self->bases);
    Py_XDECREF(self->params);
    type->tp_free(o);
    Py_DECREF(type);
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "config", "batch", "optimizer", "seed", NULL};
    PyObject *params, *config, *optimizer;
    long long n;
    unsigned long long seed;
    cdad_optimizer_config oc;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOLOK:Trainer", names, &params, &config, &n, &optimizer, &seed))
        return NULL;
    cdad_py_params *store = cdad_py_params_check(NULL, params);
    py_trainer *self = store ? (py_trainer *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->params = (cdad_py_params *)Py_NewRef(params);
    self->n = n;
    self->lock = PyThread_allocate_lock();
    self->bases = PyDict_New();
    if (!self->lock)
        PyErr_NoMemory();
    if (!self->lock || !self->bases || cdad_py_denoiser_config(config, &self->config) < 0 ||
        cdad_py_optimizer_config(optimizer, &oc) < 0)
        goto fail;
    cdad_error err = {0};
    const cdad_context ctx = cdad_py_context();
    if (cdad_trainer_new(&self->trainer, &self->config, store->params, n, &oc, seed, &ctx, &err) == CDAD_OK)
        return (PyObject *)self;
    cdad_py_raise(&err);
fail:
    Py_DECREF(self);
    return NULL;
}

/* The arrays of one step. */
typedef struct step_arrays {
    PyArrayObject *latent, *image, *perturbed, *context;
} step_arrays;

static void release_arrays(step_arrays *a) {
    Py_XDECREF(a->latent);
    Py_XDECREF(a->image);
    Py_XDECREF(a->perturbed);
    Py_XDECREF(a->context);
}

static int take_arrays(const py_trainer *self, PyObject *latent, PyObject *image, PyObject *perturbed,
                       PyObject *context, step_arrays *a) {
    const cdad_denoiser_config *c = &self->config;
    const cdad_shape z = cdad_shape_make(4, self->n, c->latent_h, c->latent_w, c->unet.in_channels);
    const cdad_shape x = cdad_shape_make(4, self->n, c->image_h, c->image_w, (int64_t)3);
    const cdad_shape k = cdad_shape_make(3, self->n, c->context_length, c->unet.context_dim);
    memset(a, 0, sizeof *a);
    a->latent = cdad_py_floats(latent, &z, "latent");
    a->image = a->latent ? cdad_py_floats(image, &x, "image") : NULL;
    a->perturbed = a->image ? cdad_py_floats(perturbed, &x, "perturbed") : NULL;
    if (a->perturbed && context != Py_None)
        a->context = cdad_py_floats(context, &k, "context");
    if (a->perturbed && (context == Py_None || a->context))
        return 0;
    release_arrays(a);
    return -1;
}

static PyObject *trainer_step(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"latent", "image", "perturbed", "context", "lr_scale", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *latent, *image, *perturbed, *context = Py_None;
    double lr_scale = 1.0;
    step_arrays a;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|Od:step", names, &latent, &image, &perturbed, &context,
                                     &lr_scale) ||
        take_arrays(self, latent, image, perturbed, context, &a) < 0)
        return NULL;
    cdad_error err = {0};
    cdad_step_result r;
    cdad_status status;
    cdad_py_lock_take(self->lock);
    const cdad_context ctx = cdad_py_context();
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_step(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                               cdad_py_data(a.perturbed), cdad_py_data(a.context), lr_scale, &r, &err);
    Py_END_ALLOW_THREADS
    PyThread_release_lock(self->lock);
    release_arrays(&a);
    return status == CDAD_OK ? Py_BuildValue("dddd", r.loss, r.loss_cdm, r.loss_amn, r.grad_norm)
                             : cdad_py_raise(&err);
}

/* {name: gradient} copied from the optimiser's block. */
static PyObject *gradient_dict(const py_trainer *self) {
    const cdad_params *p = self->params->params;
    const float *grads = cdad_trainer_optimizer(self->trainer)->grads;
    PyObject *dict = PyDict_New();
    for (int64_t i = 0; dict && i < p->n; i++) {
        PyObject *a = cdad_py_new_floats(&p->items[i].shape, grads + p->items[i].offset);
        if (!a || PyDict_SetItemString(dict, p->items[i].name, a) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(a);
    }
    return dict;
}

static PyObject *trainer_gradients(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"latent", "image", "perturbed", "noise", "timesteps", "context", NULL};
    py_trainer *self = (py_trainer *)o;
    const cdad_denoiser_config *c = &self->config;
    PyObject *latent, *image, *perturbed, *noise_arg, *t_arg, *context = Py_None, *result = NULL;
    step_arrays a;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|O:gradients", names, &latent, &image, &perturbed,
                                     &noise_arg, &t_arg, &context) ||
        take_arrays(self, latent, image, perturbed, context, &a) < 0)
        return NULL;
    const cdad_shape z = cdad_shape_make(4, self->n, c->latent_h, c->latent_w, c->unet.in_channels);
    PyArrayObject *noise = cdad_py_floats(noise_arg, &z, "noise");
    PyArrayObject *t = noise ? (PyArrayObject *)PyArray_FROMANY(t_arg, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO) : NULL;
    if (t && PyArray_SIZE(t) != self->n) {
        PyErr_Format(PyExc_ValueError, "timesteps: %lld are wanted", (long long)self->n);
        Py_CLEAR(t);
    }
    if (t) {
        cdad_error err = {0};
        cdad_step_result r;
        cdad_status status;
        cdad_py_lock_take(self->lock);
        const cdad_context ctx = cdad_py_context();
        Py_BEGIN_ALLOW_THREADS
        status = cdad_trainer_gradients(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                                        cdad_py_data(a.perturbed), cdad_py_data(a.context), cdad_py_data(noise),
                                        PyArray_DATA(t), &r, &err);
        Py_END_ALLOW_THREADS
        PyObject *grads = status == CDAD_OK ? gradient_dict(self) : cdad_py_raise(&err);
        PyThread_release_lock(self->lock);
        if (grads)
            result = Py_BuildValue("dddN", r.loss, r.loss_cdm, r.loss_amn, grads);
    }
    Py_XDECREF(noise);
    Py_XDECREF(t);
    release_arrays(&a);
    return result;
}

static PyObject *trainer_protect(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"param", "basis", "frozen", NULL};
    py_trainer *self = (py_trainer *)o;
    const cdad_params *p = self->params->params;
    const char *name;
    PyObject *basis = Py_None;
    int frozen = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|Op:protect", names, &name, &basis, &frozen))
        return NULL;
    PyArrayObject *U = NULL;
    if (basis != Py_None) {
        const int64_t i = cdad_params_find(p, name);
        if (i < 0)
            return PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
        U = cdad_py_floats_any(basis, name);
        if (!U)
            return NULL;
        if (PyArray_NDIM(U) != 2 || PyArray_DIM(U, 0) != p->items[i].count / p->items[i].shape.dim[0]) {
            PyErr_Format(PyExc_ValueError, "the basis of %s is [%lld, rank]", name,
                         (long long)(p->items[i].count / p->items[i].shape.dim[0]));
            Py_DECREF(U);
            return NULL;
        }
    }
    const int64_t rank = U ? PyArray_DIM(U, 1) : 0;
    cdad_error err = {0};
    cdad_status status;
    cdad_py_lock_take(self->lock);
    Py_BEGIN_ALLOW_THREADS
    status = cdad_optimizer_protect(cdad_trainer_optimizer(self->trainer), name, frozen, cdad_py_data(U), rank, &err);
    Py_END_ALLOW_THREADS
    int kept = 0;
    if (status == CDAD_OK)
        kept = PyDict_SetItemString(self->bases, name, U ? (PyObject *)U : Py_None);
    if (kept < 0) /* nobody keeps the basis alive: it goes again, which cannot fail */
        (void)!cdad_optimizer_protect(cdad_trainer_optimizer(self->trainer), name, frozen, NULL, 0, &err);
    PyThread_release_lock(self->lock);
    Py_XDECREF(U);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *trainer_block(PyObject *o, PyObject *arg) {
    const cdad_optimizer *opt = cdad_trainer_optimizer(((py_trainer *)o)->trainer);
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name)
        return NULL;
    const int is_m = strcmp(name, "m") == 0;
    void *data = is_m ? opt->m : strcmp(name, "v") == 0 ? opt->v : strcmp(name, "ema") == 0 ? opt->ema : NULL;
    if (!data)
        return PyErr_Format(PyExc_ValueError, "there is no block '%s' ('m', 'v', or 'ema' where ema_decay > 0)", name);
    npy_intp n = (npy_intp)opt->params->total;
    const int type = is_m && opt->config.bf16_first_moment ? NPY_UINT16 : NPY_FLOAT32;
    PyObject *a = PyArray_SimpleNewFromData(1, &n, type, data);
    if (a && PyArray_SetBaseObject((PyArrayObject *)a, Py_NewRef(o)) < 0)
        Py_CLEAR(a);
    return a;
}

/* The two counters of the optimiser, by the closure of their getset entry. */
static int64_t *counter(PyObject *o, const void *which) {
    cdad_optimizer *opt = cdad_trainer_optimizer(((py_trainer *)o)->trainer);
    return which ? &opt->age : &opt->step;
}

static PyObject *trainer_get_counter(PyObject *o, void *which) { return PyLong_FromLongLong(*counter(o, which)); }

static int trainer_set_counter(PyObject *o, PyObject *value, void *which) {
    const long long n = value ? PyLong_AsLongLong(value) : -1;
    if (n < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a counter is an integer >= 0");
        return -1;
    }
    *counter(o, which) = n;
    return 0;
}

static PyObject *trainer_reset(PyObject *o, PyObject *unused) {
    (void)unused;
    py_trainer *self = (py_trainer *)o;
    cdad_py_lock_take(self->lock);
    cdad_optimizer_reset(cdad_trainer_optimizer(self->trainer));
    PyThread_release_lock(self->lock);
    Py_RETURN_NONE;
}

static PyObject *trainer_memory(PyObject *o, void *unused) {
    (void)unused;
    const cdad_trainer *t = ((py_trainer *)o)->trainer;
    const cdad_optimizer *opt = cdad_trainer_optimizer(((py_trainer *)o)->trainer);
    const long long block = (long long)opt->params->total * (long long)sizeof(float);
    return Py_BuildValue("{s:L,s:L,s:L,s:L}", "arena", (long long)cdad_trainer_arena_bytes(t), "scratch",
                         (long long)cdad_trainer_scratch_bytes(t), "parameters", block, "optimizer",
                         block * (1 + (opt->ema != NULL) + (opt->grads != NULL)) +
                             (long long)(opt->params->total * cdad_optimizer_m_size(&opt->config)));
}

static PyMethodDef trainer_methods[] = {
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS,
     "step($self, latent, image, perturbed, context=None, lr_scale=1.0)\n--\n\nOne training step; returns (loss, "
     "L_CDM, L_amn, gradient norm). The GIL is released. TrainingError where something is not finite: weights are "
     "then as before, unless the message says that a part was updated (gradients that are not clipped are used as "
     "they come)."},
    {"gradients", (PyCFunction)(void (*)(void))trainer_gradients, METH_VARARGS | METH_KEYWORDS,
     "gradients($self, latent, image, perturbed, noise, timesteps, context=None)\n--\n\n(loss, L_CDM, L_amn, "
     "{name: gradient}) without an update."},
    {"protect", (PyCFunction)(void (*)(void))trainer_protect, METH_VARARGS | METH_KEYWORDS,
     "protect($self, param, basis=None, frozen=False)\n--\n\nProtects a weight's old features by their orthonormal "
     "basis [d, rank], or freezes the parameter, or (neither) frees it."},
    {"reset", trainer_reset, METH_NOARGS, "reset($self)\n--\n\nForgets the moments, as at the start of a task."},
    {"block", trainer_block, METH_O,
     "block($self, name, /)\n--\n\nA writable view of the moments 'm' and 'v' or of the moving average 'ema'; of 'm' "
     "the bits of bfloat16 as uint16 where first_moment is \"bfloat16\"."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef trainer_getset[] = {
    {"n_steps", trainer_get_counter, trainer_set_counter, "Finished steps; fixes the noise of the next.", NULL},
    {"age", trainer_get_counter, trainer_set_counter, "Steps since the moments were last forgotten.", (void *)1},
    {"memory_bytes", trainer_memory, NULL, "{arena, scratch, parameters, optimizer}: bytes, known before a step.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot trainer_slots[] = {
    {Py_tp_new, trainer_new},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_getset},
    {Py_tp_doc, "Trainer(params, config, batch, optimizer, seed)\n--\n\nTrains the denoiser on batches of one size."},
    {0, NULL}};
static PyType_Spec trainer_spec = {.name = "cdad._core.Trainer",
                                   .basicsize = sizeof(py_trainer),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = trainer_slots};

int cdad_py_add_train(PyObject *module) { return cdad_py_add_type(module, &trainer_spec, NULL); }

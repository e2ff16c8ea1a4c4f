/* Trainer: training steps as single calls into the core. */
#include "train/trainer.h"
#include "python/config.h"

#include <string.h>

/* The blocks that a trainer borrows. */
enum { IMPORTANCE, ANCHOR, PATH, TEACHER, SUMS, N_BLOCKS };

typedef struct py_trainer {
    PyObject_HEAD
    cdad_py_params *params;
    cdad_trainer *trainer;
    cdad_denoiser_config config;
    int64_t n;
    PyObject *borrowed; /* {name: array}: keeps alive what the optimiser borrows: bases by parameter, and blocks */
    float *mirrors[N_BLOCKS]; /* of borrowed blocks, where the parameters lie on a device */
    float *path;              /* the borrowed path integral, or NULL */
    cdad_py_lock lock;
} py_trainer;

static PyObject *trainer_type;

static cdad_device *device_of(const py_trainer *self) { return self->params->params->device; }

/* What the core is given for a borrowed block of the host, or NULL: on a device, a copy there. */
static cdad_status lend(py_trainer *self, int which, float *block, float **lent, cdad_error *err) {
    const int64_t bytes = self->params->params->total * (int64_t)sizeof(float);
    *lent = block;
    if (!device_of(self))
        return CDAD_OK;
    if (!block) {
        cdad_device_free(device_of(self), self->mirrors[which]);
        self->mirrors[which] = NULL;
        return CDAD_OK;
    }
    CDAD_TRY(cdad_device_mirror(device_of(self), (void **)&self->mirrors[which], block, bytes, err));
    *lent = self->mirrors[which];
    return CDAD_OK;
}

/* Gives a block that the core has written back. */
static cdad_status give_back(const py_trainer *self, int which, float *block, cdad_error *err) {
    if (!block || !device_of(self))
        return CDAD_OK;
    return cdad_device_download(device_of(self), block, self->mirrors[which],
                                self->params->params->total * (int64_t)sizeof(float), err);
}

static void trainer_dealloc(PyObject *o) {
    py_trainer *self = (py_trainer *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_trainer_free(self->trainer);
    for (int i = 0; i < N_BLOCKS; i++)
        cdad_device_free(self->params ? device_of(self) : NULL, self->mirrors[i]);
    if (self->lock)
        PyThread_free_lock(self->lock);
    Py_XDECREF(self->borrowed);
    Py_XDECREF(self->params);
    type->tp_free(o);
    Py_DECREF(type);
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "config",  "batch",      "optimizer", "seed",
                            "objective", "distill", "accumulate", "recompute", NULL};
    PyObject *params, *config, *optimizer;
    long long n, accumulate = 1;
    unsigned long long seed;
    const char *objective = "loss";
    int distill = 0, recompute = 0;
    cdad_optimizer_config oc;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOLOK|spLp:Trainer", names, &params, &config, &n, &optimizer,
                                     &seed, &objective, &distill, &accumulate, &recompute))
        return NULL;
    const int is_output = strcmp(objective, "output") == 0;
    if (!is_output && strcmp(objective, "loss") != 0)
        return PyErr_Format(PyExc_ValueError, "objective is '%s'; 'loss' or 'output' is wanted", objective);
    cdad_py_params *store = cdad_py_params_check(NULL, params);
    py_trainer *self = store ? (py_trainer *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->params = (cdad_py_params *)Py_NewRef(params);
    self->n = n;
    self->lock = PyThread_allocate_lock();
    self->borrowed = PyDict_New();
    if (!self->lock)
        PyErr_NoMemory();
    if (!self->lock || !self->borrowed || cdad_py_denoiser_config(config, &self->config) < 0 ||
        (optimizer != Py_None && cdad_py_optimizer_config(optimizer, &oc) < 0))
        goto fail;
    self->config.objective = is_output ? CDAD_OBJECTIVE_OUTPUT : CDAD_OBJECTIVE_LOSS;
    self->config.distills = distill;
    cdad_error err = {0};
    const cdad_context ctx = cdad_py_context(store->params->device);
    const cdad_batching batching = {.n = n, .accumulate = accumulate, .recompute = recompute};
    if (cdad_trainer_new(&self->trainer, &self->config, store->params, &batching, optimizer == Py_None ? NULL : &oc, seed,
                         &ctx, &err) == CDAD_OK)
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
    const cdad_context ctx = cdad_py_context(device_of(self));
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_step(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                               cdad_py_data(a.perturbed), cdad_py_data(a.context), lr_scale, &r, &err);
    if (status == CDAD_OK)
        status = give_back(self, PATH, self->path, &err);
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
        PyObject *a = cdad_py_download(device_of(self), &p->items[i].shape, NPY_FLOAT32, grads + p->items[i].offset, 1);
        if (!a || PyDict_SetItemString(dict, p->items[i].name, a) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(a);
    }
    return dict;
}

/* The noise [N,h,w,c] and the timesteps [N] that a caller gives. */
typedef struct given_draws {
    PyArrayObject *noise, *t;
} given_draws;

static void release_draws(given_draws *d) {
    Py_XDECREF(d->noise);
    Py_XDECREF(d->t);
}

static int take_draws(const py_trainer *self, PyObject *noise, PyObject *timesteps, given_draws *d) {
    const cdad_denoiser_config *c = &self->config;
    const cdad_shape z = cdad_shape_make(4, self->n, c->latent_h, c->latent_w, c->unet.in_channels);
    *d = (given_draws){.noise = cdad_py_floats(noise, &z, "noise")};
    if (d->noise)
        d->t = (PyArrayObject *)PyArray_FROMANY(timesteps, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO);
    if (d->t && PyArray_SIZE(d->t) != self->n) {
        PyErr_Format(PyExc_ValueError, "timesteps: %lld are wanted", (long long)self->n);
        Py_CLEAR(d->t);
    }
    if (d->t)
        return 0;
    release_draws(d);
    return -1;
}

/* Arrays and draws, or neither and -1 with an exception. */
static int take_batch(py_trainer *self, PyObject *latent, PyObject *image, PyObject *perturbed, PyObject *context,
                      PyObject *noise, PyObject *timesteps, step_arrays *a, given_draws *d) {
    if (take_arrays(self, latent, image, perturbed, context, a) < 0)
        return -1;
    if (take_draws(self, noise, timesteps, d) == 0)
        return 0;
    release_arrays(a);
    return -1;
}

static PyObject *trainer_gradients(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"latent", "image", "perturbed", "noise", "timesteps", "context", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *latent, *image, *perturbed, *noise, *timesteps, *context = Py_None;
    step_arrays a;
    given_draws d;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|O:gradients", names, &latent, &image, &perturbed, &noise,
                                     &timesteps, &context) ||
        take_batch(self, latent, image, perturbed, context, noise, timesteps, &a, &d) < 0)
        return NULL;
    cdad_error err = {0};
    cdad_step_result r;
    cdad_status status;
    cdad_py_lock_take(self->lock);
    const cdad_context ctx = cdad_py_context(device_of(self));
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_gradients(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                                    cdad_py_data(a.perturbed), cdad_py_data(a.context), cdad_py_data(d.noise),
                                    PyArray_DATA(d.t), &r, &err);
    Py_END_ALLOW_THREADS
    PyObject *grads = status == CDAD_OK ? gradient_dict(self) : cdad_py_raise(&err);
    PyThread_release_lock(self->lock);
    release_draws(&d);
    release_arrays(&a);
    return grads ? Py_BuildValue("dddN", r.loss, r.loss_cdm, r.loss_amn, grads) : NULL;
}

/* `o` itself as a block in the layout of the parameters, which the core borrows, or NULL with an exception. */
static float *take_block(const py_trainer *self, PyObject *o, const char *what, int written) {
    const int flags = written ? NPY_ARRAY_CARRAY : NPY_ARRAY_CARRAY_RO;
    if (!PyArray_Check(o) || PyArray_TYPE((PyArrayObject *)o) != NPY_FLOAT32 ||
        !PyArray_CHKFLAGS((PyArrayObject *)o, flags) || !PyArray_ISNOTSWAPPED((PyArrayObject *)o)) {
        PyErr_Format(PyExc_TypeError, "%s: a contiguous%s array of float32 is wanted", what, written ? ", writable" : "");
        return NULL;
    }
    const long long total = (long long)self->params->params->total;
    if (PyArray_NDIM((PyArrayObject *)o) != 1 || PyArray_DIM((PyArrayObject *)o, 0) != total) {
        PyErr_Format(PyExc_ValueError, "%s: a block of %lld elements is wanted, as block('weights') gives", what, total);
        return NULL;
    }
    return cdad_py_data((PyArrayObject *)o);
}

static PyObject *trainer_magnitudes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sums", "latent", "image", "perturbed", "noise", "timesteps", "context", "squares", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *sums, *latent, *image, *perturbed, *noise, *timesteps, *context = Py_None;
    int squares = 0;
    step_arrays a;
    given_draws d;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOO|Op:magnitudes", names, &sums, &latent, &image, &perturbed,
                                     &noise, &timesteps, &context, &squares))
        return NULL;
    float *block = take_block(self, sums, "sums", 1);
    if (!block || take_batch(self, latent, image, perturbed, context, noise, timesteps, &a, &d) < 0)
        return NULL;
    cdad_error err = {0};
    cdad_step_result r;
    cdad_status status;
    cdad_py_lock_take(self->lock);
    const cdad_context ctx = cdad_py_context(device_of(self));
    float *lent;
    Py_BEGIN_ALLOW_THREADS
    status = lend(self, SUMS, block, &lent, &err);
    if (status == CDAD_OK)
        status = cdad_trainer_magnitudes(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                                     cdad_py_data(a.perturbed), cdad_py_data(a.context), cdad_py_data(d.noise),
                                     PyArray_DATA(d.t), squares, lent, &r, &err);
    if (status == CDAD_OK)
        status = give_back(self, SUMS, block, &err);
    Py_END_ALLOW_THREADS
    PyThread_release_lock(self->lock);
    release_draws(&d);
    release_arrays(&a);
    return status == CDAD_OK ? PyFloat_FromDouble(r.loss) : cdad_py_raise(&err);
}

/* The trainer's optimiser, or NULL with an exception. */
static cdad_optimizer *optimizer_of(const py_trainer *self) {
    cdad_optimizer *opt = cdad_trainer_optimizer(self->trainer);
    if (!opt)
        PyErr_SetString(PyExc_ValueError, "this trainer has no optimizer");
    return opt;
}

/* Keeps a borrowed block, or with NULL the old one no longer; a name with a blank is no parameter's. */
static int keep_block(const py_trainer *self, const char *name, PyObject *o) {
    return PyDict_SetItemString(self->borrowed, name, o ? o : Py_None);
}

static PyObject *trainer_penalize(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"importance", "anchor", "strength", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *importance = Py_None, *anchor = Py_None;
    double strength = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OOd:penalize", names, &importance, &anchor, &strength))
        return NULL;
    cdad_optimizer *opt = optimizer_of(self);
    const int none = importance == Py_None;
    float *const weight = opt && !none ? take_block(self, importance, "importance", 0) : NULL;
    float *const to = weight ? take_block(self, anchor, "anchor", 0) : NULL;
    if (!opt || (!none && !to))
        return NULL;
    if (!(strength >= 0))
        return PyErr_Format(PyExc_ValueError, "the strength of a penalty is at least 0");
    cdad_error err = {0};
    float *lent, *lent_anchor;
    cdad_py_lock_take(self->lock);
    cdad_optimizer_penalize(opt, NULL, NULL, 0);
    const int kept = keep_block(self, "the importance", importance) == 0 && keep_block(self, "the anchor", anchor) == 0;
    cdad_status status = kept ? lend(self, IMPORTANCE, weight, &lent, &err) : CDAD_OK;
    if (kept && status == CDAD_OK)
        status = lend(self, ANCHOR, to, &lent_anchor, &err);
    if (kept && status == CDAD_OK)
        cdad_optimizer_penalize(opt, lent, lent_anchor, strength);
    PyThread_release_lock(self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

static PyObject *trainer_follow(PyObject *o, PyObject *path) {
    py_trainer *self = (py_trainer *)o;
    cdad_optimizer *opt = optimizer_of(self);
    float *const block = opt && path != Py_None ? take_block(self, path, "path", 1) : NULL;
    if (!opt || (path != Py_None && !block))
        return NULL;
    cdad_error err = {0};
    float *lent;
    cdad_py_lock_take(self->lock);
    cdad_optimizer_follow(opt, NULL);
    self->path = NULL;
    const int kept = keep_block(self, "the path", path) == 0;
    const cdad_status status = kept ? lend(self, PATH, block, &lent, &err) : CDAD_OK;
    if (kept && status == CDAD_OK) {
        cdad_optimizer_follow(opt, lent);
        self->path = block;
    }
    PyThread_release_lock(self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

static PyObject *trainer_teach(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "strength", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *weights = Py_None;
    double strength = 1.0;
    cdad_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Od:teach", names, &weights, &strength))
        return NULL;
    float *const block = weights == Py_None ? NULL : take_block(self, weights, "weights", 0);
    if (weights != Py_None && !block)
        return NULL;
    if (!(strength >= 0))
        return PyErr_Format(PyExc_ValueError, "the strength of a teacher is at least 0");
    cdad_py_lock_take(self->lock);
    cdad_status status = cdad_trainer_teach(self->trainer, NULL, 0, &err);
    const int kept = keep_block(self, "the teacher", weights) == 0;
    float *lent;
    if (status == CDAD_OK && kept)
        status = lend(self, TEACHER, block, &lent, &err);
    if (status == CDAD_OK && kept)
        status = cdad_trainer_teach(self->trainer, lent, strength, &err);
    PyThread_release_lock(self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

/* Orthonormal directions of a parameter's rows, float32 [d,k]; NULL with an exception. */
static PyArrayObject *directions_of(const py_trainer *self, const char *name, PyObject *o) {
    const cdad_params *p = self->params->params;
    const int64_t i = cdad_params_find(p, name);
    if (i < 0)
        return (PyArrayObject *)PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
    PyArrayObject *U = cdad_py_floats_any(o, name);
    if (U && (PyArray_NDIM(U) != 2 || PyArray_DIM(U, 0) != p->items[i].count / p->items[i].shape.dim[0])) {
        PyErr_Format(PyExc_ValueError, "the basis of %s is [%lld, rank]", name,
                     (long long)(p->items[i].count / p->items[i].shape.dim[0]));
        Py_CLEAR(U);
    }
    return U;
}

/* What protect and confine do with directions, NULL or taken over, which live on as long as the optimiser uses them. */
static PyObject *treat(py_trainer *self, const char *name, PyArrayObject *U, int confine, int frozen) {
    cdad_optimizer *const opt = cdad_trainer_optimizer(self->trainer);
    const int64_t rank = U ? PyArray_DIM(U, 1) : 0;
    cdad_error err = {0};
    cdad_status status;
    cdad_py_lock_take(self->lock);
    Py_BEGIN_ALLOW_THREADS
    status = confine ? cdad_optimizer_confine(opt, name, cdad_py_data(U), rank, &err)
                     : cdad_optimizer_protect(opt, name, frozen, cdad_py_data(U), rank, &err);
    Py_END_ALLOW_THREADS
    int kept = 0;
    if (status == CDAD_OK)
        kept = PyDict_SetItemString(self->borrowed, name, U ? (PyObject *)U : Py_None);
    if (kept < 0) /* nobody keeps them alive: they go again, which cannot fail */
        (void)!cdad_optimizer_protect(opt, name, frozen, NULL, 0, &err);
    PyThread_release_lock(self->lock);
    Py_XDECREF(U);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *trainer_protect(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"param", "basis", "frozen", NULL};
    py_trainer *self = (py_trainer *)o;
    const char *name;
    PyObject *basis = Py_None;
    int frozen = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|Op:protect", names, &name, &basis, &frozen) ||
        !optimizer_of(self))
        return NULL;
    PyArrayObject *U = basis == Py_None ? NULL : directions_of(self, name, basis);
    return basis != Py_None && !U ? NULL : treat(self, name, U, 0, frozen);
}

static PyObject *trainer_confine(PyObject *o, PyObject *args) {
    py_trainer *self = (py_trainer *)o;
    const char *name;
    PyObject *directions;
    if (!PyArg_ParseTuple(args, "sO:confine", &name, &directions) || !optimizer_of(self))
        return NULL;
    PyArrayObject *V = directions_of(self, name, directions);
    return V ? treat(self, name, V, 1, 0) : NULL;
}

/* A block of the trainer: of weights or their average, or a moment. */
typedef struct trainer_block {
    float *floats; /* in the layout of the parameters, or NULL */
    cdad_moment *moment;
} trainer_block;

/* 0, or -1 with an exception. */
static int find_block(const py_trainer *self, PyObject *arg, trainer_block *b) {
    cdad_optimizer *opt = optimizer_of(self);
    const char *name = opt ? PyUnicode_AsUTF8(arg) : NULL;
    *b = (trainer_block){0};
    if (!name)
        return -1;
    b->moment = strcmp(name, "m") == 0 ? &opt->m : strcmp(name, "v") == 0 ? &opt->v : NULL;
    b->floats = strcmp(name, "ema") == 0 ? opt->ema : strcmp(name, "weights") == 0 ? self->params->params->values : NULL;
    if (b->moment || b->floats)
        return 0;
    PyErr_Format(PyExc_ValueError, "there is no block '%s' ('weights', 'm', 'v', or 'ema' where ema_decay > 0)", name);
    return -1;
}

static const int moment_types[] = {[CDAD_MOMENT_FLOAT32] = NPY_FLOAT32, [CDAD_MOMENT_BFLOAT16] = NPY_UINT16, [CDAD_MOMENT_8BIT] = NPY_UINT8};

/* Elements of an array that holds a moment. */
static npy_intp moment_length(const py_trainer *self, cdad_moment_format format) {
    const int64_t total = self->params->params->total;
    return (npy_intp)(format == CDAD_MOMENT_8BIT ? cdad_moment_bytes(self->params->params, format) : total);
}

static PyObject *get_block(PyObject *o, PyObject *arg) {
    const py_trainer *self = (py_trainer *)o;
    trainer_block b;
    if (find_block(self, arg, &b) < 0)
        return NULL;
    const cdad_moment_format format = b.moment ? b.moment->format : CDAD_MOMENT_FLOAT32;
    void *const data = b.moment ? b.moment->data : b.floats;
    npy_intp n = moment_length(self, format);
    const cdad_shape shape = cdad_shape_make(1, (int64_t)n);
    if (device_of(self))
        return cdad_py_download(device_of(self), &shape, moment_types[format], data, 0);
    PyObject *a = PyArray_SimpleNewFromData(1, &n, moment_types[format], data);
    if (a && PyArray_SetBaseObject((PyArrayObject *)a, Py_NewRef(o)) < 0)
        Py_CLEAR(a);
    return a;
}

/* The way in which an array holds a moment. */
static cdad_moment_format format_of(PyObject *values) {
    const int type = PyArray_Check(values) ? PyArray_TYPE((PyArrayObject *)values) : NPY_FLOAT32;
    return type == NPY_UINT8 ? CDAD_MOMENT_8BIT : type == NPY_UINT16 ? CDAD_MOMENT_BFLOAT16 : CDAD_MOMENT_FLOAT32;
}

static PyObject *set_block(PyObject *o, PyObject *args) {
    py_trainer *self = (py_trainer *)o;
    PyObject *name, *values;
    trainer_block b;
    if (!PyArg_ParseTuple(args, "UO:set_block", &name, &values) || find_block(self, name, &b) < 0)
        return NULL;
    const cdad_moment_format format = b.moment ? format_of(values) : CDAD_MOMENT_FLOAT32;
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(values, moment_types[format], 1, 1, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    if (!a)
        return NULL;
    cdad_error err = {0};
    cdad_status status = CDAD_OK;
    const npy_intp n = moment_length(self, format);
    void *const data = b.moment ? b.moment->data : b.floats;
    if (PyArray_SIZE(a) != n)
        status = cdad_fail(&err, CDAD_SHAPE, "a block of %lld elements is wanted, not %lld", (long long)n,
                           (long long)PyArray_SIZE(a));
    cdad_py_lock_take(self->lock);
    if (status == CDAD_OK && PyArray_DATA(a) != data)
        status = b.moment ? cdad_moment_set(b.moment, format, PyArray_DATA(a), &err)
                          : cdad_device_upload(device_of(self), data, PyArray_DATA(a), (int64_t)PyArray_NBYTES(a), &err);
    PyThread_release_lock(self->lock);
    Py_DECREF(a);
    return status == CDAD_OK ? Py_NewRef(Py_None) : cdad_py_raise(&err);
}

int cdad_py_is_trainer(PyObject *o) { return Py_TYPE(o) == (PyTypeObject *)trainer_type; }

const float *cdad_py_trained_weights(PyObject *o, const cdad_py_params *of) {
    const py_trainer *self = (py_trainer *)o;
    const cdad_optimizer *opt = optimizer_of(self);
    if (!opt)
        return NULL;
    if (self->params == of)
        return opt->ema ? opt->ema : of->params->values;
    PyErr_SetString(PyExc_ValueError, "the trainer trains other parameters");
    return NULL;
}

/* The two counters of the optimiser, by the closure of their getset entry. */
static int64_t *counter(PyObject *o, const void *which) {
    cdad_optimizer *opt = optimizer_of((py_trainer *)o);
    return !opt ? NULL : which ? &opt->age : &opt->step;
}

static PyObject *trainer_get_counter(PyObject *o, void *which) {
    const int64_t *n = counter(o, which);
    return n ? PyLong_FromLongLong(*n) : NULL;
}

static int trainer_set_counter(PyObject *o, PyObject *value, void *which) {
    const long long n = value ? PyLong_AsLongLong(value) : -1;
    if (n < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a counter is an integer >= 0");
        return -1;
    }
    int64_t *at = counter(o, which);
    if (!at)
        return -1;
    *at = n;
    return 0;
}

static PyObject *trainer_reset(PyObject *o, PyObject *unused) {
    (void)unused;
    py_trainer *self = (py_trainer *)o;
    cdad_optimizer *opt = optimizer_of(self);
    if (!opt)
        return NULL;
    cdad_error err = {0};
    cdad_py_lock_take(self->lock);
    const cdad_status status = cdad_optimizer_reset(opt, &err);
    PyThread_release_lock(self->lock);
    return status == CDAD_OK ? Py_NewRef(Py_None) : cdad_py_raise(&err);
}

static PyObject *trainer_memory(PyObject *o, void *unused) {
    (void)unused;
    const py_trainer *self = (py_trainer *)o;
    const cdad_trainer *t = self->trainer;
    const cdad_optimizer *opt = cdad_trainer_optimizer(t);
    const cdad_params *params = self->params->params;
    const long long block = (long long)params->total * (long long)sizeof(float);
    const cdad_context ctx = cdad_py_context(device_of(self));
    int64_t scratch = 0;
    cdad_error err = {0};
    if (opt && cdad_optimizer_scratch(opt, &ctx, &scratch, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L}", "arena", (long long)cdad_trainer_arena_bytes(t), "scratch",
                         (long long)(cdad_trainer_scratch_bytes(t) + scratch), "parameters", block, "gradients",
                         opt && opt->grads ? block : 0LL, "optimizer",
                         !opt ? 0LL
                              : block * (opt->ema != NULL) + (long long)(cdad_moment_bytes(params, opt->m.format) +
                                                                         cdad_moment_bytes(params, opt->v.format)));
}

static PyObject *trainer_flops(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(cdad_trainer_flops(((py_trainer *)o)->trainer));
}

static PyMethodDef trainer_methods[] = {
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS,
     "step($self, latent, image, perturbed, context=None, lr_scale=1.0)\n--\n\nOne training step; returns (loss, "
     "L_CDM, L_amn, gradient norm). The GIL is released. TrainingError where something is not finite: weights are "
     "then as before, unless the message says that a part was updated (gradients that are neither clipped nor accumulated "
     "are used as they come)."},
    {"gradients", (PyCFunction)(void (*)(void))trainer_gradients, METH_VARARGS | METH_KEYWORDS,
     "gradients($self, latent, image, perturbed, noise, timesteps, context=None)\n--\n\n(loss, L_CDM, L_amn, "
     "{name: gradient}) without an update."},
    {"magnitudes", (PyCFunction)(void (*)(void))trainer_magnitudes, METH_VARARGS | METH_KEYWORDS,
     "magnitudes($self, sums, latent, image, perturbed, noise, timesteps, context=None, squares=False)\n--\n\nAdds the "
     "absolute values of the objective's gradient, or their squares, to `sums`, a block as block('weights') gives; "
     "returns the objective. Wants a trainer that neither clips nor accumulates; one whose optimizer is None needs the least "
     "memory."},
    {"penalize", (PyCFunction)(void (*)(void))trainer_penalize, METH_VARARGS | METH_KEYWORDS,
     "penalize($self, importance=None, anchor=None, strength=1.0)\n--\n\nAdds the gradient of strength/2 * "
     "sum(importance * (weights - anchor)**2) to each step's; the blocks are borrowed. None ends it."},
    {"follow", trainer_follow, METH_O,
     "follow($self, path, /)\n--\n\nSubtracts gradient times change of the weights from the block `path` at each step "
     "(SI's path integral); the gradient is the loss's, without penalty and clipping. None ends it."},
    {"teach", (PyCFunction)(void (*)(void))trainer_teach, METH_VARARGS | METH_KEYWORDS,
     "teach($self, weights=None, strength=1.0)\n--\n\nAdds strength * mse(prediction, what the model predicts with the "
     "block `weights`) to the loss of each step, of a trainer made with distill=True. None ends it."},
    {"protect", (PyCFunction)(void (*)(void))trainer_protect, METH_VARARGS | METH_KEYWORDS,
     "protect($self, param, basis=None, frozen=False)\n--\n\nProtects a weight's old features by their orthonormal "
     "basis [d, rank], or freezes the parameter, or (neither) frees it."},
    {"confine", trainer_confine, METH_VARARGS,
     "confine($self, param, directions, /)\n--\n\nUpdates of a weight go onto orthonormal directions [d, k] instead of all "
     "that a basis leaves free."},
    {"reset", trainer_reset, METH_NOARGS, "reset($self)\n--\n\nForgets the moments, as at the start of a task."},
    {"block", get_block, METH_O,
     "block($self, name, /)\n--\n\nA writable view (of a device a read-only copy) of the 'weights', of the moments 'm' "
     "and 'v', or of the moving average 'ema'. Where moments is \"bfloat16\", 'm' is its bits as uint16; where it is "
     "\"8bit\", both are uint8, each parameter's codes and blocks' largest, one after the other (csrc/optim/moments.h)."},
    {"set_block", set_block, METH_VARARGS,
     "set_block($self, name, values, /)\n--\n\nSets such a block; a moment from any of the three ways (float32, uint16, "
     "uint8) into the one in which it is kept."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef trainer_getset[] = {
    {"n_steps", trainer_get_counter, trainer_set_counter, "Finished steps; fixes the noise of the next.", NULL},
    {"age", trainer_get_counter, trainer_set_counter, "Steps since the moments were last forgotten.", (void *)1},
    {"memory_bytes", trainer_memory, NULL,
     "{arena, scratch, parameters, gradients, optimizer}: bytes, known before a step; gradients: where all are held at once; "
     "optimizer: moments and moving average.", NULL},
    {"flops", trainer_flops, NULL, "Operations of the products of a step, but for a teacher's and the projections'.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot trainer_slots[] = {
    {Py_tp_new, trainer_new},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_getset},
    {Py_tp_doc, "Trainer(params, config, batch, optimizer, seed, objective='loss', distill=False, accumulate=1, "
     "recompute=False)\n--\n\nTrains the denoiser on "
     "batches of one size. objective 'output': the squared norm of the prediction instead of the loss. optimizer None: "
     "for magnitudes() alone. accumulate: a step runs its batch in so many equal parts, whose gradients it adds up in one "
     "block. recompute: blocks run again in the backward pass, to the same bits, instead of keeping their activations."},
    {0, NULL}};
static PyType_Spec trainer_spec = {.name = "cdad._core.Trainer",
                                   .basicsize = sizeof(py_trainer),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = trainer_slots};

int cdad_py_add_train(PyObject *module) { return cdad_py_add_type(module, &trainer_spec, &trainer_type); }

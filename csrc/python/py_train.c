/* Trainer: training steps as single calls into the core. */
#include "python/py_trainer.h"
#include "python/config.h"

#include <string.h>

static PyObject *trainer_type;

static void trainer_dealloc(PyObject *o) {
    py_trainer *self = (py_trainer *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_trainer_free(self->trainer);
    for (int i = 0; i < CDAD_N_LENT; i++)
        cdad_device_free(self->params ? cdad_py_trainer_device(self) : NULL, self->mirrors[i]);
    Py_XDECREF(self->borrowed);
    Py_XDECREF(self->params);
    type->tp_free(o);
    Py_DECREF(type);
}

/* Who adds up the gradients of a batch's shards in a step. */
typedef struct adding {
    py_trainer *trainer;
    PyObject *all_reduce;
} adding;

/* cdad_sum_fn, of a step that runs without the GIL. */
static cdad_status add_up(void *arg, float *grads, int64_t n, cdad_error *err) {
    const adding *a = arg;
    py_trainer *self = a->trainer;
    cdad_device *device = cdad_py_trainer_device(self);
    const PyGILState_STATE gil = PyGILState_Ensure();
    const cdad_shape shape = cdad_shape_make(1, n);
    npy_intp length = (npy_intp)n;
    PyObject *owner = cdad_py_shared(cdad_trainer_optimizer(self->trainer)->gradients); /* the callee may keep the array */
    PyObject *block = !owner   ? NULL
                      : device ? cdad_py_device_array(owner, device, &shape, grads)
                               : PyArray_SimpleNewFromData(1, &length, NPY_FLOAT32, grads);
    if (block && !device && PyArray_SetBaseObject((PyArrayObject *)block, Py_NewRef(owner)) < 0)
        Py_CLEAR(block);
    Py_XDECREF(owner);
    PyObject *done = block ? PyObject_CallOneArg(a->all_reduce, block) : NULL;
    const int failed = !done;
    Py_XDECREF(done);
    Py_XDECREF(block);
    PyGILState_Release(gil);
    if (failed)
        return cdad_fail(err, CDAD_CANCELLED, "all_reduce failed"); /* its exception is set */
    return device ? device->order(device, CDAD_DEFAULT_STREAM, 0, err) : CDAD_OK;
}

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"params", "config",  "batch",      "optimizer", "seed",
                            "objective", "distill", "accumulate", "recompute", "share", NULL};
    PyObject *params, *config, *optimizer, *share = Py_None;
    long long n, accumulate = 1, shard = 0, shards = 1;
    unsigned long long seed;
    const char *objective = "loss";
    int distill = 0, recompute = 0;
    cdad_optimizer_config oc;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOLOK|spLpO:Trainer", names, &params, &config, &n, &optimizer,
                                     &seed, &objective, &distill, &accumulate, &recompute, &share))
        return NULL;
    if (share != Py_None && (!PyTuple_Check(share) || !PyArg_ParseTuple(share, "LL:share", &shard, &shards)))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "share is (rank, world_size) or None");
    if (shards < 1)
        return PyErr_Format(PyExc_ValueError, "world_size is %lld, 1 or more is wanted", shards);
    const int is_output = strcmp(objective, "output") == 0;
    if (!is_output && strcmp(objective, "loss") != 0)
        return PyErr_Format(PyExc_ValueError, "objective is '%s'; 'loss' or 'output' is wanted", objective);
    cdad_py_params *store = cdad_py_params_check(NULL, params);
    py_trainer *self = store ? (py_trainer *)PyType_GenericAlloc(type, 0) : NULL;
    if (!self)
        return NULL;
    self->params = (cdad_py_params *)Py_NewRef(params);
    self->n = n;
    self->borrowed = PyDict_New();
    if (!self->borrowed || cdad_py_denoiser_config(config, &self->config) < 0 ||
        (optimizer != Py_None && cdad_py_optimizer_config(optimizer, &oc) < 0))
        goto fail;
    self->config.objective = is_output ? CDAD_OBJECTIVE_OUTPUT : CDAD_OBJECTIVE_LOSS;
    self->config.distills = distill;
    cdad_error err = {0};
    const cdad_context ctx = cdad_py_context(store->params->device);
    const cdad_batching batching = {n, accumulate, recompute, shard, shards};
    if (cdad_py_lock_take(&store->workspace->lock) < 0)
        goto fail;
    const cdad_status status = cdad_trainer_new(&self->trainer, &self->config, store->params, &batching,
                                                optimizer == Py_None ? NULL : &oc, seed, &ctx, &err);
    cdad_py_lock_give(&store->workspace->lock);
    if (status == CDAD_OK)
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
    static char *names[] = {"latent", "image", "perturbed", "context", "lr_scale", "all_reduce", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *latent, *image, *perturbed, *context = Py_None, *all_reduce = Py_None;
    double lr_scale = 1.0;
    step_arrays a;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|OdO:step", names, &latent, &image, &perturbed, &context,
                                     &lr_scale, &all_reduce) ||
        take_arrays(self, latent, image, perturbed, context, &a) < 0)
        return NULL;
    cdad_error err = {0};
    cdad_step_result r;
    cdad_status status;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0) {
        release_arrays(&a);
        return NULL;
    }
    const cdad_context ctx = cdad_py_context(cdad_py_trainer_device(self));
    adding sum = {.trainer = self, .all_reduce = all_reduce};
    cdad_trainer_share(self->trainer, all_reduce == Py_None ? NULL : add_up, &sum);
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_step(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                               cdad_py_data(a.perturbed), cdad_py_data(a.context), lr_scale, &r, &err);
    Py_END_ALLOW_THREADS
    cdad_trainer_share(self->trainer, NULL, NULL);
    cdad_py_lock_give(&self->params->workspace->lock);
    release_arrays(&a);
    return status == CDAD_OK ? Py_BuildValue("dddd", r.loss, r.loss_cdm, r.loss_amn, r.grad_norm)
                             : cdad_py_raise(&err);
}

static PyObject *trainer_drawn(PyObject *o, PyObject *unused) {
    (void)unused;
    const py_trainer *self = (py_trainer *)o;
    const cdad_denoiser_config *c = &self->config;
    const cdad_shape z = cdad_shape_make(4, self->n, c->latent_h, c->latent_w, c->unet.in_channels);
    npy_intp n = (npy_intp)self->n;
    PyObject *timesteps = PyArray_SimpleNew(1, &n, NPY_INT64);
    if (!timesteps)
        return NULL;
    const float *noise;
    const int64_t *t;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0) {
        Py_DECREF(timesteps);
        return NULL;
    }
    cdad_trainer_drawn(self->trainer, &noise, &t);
    PyObject *noises = cdad_py_new_floats(&z, noise);
    memcpy(PyArray_DATA((PyArrayObject *)timesteps), t, (size_t)n * sizeof *t);
    cdad_py_lock_give(&self->params->workspace->lock);
    if (!noises)
        Py_CLEAR(timesteps);
    return noises ? Py_BuildValue("NN", noises, timesteps) : NULL;
}

/* {name: gradient} copied from the optimiser's block, of the model's parameters. */
static PyObject *gradient_dict(const py_trainer *self) {
    const cdad_params *p = self->params->params;
    const cdad_optimizer *opt = cdad_trainer_optimizer(self->trainer);
    PyObject *dict = PyDict_New();
    for (int64_t i = 0; dict && i < p->n; i++) {
        const float *gradient = cdad_optimizer_gradient(opt, i);
        if (!gradient)
            continue;
        PyObject *a = cdad_py_download(cdad_py_trainer_device(self), &p->items[i].shape, NPY_FLOAT32, gradient, 1);
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
        d->t = cdad_py_integers(timesteps, self->n, "timesteps");
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
    PyObject *grads = NULL;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        goto done;
    const cdad_context ctx = cdad_py_context(cdad_py_trainer_device(self));
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_gradients(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                                    cdad_py_data(a.perturbed), cdad_py_data(a.context), cdad_py_data(d.noise),
                                    PyArray_DATA(d.t), &r, &err);
    Py_END_ALLOW_THREADS
    grads = status == CDAD_OK ? gradient_dict(self) : cdad_py_raise(&err);
    cdad_py_lock_give(&self->params->workspace->lock);
done:
    release_draws(&d);
    release_arrays(&a);
    return grads ? Py_BuildValue("dddN", r.loss, r.loss_cdm, r.loss_amn, grads) : NULL;
}

static PyObject *trainer_magnitudes(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"latent", "image", "perturbed", "noise", "timesteps", "context", "squares", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *latent, *image, *perturbed, *noise, *timesteps, *context = Py_None;
    int squares = 0;
    step_arrays a;
    given_draws d;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOO|Op:magnitudes", names, &latent, &image, &perturbed, &noise,
                                     &timesteps, &context, &squares) ||
        take_batch(self, latent, image, perturbed, context, noise, timesteps, &a, &d) < 0)
        return NULL;
    cdad_error err = {0};
    cdad_step_result r;
    cdad_status status;
    PyObject *objective = NULL;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        goto done;
    const cdad_context ctx = cdad_py_context(cdad_py_trainer_device(self));
    Py_BEGIN_ALLOW_THREADS
    status = cdad_trainer_magnitudes(self->trainer, &ctx, cdad_py_data(a.latent), cdad_py_data(a.image),
                                     cdad_py_data(a.perturbed), cdad_py_data(a.context), cdad_py_data(d.noise),
                                     PyArray_DATA(d.t), squares, &r, &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->params->workspace->lock);
    objective = status == CDAD_OK ? PyFloat_FromDouble(r.loss) : cdad_py_raise(&err);
done:
    release_draws(&d);
    release_arrays(&a);
    return objective;
}

int cdad_py_is_trainer(PyObject *o) { return Py_TYPE(o) == (PyTypeObject *)trainer_type; }

const float *cdad_py_trained_weights(PyObject *o, const cdad_py_params *of) {
    const py_trainer *self = (py_trainer *)o;
    const cdad_optimizer *opt = cdad_py_trainer_optimizer(self);
    if (!opt)
        return NULL;
    if (self->params == of)
        return opt->ema ? opt->ema : of->params->values;
    PyErr_SetString(PyExc_ValueError, "the trainer trains other parameters");
    return NULL;
}

/* The two counters of the optimiser, by the closure of their getset entry. */
static int64_t *counter(PyObject *o, const void *which) {
    cdad_optimizer *opt = cdad_py_trainer_optimizer((py_trainer *)o);
    return !opt ? NULL : which ? &opt->age : &opt->step;
}

/* So many steps' random numbers are counted within 64 bits. */
#define MOST_STEPS (INT64_C(1) << 32)

static PyObject *trainer_get_counter(PyObject *o, void *which) {
    const int64_t *n = counter(o, which);
    return n ? PyLong_FromLongLong(*n) : NULL;
}

static int trainer_set_counter(PyObject *o, PyObject *value, void *which) {
    const long long n = value ? PyLong_AsLongLong(value) : -1;
    if (n < 0 || n > MOST_STEPS) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "a counter is an integer of 0 to %lld", (long long)MOST_STEPS);
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
    cdad_optimizer *opt = cdad_py_trainer_optimizer(self);
    if (!opt || cdad_py_lock_take(&self->params->workspace->lock) < 0)
        return NULL;
    cdad_optimizer_reset(opt);
    const cdad_params *const p = self->params->params;
    int failed = 0;
    for (int64_t i = 0; i < p->n && !failed; i++) /* directions that were lent; blocks stay */
        failed = PyDict_GetItemString(self->borrowed, p->items[i].name) && PyDict_DelItemString(self->borrowed, p->items[i].name) < 0;
    cdad_py_lock_give(&self->params->workspace->lock);
    return failed ? NULL : Py_NewRef(Py_None);
}

typedef PyObject *(*ask_fn)(const py_trainer *self);

/* What `ask` says of a step of what moves now. */
static PyObject *ask_planned(PyObject *o, ask_fn ask) {
    const py_trainer *self = (py_trainer *)o;
    cdad_py_lock *const lock = &self->params->workspace->lock;
    const cdad_context ctx = cdad_py_context(cdad_py_trainer_device(self));
    cdad_error err = {0};
    if (cdad_py_lock_is_mine(lock)) /* within a step, which has planned it */
        return ask(self);
    if (cdad_py_lock_take(lock) < 0)
        return NULL;
    PyObject *told = cdad_trainer_prepare(self->trainer, &ctx, &err) == CDAD_OK ? ask(self) : cdad_py_raise(&err);
    cdad_py_lock_give(lock);
    return told;
}

static PyObject *memory_of(const py_trainer *self) {
    const cdad_trainer *t = self->trainer;
    const cdad_optimizer *opt = cdad_trainer_optimizer(t);
    const long long block = (long long)self->params->params->total * (long long)sizeof(float);
    const cdad_context ctx = cdad_py_context(cdad_py_trainer_device(self));
    int64_t scratch = 0;
    cdad_error err = {0};
    if (opt && cdad_optimizer_scratch(opt, &ctx, &scratch, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:L}", "workspace", (long long)cdad_trainer_workspace_bytes(t), "update",
                         (long long)(cdad_trainer_taught_bytes(t) + scratch), "parameters", block, "gradients",
                         (long long)cdad_trainer_gradient_bytes(t), "moments",
                         opt ? (long long)cdad_optimizer_moment_bytes(opt) : 0LL, "average", opt && opt->ema ? block : 0LL);
}

static PyObject *arena_of(const py_trainer *self) { return PyLong_FromLongLong((long long)cdad_trainer_arena_bytes(self->trainer)); }
static PyObject *flops_of(const py_trainer *self) { return PyFloat_FromDouble(cdad_trainer_flops(self->trainer)); }

static PyObject *trainer_memory(PyObject *o, void *unused) {
    (void)unused;
    return ask_planned(o, memory_of);
}

static PyObject *trainer_arena(PyObject *o, void *unused) {
    (void)unused;
    return ask_planned(o, arena_of);
}

static PyObject *trainer_flops(PyObject *o, void *unused) {
    (void)unused;
    return ask_planned(o, flops_of);
}

static PyMethodDef trainer_methods[] = {
    {"step", (PyCFunction)(void (*)(void))trainer_step, METH_VARARGS | METH_KEYWORDS,
     "step($self, latent, image, perturbed, context=None, lr_scale=1.0, all_reduce=None)\n--\n\nOne training step; returns (loss, "
     "L_CDM, L_amn, gradient norm). The GIL is released. TrainingError where something is not finite: weights are "
     "then as before, unless the message says that a part was updated (gradients that are neither clipped nor accumulated "
     "are used as they come). all_reduce(block), of a trainer with `share`: adds up the float32 gradients of what moves over the "
     "processes, in place, in coordinates where they are made so: an array, or on a device a DeviceArray, whose sum is there when it returns or queued on the default stream. "
     "It may not use the trainer, nor what runs in its parameters' workspace."},
    {"drawn", trainer_drawn, METH_NOARGS,
     "drawn($self, /)\n--\n\nWhat the last step drew, as gradients() takes it: noise float32 [N,h,w,c] and timesteps int64 [N]; zeros "
     "before the first step."},
    {"gradients", (PyCFunction)(void (*)(void))trainer_gradients, METH_VARARGS | METH_KEYWORDS,
     "gradients($self, latent, image, perturbed, noise, timesteps, context=None)\n--\n\n(loss, L_CDM, L_amn, "
     "{name: gradient}) without an update."},
    {"magnitudes", (PyCFunction)(void (*)(void))trainer_magnitudes, METH_VARARGS | METH_KEYWORDS,
     "magnitudes($self, latent, image, perturbed, noise, timesteps, context=None, squares=False)\n--\n\nAdds the "
     "absolute values of the objective's gradient, or their squares, to the block 'sums', zeros at first; "
     "returns the objective. Wants a trainer that neither clips nor accumulates nor shares; one whose optimizer is None needs the least "
     "memory."},
    {"penalize", (PyCFunction)(void (*)(void))cdad_py_trainer_penalize, METH_VARARGS | METH_KEYWORDS,
     "penalize($self, importance=None, anchor=None, strength=1.0)\n--\n\nAdds the gradient of strength/2 * "
     "sum(importance * (weights - anchor)**2) to each step's; the blocks are borrowed. None ends it."},
    {"tether", (PyCFunction)(void (*)(void))cdad_py_trainer_tether, METH_VARARGS | METH_KEYWORDS,
     "tether($self, anchor=None, rate=1.0, others={})\n--\n\nDraws what moves back to the block anchor, which is borrowed, after each "
     "step's update: by lr * rate / (1 + lr * rate) of the way; others {param: rate}. None ends it."},
    {"follow", cdad_py_trainer_follow, METH_O,
     "follow($self, on, /)\n--\n\nSubtracts gradient times change of the weights from the block 'path' at each step from now on, zeros "
     "at first (SI's path integral); the gradient is the loss's, without penalty and clipping. False ends it, and the block goes."},
    {"teach", (PyCFunction)(void (*)(void))cdad_py_trainer_teach, METH_VARARGS | METH_KEYWORDS,
     "teach($self, weights=None, strength=1.0)\n--\n\nAdds strength * mse(prediction, what the model predicts with the "
     "block `weights`) to the loss of each step, of a trainer made with distill=True. None ends it."},
    {"protect", (PyCFunction)(void (*)(void))cdad_py_trainer_protect, METH_VARARGS | METH_KEYWORDS,
     "protect($self, param, basis=None, frozen=False)\n--\n\nProtects a weight's old features by their orthonormal "
     "basis [d, rank], or freezes the parameter, or (neither) frees it."},
    {"confine", cdad_py_trainer_confine, METH_VARARGS,
     "confine($self, param, directions, /)\n--\n\nUpdates of a weight go onto orthonormal directions [k, d] instead of all "
     "that a basis leaves free."},
    {"reset", trainer_reset, METH_NOARGS, "reset($self)\n--\n\nForgets moments and protections, as at the end of a task, and "
     "gives back the memory that only steps need; arrays that show it stay, and are no longer used."},
    {"block", cdad_py_trainer_block, METH_O,
     "block($self, name, /)\n--\n\nA writable view (of a device a read-only copy) of the 'weights', of the moments 'm' "
     "and 'v' of what moves now (of a confined weight its coordinates, of what is frozen nothing; until reset(), or until the "
     "step after another protection), of the moving average 'ema', of the 'path' that follow() adds up, or of the 'sums' of "
     "magnitudes(). Where moments is \"bfloat16\", 'm' is its bits as uint16; where it is "
     "\"8bit\", both are uint8, each parameter's codes and blocks' largest, one after the other (csrc/optim/moments.h)."},
    {"set_block", cdad_py_trainer_set_block, METH_VARARGS,
     "set_block($self, name, values, /)\n--\n\nSets such a block; a moment from any of the three ways (float32, uint16, "
     "uint8) into the one in which it is kept."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef trainer_getset[] = {
    {"n_steps", trainer_get_counter, trainer_set_counter, "Finished steps; fixes the noise of the next.", NULL},
    {"age", trainer_get_counter, trainer_set_counter, "Steps since the moments were last forgotten.", (void *)1},
    {"memory_bytes", trainer_memory, NULL,
     "{workspace, update, parameters, gradients, moments, average}: bytes, known before a step; workspace: of the parameters', arena and "
     "kernels' scratch; update: what projections work in, and a teacher's prediction; gradients: where all are held at once; "
     "moments: with what is protected now. Moments, and gradients where steps hold them, take memory from the "
     "first step on until reset().", NULL},
    {"arena_bytes", trainer_arena, NULL, "Bytes of a step's activations, and of their gradients, at once.", NULL},
    {"flops", trainer_flops, NULL, "Operations of the products of a step, but for a teacher's.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot trainer_slots[] = {
    {Py_tp_new, trainer_new},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_getset},
    {Py_tp_doc, "Trainer(params, config, batch, optimizer, seed, objective='loss', distill=False, accumulate=1, "
     "recompute=False, share=None)\n--\n\nTrains the denoiser on "
     "batches of one size. objective 'output': the squared norm of the prediction instead of the loss. optimizer None: "
     "for magnitudes() alone. accumulate: a step runs its batch in so many equal parts, whose gradients it adds up in one "
     "block. recompute: blocks run again in the backward pass, to the same bits, instead of keeping their activations. "
     "share (rank, world_size): the batch is one of world_size equal parts of a step's; gradients() are then this part's of the mean."},
    {0, NULL}};
static PyType_Spec trainer_spec = {.name = "cdad._core.Trainer",
                                   .basicsize = sizeof(py_trainer),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = trainer_slots};

int cdad_py_add_train(PyObject *module) { return cdad_py_add_type(module, &trainer_spec, &trainer_type); }

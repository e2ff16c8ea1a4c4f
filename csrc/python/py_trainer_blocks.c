/* The blocks in the layout of the parameters that a trainer borrows, shows and sets, and its bases. */
#include "python/py_trainer.h"

#include <math.h>
#include <string.h>

/* What the core is given for a borrowed block of the host, or NULL: on a device, a copy there. */
static cdad_status lend(py_trainer *self, int which, float *block, float **lent, cdad_error *err) {
    const int64_t bytes = self->params->params->total * (int64_t)sizeof(float);
    *lent = block;
    if (!cdad_py_trainer_device(self))
        return CDAD_OK;
    if (!block) {
        cdad_device_free(cdad_py_trainer_device(self), self->mirrors[which]);
        self->mirrors[which] = NULL;
        return CDAD_OK;
    }
    CDAD_TRY(cdad_device_mirror(cdad_py_trainer_device(self), (void **)&self->mirrors[which], block, bytes, err));
    *lent = self->mirrors[which];
    return CDAD_OK;
}

cdad_optimizer *cdad_py_trainer_optimizer(const py_trainer *self) {
    cdad_optimizer *opt = cdad_trainer_optimizer(self->trainer);
    if (!opt)
        PyErr_SetString(PyExc_ValueError, "this trainer has no optimizer");
    return opt;
}

/* `o` itself as a block in the layout of the parameters, which the core borrows, or NULL with an exception. */
static float *take_block(const py_trainer *self, PyObject *o, const char *what) {
    if (!PyArray_Check(o) || PyArray_TYPE((PyArrayObject *)o) != NPY_FLOAT32 ||
        !PyArray_CHKFLAGS((PyArrayObject *)o, NPY_ARRAY_CARRAY_RO) || !PyArray_ISNOTSWAPPED((PyArrayObject *)o)) {
        PyErr_Format(PyExc_TypeError, "%s: a contiguous array of float32 is wanted", what);
        return NULL;
    }
    const long long total = (long long)self->params->params->total;
    if (PyArray_NDIM((PyArrayObject *)o) != 1 || PyArray_DIM((PyArrayObject *)o, 0) != total) {
        PyErr_Format(PyExc_ValueError, "%s: a block of %lld elements is wanted, as block('weights') gives", what, total);
        return NULL;
    }
    return cdad_py_data((PyArrayObject *)o);
}

/* Keeps a borrowed block, or with NULL the old one no longer; a name with a blank is no parameter's. One of the trainer's own lives as
 * long as that, and an array on it would keep the trainer alive for good. */
static int keep_block(const py_trainer *self, const char *name, PyObject *o) {
    PyObject *owner = o;
    while (owner && PyArray_Check(owner))
        owner = PyArray_BASE((PyArrayObject *)owner);
    return PyDict_SetItemString(self->borrowed, name, o && owner != (PyObject *)self ? o : Py_None);
}

PyObject *cdad_py_trainer_penalize(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"importance", "anchor", "strength", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *importance = Py_None, *anchor = Py_None;
    double strength = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OOd:penalize", names, &importance, &anchor, &strength))
        return NULL;
    cdad_optimizer *opt = cdad_py_trainer_optimizer(self);
    const int none = importance == Py_None;
    float *const weight = opt && !none ? take_block(self, importance, "importance") : NULL;
    float *const to = weight ? take_block(self, anchor, "anchor") : NULL;
    if (!opt || (!none && !to))
        return NULL;
    if (!(strength >= 0))
        return PyErr_Format(PyExc_ValueError, "the strength of a penalty is at least 0");
    cdad_error err = {0};
    float *lent, *lent_anchor;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        return NULL;
    cdad_optimizer_penalize(opt, NULL, NULL, 0);
    const int kept = keep_block(self, "the importance", importance) == 0 && keep_block(self, "the anchor", anchor) == 0;
    cdad_status status = kept ? lend(self, CDAD_LENT_IMPORTANCE, weight, &lent, &err) : CDAD_OK;
    if (kept && status == CDAD_OK)
        status = lend(self, CDAD_LENT_ANCHOR, to, &lent_anchor, &err);
    if (kept && status == CDAD_OK)
        cdad_optimizer_penalize(opt, lent, lent_anchor, strength);
    cdad_py_lock_give(&self->params->workspace->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

/* The rates of a tether, [params->n], freed by PyMem_Free: `rate`, and of some parameters another; NULL with an exception. */
static double *tether_rates(const cdad_params *p, double rate, PyObject *others) {
    PyObject *key, *value;
    double *rates = PyMem_Calloc((size_t)p->n, sizeof *rates);
    if (!rates)
        return (double *)PyErr_NoMemory();
    for (int64_t i = 0; i < p->n; i++)
        rates[i] = rate;
    int fine = rate >= 0 && isfinite(rate);
    for (Py_ssize_t at = 0; fine && others && PyDict_Next(others, &at, &key, &value);) {
        const char *name = PyUnicode_AsUTF8(key);
        const int64_t i = name ? cdad_params_find(p, name) : -1;
        if (name && i < 0)
            PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
        if (i >= 0)
            rates[i] = PyFloat_AsDouble(value);
        if (PyErr_Occurred())
            break;
        fine = rates[i] >= 0 && isfinite(rates[i]);
    }
    if (!fine)
        PyErr_SetString(PyExc_ValueError, "the rate of a tether is at least 0, and finite");
    if (!PyErr_Occurred())
        return rates;
    PyMem_Free(rates);
    return NULL;
}

PyObject *cdad_py_trainer_tether(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"anchor", "rate", "others", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *anchor = Py_None, *others = NULL;
    double rate = 1.0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OdO!:tether", names, &anchor, &rate, &PyDict_Type, &others))
        return NULL;
    cdad_optimizer *opt = cdad_py_trainer_optimizer(self);
    float *const block = opt && anchor != Py_None ? take_block(self, anchor, "anchor") : NULL;
    double *const rates = opt && (block || anchor == Py_None) ? tether_rates(self->params->params, rate, others) : NULL;
    if (!rates)
        return NULL;
    cdad_error err = {0};
    cdad_status status = CDAD_OK;
    float *lent = NULL;
    int kept = cdad_py_lock_take(&self->params->workspace->lock) == 0;
    if (kept) {
        cdad_optimizer_tether(opt, NULL, NULL);
        kept = keep_block(self, "the tether", anchor) == 0;
        if (kept)
            status = lend(self, CDAD_LENT_TETHER, block, &lent, &err);
        if (kept && status == CDAD_OK)
            cdad_optimizer_tether(opt, lent, rates);
        cdad_py_lock_give(&self->params->workspace->lock);
    }
    PyMem_Free(rates);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

PyObject *cdad_py_trainer_follow(PyObject *o, PyObject *arg) {
    const py_trainer *self = (py_trainer *)o;
    cdad_optimizer *opt = cdad_py_trainer_optimizer(self);
    const int on = opt ? PyObject_IsTrue(arg) : -1;
    cdad_error err = {0};
    if (on < 0 || cdad_py_lock_take(&self->params->workspace->lock) < 0)
        return NULL;
    const cdad_status status = cdad_optimizer_follow(opt, on, &err);
    cdad_py_lock_give(&self->params->workspace->lock);
    return status == CDAD_OK ? Py_NewRef(Py_None) : cdad_py_raise(&err);
}

PyObject *cdad_py_trainer_teach(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"weights", "strength", NULL};
    py_trainer *self = (py_trainer *)o;
    PyObject *weights = Py_None;
    double strength = 1.0;
    cdad_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|Od:teach", names, &weights, &strength))
        return NULL;
    float *const block = weights == Py_None ? NULL : take_block(self, weights, "weights");
    if (weights != Py_None && !block)
        return NULL;
    if (!(strength >= 0))
        return PyErr_Format(PyExc_ValueError, "the strength of a teacher is at least 0");
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0)
        return NULL;
    cdad_status status = cdad_trainer_teach(self->trainer, NULL, 0, &err);
    const int kept = keep_block(self, "the teacher", weights) == 0;
    float *lent;
    if (status == CDAD_OK && kept)
        status = lend(self, CDAD_LENT_TEACHER, block, &lent, &err);
    if (status == CDAD_OK && kept)
        status = cdad_trainer_teach(self->trainer, lent, strength, &err);
    cdad_py_lock_give(&self->params->workspace->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept ? Py_NewRef(Py_None) : NULL;
}

/* Orthonormal directions of a parameter's rows, float32 [d,k], or [k,d] where each is a row; NULL with an exception. */
static PyArrayObject *directions_of(const py_trainer *self, const char *name, PyObject *o, int rows) {
    const cdad_params *p = self->params->params;
    const int64_t i = cdad_params_find(p, name);
    if (i < 0)
        return (PyArrayObject *)PyErr_Format(PyExc_ValueError, "the model has no parameter %s", name);
    PyArrayObject *U = cdad_py_floats_any(o, name);
    const long long d = (long long)(p->items[i].count / p->items[i].shape.dim[0]);
    if (U && (PyArray_NDIM(U) != 2 || PyArray_DIM(U, rows) != d)) {
        PyErr_Format(PyExc_ValueError, rows ? "the directions of %s are [rank, %lld]" : "the basis of %s is [%lld, rank]", name, d);
        Py_CLEAR(U);
    }
    return U;
}

/* What protect and confine do with directions, NULL or taken over, which live on as long as the optimiser uses them. */
static PyObject *treat(py_trainer *self, const char *name, PyArrayObject *U, int confine, int frozen) {
    cdad_optimizer *const opt = cdad_trainer_optimizer(self->trainer);
    const int64_t rank = U ? PyArray_DIM(U, !confine) : 0;
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0) {
        Py_XDECREF(U);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = confine ? cdad_optimizer_confine(opt, name, cdad_py_data(U), rank, &err)
                     : cdad_optimizer_protect(opt, name, frozen, cdad_py_data(U), rank, &err);
    Py_END_ALLOW_THREADS
    int kept = 0;
    if (status == CDAD_OK)
        kept = PyDict_SetItemString(self->borrowed, name, U ? (PyObject *)U : Py_None);
    if (kept < 0) /* nobody keeps them alive: they go again, which cannot fail */
        (void)!cdad_optimizer_protect(opt, name, frozen, NULL, 0, &err);
    cdad_py_lock_give(&self->params->workspace->lock);
    Py_XDECREF(U);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return kept < 0 ? NULL : Py_NewRef(Py_None);
}

PyObject *cdad_py_trainer_protect(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"param", "basis", "frozen", NULL};
    py_trainer *self = (py_trainer *)o;
    const char *name;
    PyObject *basis = Py_None;
    int frozen = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s|Op:protect", names, &name, &basis, &frozen) ||
        !cdad_py_trainer_optimizer(self))
        return NULL;
    PyArrayObject *U = basis == Py_None ? NULL : directions_of(self, name, basis, 0);
    return basis != Py_None && !U ? NULL : treat(self, name, U, 0, frozen);
}

PyObject *cdad_py_trainer_confine(PyObject *o, PyObject *args) {
    py_trainer *self = (py_trainer *)o;
    const char *name;
    PyObject *directions;
    if (!PyArg_ParseTuple(args, "sO:confine", &name, &directions) || !cdad_py_trainer_optimizer(self))
        return NULL;
    PyArrayObject *V = directions_of(self, name, directions, 1);
    return V ? treat(self, name, V, 1, 0) : NULL;
}

/* A block of the trainer: of weights or their average, or a moment, or what steps add up. */
typedef struct trainer_block {
    float *floats; /* in the layout of the parameters, or NULL */
    cdad_moment *moment;
    int is_path, is_sums; /* likewise; they come and go */
} trainer_block;

/* 0, or -1 with an exception. */
static int find_block(const py_trainer *self, PyObject *arg, trainer_block *b) {
    const char *name = PyUnicode_AsUTF8(arg);
    *b = (trainer_block){.is_sums = name && strcmp(name, "sums") == 0, .is_path = name && strcmp(name, "path") == 0};
    if (b->is_sums)
        return 0;
    cdad_optimizer *opt = name ? cdad_py_trainer_optimizer(self) : NULL;
    if (!opt)
        return -1;
    b->moment = strcmp(name, "m") == 0 ? &opt->m : strcmp(name, "v") == 0 ? &opt->v : NULL;
    b->floats = strcmp(name, "ema") == 0 ? opt->ema : strcmp(name, "weights") == 0 ? self->params->params->values : NULL;
    if (b->moment || b->floats || b->is_path)
        return 0;
    PyErr_Format(PyExc_ValueError, "there is no block '%s' ('weights', 'm', 'v', 'path', 'sums', or 'ema' where ema_decay > 0)", name);
    return -1;
}

static const int moment_types[] = {[CDAD_MOMENT_FLOAT32] = NPY_FLOAT32, [CDAD_MOMENT_BFLOAT16] = NPY_UINT16, [CDAD_MOMENT_8BIT] = NPY_UINT8};

/* Elements of an array that holds a block, a moment in this way. */
static npy_intp block_length(const py_trainer *self, const trainer_block *b, cdad_moment_format format) {
    static const int64_t element[] = {[CDAD_MOMENT_FLOAT32] = sizeof(float), [CDAD_MOMENT_BFLOAT16] = sizeof(uint16_t), [CDAD_MOMENT_8BIT] = 1};
    const cdad_moment *m = b->moment;
    return (npy_intp)(m ? cdad_moment_bytes(m->counts, m->n, format) / element[format] : self->params->params->total);
}

/* Where a block lies, and what holds it, or NULL: it stays as long as the trainer. A moment is there from now on. The lock has been
 * taken. */
static cdad_status reach_block(const py_trainer *self, const trainer_block *b, void **data, cdad_shared **memory, cdad_error *err) {
    cdad_optimizer *const opt = cdad_trainer_optimizer(self->trainer);
    if (b->moment)
        CDAD_TRY(cdad_optimizer_moments(opt, err));
    *memory = b->moment ? b->moment->memory : b->is_path ? opt->followed : b->is_sums ? cdad_trainer_sums(self->trainer) : NULL;
    CDAD_FAIL_IF(!*memory && !b->floats, err, CDAD_INVALID,
                 b->is_path ? "this trainer follows no path" : "this trainer has added up no magnitudes");
    *data = b->moment ? cdad_moment_data(b->moment) : *memory ? cdad_shared_data(*memory) : b->floats;
    return CDAD_OK;
}

/* An array on n elements that `memory`, or else the trainer, keeps alive; of a device, a copy. */
static PyObject *show_block(py_trainer *self, int type, npy_intp n, void *data, cdad_shared *memory) {
    const cdad_shape shape = cdad_shape_make(1, (int64_t)n);
    if (cdad_py_trainer_device(self))
        return cdad_py_download(cdad_py_trainer_device(self), &shape, type, data, 0);
    PyObject *owner = memory ? cdad_py_shared(memory) : Py_NewRef((PyObject *)self);
    PyObject *a = owner ? PyArray_SimpleNewFromData(1, &n, type, data) : NULL;
    if (a && PyArray_SetBaseObject((PyArrayObject *)a, Py_NewRef(owner)) < 0)
        Py_CLEAR(a);
    Py_XDECREF(owner);
    return a;
}

PyObject *cdad_py_trainer_block(PyObject *o, PyObject *arg) {
    py_trainer *self = (py_trainer *)o;
    trainer_block b;
    cdad_error err = {0};
    cdad_shared *memory = NULL;
    void *data;
    npy_intp n = 0;
    cdad_moment_format format = CDAD_MOMENT_FLOAT32;
    if (find_block(self, arg, &b) < 0)
        return NULL;
    /* Weights and average stay where they are. A signal's handler that saves within a step finds the step's moments. */
    const int takes = !b.floats && !cdad_py_lock_is_mine(&self->params->workspace->lock);
    if (takes && cdad_py_lock_take(&self->params->workspace->lock) < 0)
        return NULL;
    const cdad_status status = reach_block(self, &b, &data, &memory, &err);
    if (status == CDAD_OK) {
        if (b.moment)
            format = b.moment->format;
        if (memory)
            cdad_shared_hold(memory);
        n = block_length(self, &b, format);
    }
    if (takes)
        cdad_py_lock_give(&self->params->workspace->lock);
    PyObject *a = status == CDAD_OK ? show_block(self, moment_types[format], n, data, memory) : cdad_py_raise(&err);
    cdad_shared_drop(memory);
    return a;
}

/* The way in which an array holds a moment. */
static cdad_moment_format format_of(PyObject *values) {
    const int type = PyArray_Check(values) ? PyArray_TYPE((PyArrayObject *)values) : NPY_FLOAT32;
    return type == NPY_UINT8 ? CDAD_MOMENT_8BIT : type == NPY_UINT16 ? CDAD_MOMENT_BFLOAT16 : CDAD_MOMENT_FLOAT32;
}

PyObject *cdad_py_trainer_set_block(PyObject *o, PyObject *args) {
    py_trainer *self = (py_trainer *)o;
    PyObject *name, *values;
    trainer_block b;
    cdad_error err = {0};
    void *data;
    cdad_shared *memory;
    if (!PyArg_ParseTuple(args, "UO:set_block", &name, &values) || find_block(self, name, &b) < 0)
        return NULL;
    const cdad_moment_format format = b.moment ? format_of(values) : CDAD_MOMENT_FLOAT32;
    PyArrayObject *a = (PyArrayObject *)PyArray_FROMANY(values, moment_types[format], 1, 1, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    if (!a)
        return NULL;
    if (cdad_py_lock_take(&self->params->workspace->lock) < 0) {
        Py_DECREF(a);
        return NULL;
    }
    cdad_status status = reach_block(self, &b, &data, &memory, &err);
    const npy_intp n = status == CDAD_OK ? block_length(self, &b, format) : 0;
    if (status == CDAD_OK && PyArray_SIZE(a) != n)
        status = cdad_fail(&err, CDAD_SHAPE, "a block of %lld elements is wanted, not %lld", (long long)n,
                           (long long)PyArray_SIZE(a));
    if (status == CDAD_OK && PyArray_DATA(a) != data)
        status = b.moment ? cdad_moment_set(b.moment, format, PyArray_DATA(a), &err)
                          : cdad_device_upload(cdad_py_trainer_device(self), data, PyArray_DATA(a), (int64_t)PyArray_NBYTES(a), &err);
    cdad_py_lock_give(&self->params->workspace->lock);
    Py_DECREF(a);
    return status == CDAD_OK ? Py_NewRef(Py_None) : cdad_py_raise(&err);
}

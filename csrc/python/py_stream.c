/* Stream: the input features of one layer, and the basis made of them. */
#include "python/device_array.h"

#include <string.h>

#include "continual/stream.h"

static PyObject *stream_type;

static const char *const METHODS[] = {[CDAD_STREAM_EXACT] = "exact",
                                      [CDAD_STREAM_ISVD] = "isvd",
                                      [CDAD_STREAM_INCREMENTAL] = "incremental",
                                      [CDAD_STREAM_SKETCH] = "sketch",
                                      [CDAD_STREAM_AUTO] = "auto"};

int cdad_py_stream_method(const char *name) {
    for (int i = 0; i <= CDAD_STREAM_AUTO; i++)
        if (strcmp(name, METHODS[i]) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "method is '%s', expected 'auto', 'exact', 'incremental', 'sketch' or 'isvd'", name);
    return -1;
}

const char *cdad_py_stream_method_name(cdad_stream_method method) { return METHODS[method]; }

typedef struct py_stream {
    PyObject_HEAD
    cdad_stream *stream;
    cdad_py_lock lock; /* for `stream` */
} py_stream;

static PyObject *stream_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"d", "method", "gamma", "columns", "memory", "rank", NULL};
    const char *name = METHODS[CDAD_STREAM_EXACT];
    long long d, columns = 0, memory = 0, rank = 0;
    double gamma = 0.999;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "L|sdLLL:Stream", names, &d, &name, &gamma, &columns, &memory, &rank))
        return NULL;
    const int method = cdad_py_stream_method(name);
    if (method < 0)
        return NULL;
    const cdad_stream_hints hints = {.columns = columns, .memory = memory, .rank = rank};
    cdad_stream_plan plan;
    cdad_error err = {0};
    if (cdad_stream_plan_make(&plan, d, (cdad_stream_method)method, gamma, &hints, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    py_stream *self = (py_stream *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    cdad_py_lock_init(&self->lock);
    if (cdad_stream_open(&self->stream, &plan, &err) != CDAD_OK) {
        Py_DECREF(self);
        return cdad_py_raise(&err);
    }
    return (PyObject *)self;
}

static void stream_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    py_stream *self = (py_stream *)o;
    cdad_stream_free(self->stream);
    cdad_py_lock_destroy(&self->lock);
    type->tp_free(o);
    Py_DECREF(type);
}

/* A matrix whose dimension `axis` is the stream's width; NULL with an exception. */
static PyArrayObject *matrix(const py_stream *self, PyObject *o, int axis, const char *what,
                             const char *shape) {
    const long long d = cdad_stream_width(self->stream);
    PyArrayObject *a = cdad_py_floats_any(o, what);
    if (a && (PyArray_NDIM(a) != 2 || PyArray_DIM(a, axis) != d)) {
        PyObject *found = PyObject_GetAttrString((PyObject *)a, "shape");
        if (found)
            PyErr_Format(PyExc_ValueError, "%s has shape %R; %s with d = %lld is wanted", what, found, shape,
                         d);
        Py_XDECREF(found);
        Py_CLEAR(a);
    }
    return a;
}

static PyObject *add(py_stream *self, cdad_device *device, const float *X, int64_t rows) {
    const cdad_context ctx = cdad_py_context(device);
    const cdad_mat mat = {.data = X, .rs = cdad_stream_width(self->stream), .cs = 1};
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->lock) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_add(self->stream, &ctx, mat, rows, &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *stream_add(PyObject *o, PyObject *arg) {
    py_stream *self = (py_stream *)o;
    const cdad_stream_plan *plan = cdad_stream_planned(self->stream);
    PyObject *there = NULL, *done = NULL;
    if (cdad_py_as_device_array(arg, NULL, &there) < 0)
        return NULL;
    const cdad_py_array *a = (cdad_py_array *)there;
    if (a && cdad_stream_takes(plan, a->device)) {
        char found[CDAD_SHAPE_TEXT];
        if (a->shape.ndim == 2 && a->shape.dim[1] == plan->d)
            done = add(self, a->device, a->data, a->shape.dim[0]);
        else
            PyErr_Format(PyExc_ValueError, "features has shape %s; [rows, d] with d = %lld is wanted",
                         cdad_shape_text(&a->shape, found), (long long)plan->d);
    } else {
        PyArrayObject *X = matrix(self, there ? there : arg, 1, "features", "[rows, d]");
        done = X ? add(self, NULL, cdad_py_data(X), PyArray_DIM(X, 0)) : NULL;
        Py_XDECREF(X);
    }
    Py_XDECREF(there);
    return done;
}

static PyObject *stream_basis(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"old", NULL};
    py_stream *self = (py_stream *)o;
    PyObject *arg = Py_None;
    PyArrayObject *old = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:basis", names, &arg))
        return NULL;
    if (arg != Py_None) {
        old = matrix(self, arg, 0, "old", "[d, k]");
        if (!old)
            return NULL;
    }
    const cdad_context ctx = cdad_py_context(NULL);
    cdad_shape shape = {.ndim = 2, .dim = {cdad_stream_width(self->stream)}};
    float *U;
    double energy;
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->lock) < 0) {
        Py_XDECREF(old);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_settle(self->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_basis(self->stream, &ctx, cdad_py_data(old), old ? PyArray_DIM(old, 1) : 0, &U, &shape.dim[1],
                                   &energy, &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->lock);
    Py_XDECREF(old);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    PyObject *basis = cdad_py_taken_floats(&shape, U);
    return basis ? Py_BuildValue("(Nd)", basis, energy) : NULL;
}

static PyObject *stream_singular_values(PyObject *o, PyObject *unused) {
    (void)unused;
    py_stream *self = (py_stream *)o;
    const cdad_context ctx = cdad_py_context(NULL);
    cdad_shape shape = {.ndim = 1};
    float *values;
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->lock) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_settle(self->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_singular_values(self->stream, &ctx, &values, &shape.dim[0], &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return cdad_py_taken_floats(&shape, values);
}

static PyObject *stream_merge(PyObject *o, PyObject *arg) {
    py_stream *self = (py_stream *)o, *other = (py_stream *)arg;
    if (Py_TYPE(arg) != (PyTypeObject *)stream_type)
        return PyErr_Format(PyExc_TypeError, "a Stream is wanted, not %R", Py_TYPE(arg));
    if (self == other)
        return PyErr_Format(PyExc_ValueError, "a stream cannot be merged with itself");
    py_stream *first = self < other ? self : other, *second = self < other ? other : self;
    const cdad_context ctx = cdad_py_context(NULL);
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&first->lock) < 0) /* by address: merges in both directions do not wait for each other */
        return NULL;
    if (cdad_py_lock_take(&second->lock) < 0) {
        cdad_py_lock_give(&first->lock);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_settle(self->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_settle(other->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_merge(self->stream, &ctx, other->stream, &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&second->lock);
    cdad_py_lock_give(&first->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *stream_state(PyObject *o, PyObject *unused) {
    (void)unused;
    py_stream *self = (py_stream *)o;
    int64_t n;
    cdad_error err = {0};
    PyObject *array = NULL;
    if (cdad_py_lock_take(&self->lock) < 0)
        return NULL;
    cdad_status status = cdad_stream_settle(self->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_state_size(self->stream, &n, &err);
    if (status == CDAD_OK) {
        const npy_intp dim = (npy_intp)n;
        array = PyArray_SimpleNew(1, &dim, NPY_FLOAT64);
    }
    if (array) {
        double *state = PyArray_DATA((PyArrayObject *)array);
        Py_BEGIN_ALLOW_THREADS
        cdad_stream_state_get(self->stream, state);
        Py_END_ALLOW_THREADS
    }
    cdad_py_lock_give(&self->lock);
    return status == CDAD_OK ? array : cdad_py_raise(&err);
}

static PyObject *stream_load_state(PyObject *o, PyObject *arg) {
    py_stream *self = (py_stream *)o;
    if (!PyArray_Check(arg) || PyArray_TYPE((PyArrayObject *)arg) != NPY_FLOAT64)
        return PyErr_Format(PyExc_TypeError, "an array of float64 is wanted: what Stream.state() gave");
    PyArrayObject *state = (PyArrayObject *)PyArray_FROM_OTF(arg, NPY_FLOAT64, NPY_ARRAY_IN_ARRAY);
    if (!state)
        return NULL;
    cdad_error err = {0};
    cdad_status status;
    if (cdad_py_lock_take(&self->lock) < 0) {
        Py_DECREF(state);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_state_set(self->stream, PyArray_DATA(state), PyArray_SIZE(state), &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->lock);
    Py_DECREF(state);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *stream_get_d(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(cdad_stream_width(((py_stream *)o)->stream));
}

static PyObject *stream_get_rows(PyObject *o, void *unused) {
    (void)unused;
    py_stream *self = (py_stream *)o;
    if (cdad_py_lock_take(&self->lock) < 0)
        return NULL;
    const long long rows = cdad_stream_rows(self->stream);
    cdad_py_lock_give(&self->lock);
    return PyLong_FromLongLong(rows);
}

static const cdad_stream_plan *plan_of(PyObject *o) { return cdad_stream_planned(((py_stream *)o)->stream); }

static PyObject *stream_get_method(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(METHODS[plan_of(o)->method]);
}

static PyObject *stream_get_gamma(PyObject *o, void *unused) {
    (void)unused;
    return PyFloat_FromDouble(plan_of(o)->gamma);
}

static PyObject *stream_get_rank(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(plan_of(o)->rank);
}

static PyObject *stream_get_rounded(PyObject *o, void *unused) {
    (void)unused;
    static const char *const names[] = {[CDAD_GRAM_PLAIN] = NULL, [CDAD_GRAM_BFLOAT16] = "bfloat16", [CDAD_GRAM_BYTES] = "int7"};
    return Py_BuildValue("z", names[plan_of(o)->rounding]);
}

static PyObject *stream_get_bytes(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(plan_of(o)->bytes);
}

static PyObject *stream_get_energy(PyObject *o, void *unused) {
    (void)unused;
    py_stream *self = (py_stream *)o;
    cdad_error err = {0};
    if (cdad_py_lock_take(&self->lock) < 0)
        return NULL;
    const cdad_context ctx = cdad_py_context(NULL);
    cdad_stream_energy energy;
    cdad_status status;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_stream_settle(self->stream, &err);
    if (status == CDAD_OK)
        status = cdad_stream_energies(self->stream, &ctx, &energy, &err);
    Py_END_ALLOW_THREADS
    cdad_py_lock_give(&self->lock);
    if (status != CDAD_OK)
        return cdad_py_raise(&err);
    return Py_BuildValue("(ddd)", energy.total, energy.lost, energy.spectral);
}

static PyMethodDef stream_methods[] = {
    {"add", stream_add, METH_O,
     "add($self, features, /)\n--\n\nTakes in one block of feature vectors, float32 [rows, d]; those of a device "
     "'exact' and 'sketch' sum there. TrainingError names a NaN or infinity (of a device's none); the stream is then as it was."},
    {"basis", (PyCFunction)(void (*)(void))stream_basis, METH_VARARGS | METH_KEYWORDS,
     "basis($self, old=None)\n--\n\n(U, energy): U [d, k] keeps `old` [d, k_old] bit by bit and adds "
     "the fewest orthonormal directions with which it keeps at least gamma of the features' energy (Eq. 6); "
     "energy is the share that it keeps. 'sketch': as estimated, and no more than `rank` are added. ValueError: old is not orthonormal."},
    {"singular_values", stream_singular_values, METH_NOARGS,
     "singular_values($self)\n--\n\nOf all features together, float32 [min(rows, d)], descending; with "
     "'incremental' and 'sketch' of what they stand for, which may be fewer, with 'isvd' those kept from the last block."},
    {"merge", stream_merge, METH_O,
     "merge($self, other, /)\n--\n\nTakes in all that another stream of the same width and method holds ('sketch': and of "
     "the same rank; 'isvd': none)."},
    {"state", stream_state, METH_NOARGS, "state($self)\n--\n\nThe content, float64 [n], exact to the bit."},
    {"load_state", stream_load_state, METH_O,
     "load_state($self, state, /)\n--\n\nReplaces the content by another stream's state(), of the same d, "
     "method and rank."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef stream_getset[] = {
    {"d", stream_get_d, NULL, "Width of the feature vectors.", NULL},
    {"rows", stream_get_rows, NULL, "Feature vectors taken in so far.", NULL},
    {"method", stream_get_method, NULL, "'exact', 'incremental', 'sketch' or 'isvd'; never 'auto'.", NULL},
    {"gamma", stream_get_gamma, NULL, "Share of the energy that a basis keeps.", NULL},
    {"rank", stream_get_rank, NULL, "Directions of a basis at most: d but for a sketch.", NULL},
    {"rounded", stream_get_rounded, NULL,
     "What features are rounded to before they are multiplied: 'bfloat16', 'int7' (whole numbers of 7 bits) or None; by 'auto', where gamma,\n"
     "the number of features and the processor allow. 'sketch' has None, and rounds to 16 bits at random where d is 2048 or more, gamma\n"
     "0.999 or less, and the processor has AVX2 and no AVX-512.",
     NULL},
    {"bytes", stream_get_bytes, NULL, "Memory that is held at most, as planned.", NULL},
    {"energy", stream_get_energy, NULL,
     "(total, lost, spectral): the sum of squares of all features; how much of it the stream no longer holds, which is "
     "what a basis of all that is left misses at most; and how much of it in any one direction at most. 'exact' loses "
     "nothing; of a wide 'sketch' they take seconds; NaN with 'isvd', which does not know.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot stream_slots[] = {
    {Py_tp_new, stream_new},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_getset},
    {Py_tp_doc,
     "Stream(d, method='exact', gamma=0.999, columns=0, memory=0, rank=0)\n--\n\nThe input features of one layer over "
     "a task, taken in block by block in bounded memory. 'exact' equals one SVD of all of them; 'incremental' keeps a "
     "weighted basis U S and loses at most (1 - gamma)/4 of the energy; 'sketch' keeps products with random vectors, for "
     "a basis of at most `rank` directions (Nystrom's approximation, Tropp et al. 2017; energies are estimates), chosen to fit `memory` "
     "bytes or from d where 0; 'auto' is one of them "
     "by d, gamma and the number of feature vectors to come, `columns`, where known; 'isvd' is the iterative SVD of "
     "\"One-for-More\" (CVPR 2025) as published, each add() one block. ValueError: d not in 1..32768, gamma not in "
     "(0, 1], an unknown method, a negative hint."},
    {0, NULL}};
static PyType_Spec stream_spec = {.name = "cdad._core.Stream",
                                  .basicsize = sizeof(py_stream),
                                  .flags = Py_TPFLAGS_DEFAULT,
                                  .slots = stream_slots};

int cdad_py_add_stream(PyObject *module) { return cdad_py_add_type(module, &stream_spec, &stream_type); }

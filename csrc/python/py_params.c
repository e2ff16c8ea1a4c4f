/* Params: the parameters of a model, as named NumPy views of one block. */
#include "python/bindings.h"

#include <string.h>

static PyObject *params_type;

cdad_py_params *cdad_py_params_check(PyObject *module, PyObject *o) {
    (void)module;
    if (Py_TYPE(o) == (PyTypeObject *)params_type)
        return (cdad_py_params *)o;
    PyErr_Format(PyExc_TypeError, "a Params object is wanted, not %R", Py_TYPE(o));
    return NULL;
}

static void workspace_release(cdad_py_workspace *w) {
    if (!w || --w->stores > 0)
        return;
    cdad_workspace_clear(&w->memory);
    cdad_py_lock_destroy(&w->lock);
    PyMem_Free(w);
}

/* A new one, of one store; NULL with an exception. */
static cdad_py_workspace *workspace_new(cdad_device *device) {
    cdad_py_workspace *w = PyMem_Calloc(1, sizeof *w);
    if (!w) {
        PyErr_NoMemory();
        return NULL;
    }
    w->stores = 1;
    w->memory.device = device;
    cdad_py_lock_init(&w->lock);
    return w;
}

static PyObject *params_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"device", "beside", NULL};
    PyObject *name = Py_None, *beside = Py_None;
    cdad_py_params *other = NULL;
    cdad_device *device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:Params", names, &name, &beside) ||
        (beside != Py_None && !(other = cdad_py_params_check(NULL, beside))))
        return NULL;
    if (other && name == Py_None)
        device = other->params->device;
    else if (cdad_py_device(name, &device) < 0)
        return NULL;
    if (other && device != other->params->device)
        return PyErr_Format(PyExc_ValueError, "parameters beside others are on the same device");
    cdad_py_params *self = (cdad_py_params *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    cdad_error err = {0};
    if (cdad_params_new(&self->params, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        goto fail;
    }
    self->params->device = device;
    self->workspace = other ? other->workspace : workspace_new(device);
    if (!self->workspace)
        goto fail;
    self->workspace->stores += other != NULL;
    self->params->workspace = &self->workspace->memory;
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static void params_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    cdad_params_free(((cdad_py_params *)o)->params);
    workspace_release(((cdad_py_params *)o)->workspace);
    type->tp_free(o);
    Py_DECREF(type);
}

static PyObject *params_allocate(PyObject *o, PyObject *arg) {
    const unsigned long long seed = PyLong_AsUnsignedLongLong(arg);
    if (seed == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    cdad_error err = {0};
    if (cdad_params_allocate(((cdad_py_params *)o)->params, seed, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *params_shapes(PyObject *o, PyObject *unused) {
    (void)unused;
    const cdad_params *p = ((cdad_py_params *)o)->params;
    PyObject *dict = PyDict_New();
    for (int64_t i = 0; dict && i < p->n; i++) {
        PyObject *shape = cdad_py_shape_tuple(&p->items[i].shape);
        if (!shape || PyDict_SetItemString(dict, p->items[i].name, shape) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(shape);
    }
    return dict;
}

/* The number of an allocated parameter; -1 with an exception. */
static int64_t find_allocated(const cdad_params *p, PyObject *key) {
    const char *name = PyUnicode_AsUTF8(key);
    const int64_t i = name ? cdad_params_find(p, name) : -1;
    if (name && i < 0)
        PyErr_SetObject(PyExc_KeyError, key);
    if (i < 0 || p->values)
        return i;
    PyErr_SetString(PyExc_ValueError, "the parameters are not allocated yet");
    return -1;
}

/* On the host a writable view of one parameter, which keeps the store alive; of a device a copy. */
static PyObject *params_getitem(PyObject *o, PyObject *key) {
    const cdad_params *p = ((cdad_py_params *)o)->params;
    const int64_t i = find_allocated(p, key);
    if (i < 0)
        return NULL;
    if (p->device)
        return cdad_py_download(p->device, &p->items[i].shape, NPY_FLOAT32, p->values + p->items[i].offset, 0);
    npy_intp dims[CDAD_MAX_DIMS];
    for (int k = 0; k < p->items[i].shape.ndim; k++)
        dims[k] = (npy_intp)p->items[i].shape.dim[k];
    PyObject *a =
        PyArray_SimpleNewFromData(p->items[i].shape.ndim, dims, NPY_FLOAT32, p->values + p->items[i].offset);
    if (a && PyArray_SetBaseObject((PyArrayObject *)a, Py_NewRef(o)) < 0)
        Py_CLEAR(a);
    return a;
}

static int params_setitem(PyObject *o, PyObject *key, PyObject *value) {
    cdad_params *p = ((cdad_py_params *)o)->params;
    cdad_error err = {0};
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "a parameter cannot be deleted");
        return -1;
    }
    const int64_t i = find_allocated(p, key);
    PyObject *given = i < 0 ? NULL : PyArray_FROM_O(value);
    if (given && PyArray_TYPE((PyArrayObject *)given) == NPY_HALF) /* files of weights hold them */
        Py_SETREF(given, PyArray_FROM_OT(given, NPY_FLOAT32));
    PyArrayObject *a = given ? cdad_py_floats(given, &p->items[i].shape, p->items[i].name) : NULL;
    Py_XDECREF(given);
    if (!a)
        return -1;
    const cdad_status status = cdad_params_write(p, i, cdad_py_data(a), &err);
    Py_DECREF(a);
    if (status != CDAD_OK)
        cdad_py_raise(&err);
    return status == CDAD_OK ? 0 : -1;
}

static PyObject *params_device_array(PyObject *o, PyObject *key) {
    const cdad_params *p = ((cdad_py_params *)o)->params;
    const int64_t i = find_allocated(p, key);
    if (i < 0)
        return NULL;
    if (!p->device)
        return PyErr_Format(PyExc_ValueError, "the parameters are of the host: params[%R] is on their memory", key);
    return cdad_py_device_array(o, p->device, &p->items[i].shape, p->values + p->items[i].offset);
}

static PyObject *params_memory(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong((long long)((cdad_py_params *)o)->params->total * (long long)sizeof(float));
}

static PyObject *params_workspace(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong((long long)((cdad_py_params *)o)->workspace->memory.bytes);
}

static PyMethodDef params_methods[] = {
    {"allocate", params_allocate, METH_O,
     "allocate($self, seed, /)\n--\n\nAllocates and initialises all registered parameters; values depend on (seed, "
     "name, index) only."},
    {"device_array", params_device_array, METH_O,
     "device_array($self, name, /)\n--\n\nA parameter as a writable DeviceArray on its own memory. What others write into "
     "it counts for what is run after they gave the array back."},
    {"shapes", params_shapes, METH_NOARGS, "shapes($self)\n--\n\n{name: shape} in the order of registration."},
    {NULL, NULL, 0, NULL}};

static PyObject *params_device(PyObject *o, void *unused) {
    (void)unused;
    const cdad_device *device = ((cdad_py_params *)o)->params->device;
    return PyUnicode_FromString(device ? device->name : "cpu");
}

static PyGetSetDef params_getset[] = {
    {"device", params_device, NULL, "Where the parameters lie.", NULL},
    {"memory_bytes", params_memory, NULL, "Bytes of all parameters.", NULL},
    {"workspace_bytes", params_workspace, NULL,
     "Bytes of the memory in which its networks run, one at a time: what the largest of them takes.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot params_slots[] = {
    {Py_tp_new, params_new},
    {Py_tp_dealloc, params_dealloc},
    {Py_tp_methods, params_methods},
    {Py_tp_getset, params_getset},
    {Py_mp_subscript, params_getitem},
    {Py_mp_ass_subscript, params_setitem},
    {Py_tp_doc, "Params(device=None, beside=None)\n--\n\nThe parameters of a model: registered while networks are built, then "
                "allocated once, on the device (None: get_device()) on which the networks then run. params[name] = array "
                "sets one; params[name] is a writable float32 view on the CPU, a read-only copy elsewhere; conv weights are "
                "[O,R,S,C]. beside: other Params of the device, in whose memory the networks of these run too (workspace_bytes); "
                "of all networks of such Params one runs at a time."},
    {0, NULL}};
static PyType_Spec params_spec = {.name = "cdad._core.Params",
                                  .basicsize = sizeof(cdad_py_params),
                                  .flags = Py_TPFLAGS_DEFAULT,
                                  .slots = params_slots};

int cdad_py_add_params(PyObject *module) { return cdad_py_add_type(module, &params_spec, &params_type); }

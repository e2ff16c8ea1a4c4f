/* DeviceArray: float32 memory of a device. */
#include "python/device_array.h"

static PyObject *array_type;

static void memory_free(PyObject *capsule) {
    cdad_py_memory *m = PyCapsule_GetPointer(capsule, CDAD_PY_MEMORY);
    cdad_device_free(m->device, m->own);
    if (m->give_back) {
        Py_BEGIN_ALLOW_THREADS
        (void)!m->device->order(m->device, NULL, 1, NULL); /* what is queued may still use it */
        Py_END_ALLOW_THREADS
        m->give_back(m->lent);
    }
    PyMem_Free(m);
}

PyObject *cdad_py_memory_new(cdad_device *device, cdad_py_memory **m) {
    *m = PyMem_Calloc(1, sizeof **m);
    if (!*m)
        return PyErr_NoMemory();
    (*m)->device = device;
    PyObject *capsule = PyCapsule_New(*m, CDAD_PY_MEMORY, memory_free);
    if (!capsule)
        PyMem_Free(*m);
    return capsule;
}

int cdad_py_is_device_array(PyObject *o) { return Py_TYPE(o) == (PyTypeObject *)array_type; }

PyObject *cdad_py_device_array(PyObject *owner, cdad_device *device, const cdad_shape *shape, float *data) {
    cdad_py_array *a = (cdad_py_array *)PyType_GenericAlloc((PyTypeObject *)array_type, 0);
    if (!a)
        return NULL;
    a->owner = Py_NewRef(owner);
    a->device = device;
    a->shape = *shape;
    a->data = data;
    return (PyObject *)a;
}

/* With memory of its own, not yet written. */
static cdad_py_array *array_alloc(cdad_device *device, const cdad_shape *shape) {
    cdad_error err = {0};
    cdad_status status = cdad_shape_check(shape, &err);
    cdad_py_memory *m;
    PyObject *array = NULL, *owner = status == CDAD_OK ? cdad_py_memory_new(device, &m) : NULL;
    if (owner) {
        status = cdad_device_alloc(device, &m->own, cdad_shape_count(shape) * (int64_t)sizeof(float), &err);
        if (status == CDAD_OK)
            array = cdad_py_device_array(owner, device, shape, m->own);
        Py_DECREF(owner);
    }
    if (status != CDAD_OK)
        cdad_py_raise(&err);
    return (cdad_py_array *)array;
}

PyObject *cdad_py_device_copy(cdad_device *device, const cdad_shape *shape, const float *from) {
    cdad_py_array *a = array_alloc(device, shape);
    cdad_error err = {0};
    if (a && cdad_device_copy(device, a->data, from, cdad_shape_count(shape) * (int64_t)sizeof(float), &err) != CDAD_OK) {
        Py_CLEAR(a);
        cdad_py_raise(&err);
    }
    return (PyObject *)a;
}

PyObject *cdad_py_value(const cdad_program *p, cdad_value v, const cdad_shape *shape, cdad_device *device) {
    cdad_error err = {0};
    if (device)
        return cdad_py_device_copy(device, shape, cdad_program_data(p, v));
    PyObject *a = cdad_py_new_floats(shape, NULL);
    if (a && cdad_program_read(p, v, cdad_py_data((PyArrayObject *)a), &err) != CDAD_OK) {
        Py_CLEAR(a);
        cdad_py_raise(&err);
    }
    return a;
}

static PyObject *upload(cdad_device *device, PyArrayObject *from) {
    const cdad_shape shape = cdad_py_shape_of(from);
    cdad_py_array *a = array_alloc(device, &shape);
    cdad_error err = {0};
    cdad_status status;
    if (!a)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_device_upload(device, a->data, cdad_py_data(from), (int64_t)PyArray_NBYTES(from), &err);
    Py_END_ALLOW_THREADS
    if (status == CDAD_OK)
        return (PyObject *)a;
    Py_DECREF(a);
    return cdad_py_raise(&err);
}

static void array_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    const cdad_py_array *a = (cdad_py_array *)o;
    if (a->shown) /* what borrowers have queued by now on the default stream comes before what follows here */
        (void)!a->device->order(a->device, CDAD_DEFAULT_STREAM, 0, NULL);
    Py_XDECREF(a->owner);
    type->tp_free(o);
    Py_DECREF(type);
}

/* An array of the host: by NumPy's own ways, of which DLPack is one. */
static PyArrayObject *host_array(PyObject *o) {
    if (PyArray_Check(o) || !PyObject_HasAttrString(o, "__dlpack__"))
        return cdad_py_floats_any(o, "x");
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *array = numpy ? PyObject_CallMethod(numpy, "from_dlpack", "O", o) : NULL;
    PyArrayObject *floats = array ? cdad_py_floats_any(array, "x") : NULL;
    Py_XDECREF(array);
    Py_XDECREF(numpy);
    return floats;
}

static PyObject *array_new(PyTypeObject *cls, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"x", "device", NULL};
    PyObject *x, *where = Py_None, *array;
    cdad_device *device = NULL;
    (void)cls;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:DeviceArray", names, &x, &where) ||
        (where != Py_None && cdad_py_device(where, &device) < 0) || cdad_py_as_device_array(x, device, &array) < 0)
        return NULL;
    if (array) {
        const cdad_device *found = ((cdad_py_array *)array)->device;
        if (where == Py_None || found == device)
            return array;
        PyErr_Format(PyExc_ValueError, "x lies on %s, not on %R", found->name, where);
        Py_DECREF(array);
        return NULL;
    }
    if (where == Py_None && cdad_py_device(NULL, &device) < 0)
        return NULL;
    if (!device)
        return PyErr_Format(PyExc_ValueError, "x is of the host, as is 'cpu': the name of a device is wanted");
    PyArrayObject *given = host_array(x);
    array = given ? upload(device, given) : NULL;
    Py_XDECREF(given);
    return array;
}

int cdad_py_input_of(cdad_py_input *in, PyObject *o, const cdad_shape *shape, cdad_device *device, const char *what) {
    PyObject *array;
    *in = (cdad_py_input){0};
    if (cdad_py_as_device_array(o, device, &array) < 0)
        return -1;
    if (!array) {
        PyArrayObject *a = cdad_py_floats(o, shape, what);
        in->held = (PyObject *)a;
        in->data = cdad_py_data(a);
        return a ? 0 : -1;
    }
    const cdad_py_array *a = (cdad_py_array *)array;
    char x[CDAD_SHAPE_TEXT], y[CDAD_SHAPE_TEXT];
    in->held = array;
    in->data = a->data;
    in->on_device = 1;
    if (a->device != device)
        PyErr_Format(PyExc_ValueError, "%s lies on %s, what reads it on %s", what, a->device->name,
                     device ? device->name : "cpu");
    else if (!cdad_shape_equal(&a->shape, shape))
        PyErr_Format(PyExc_ValueError, "%s has shape %s; %s is wanted", what, cdad_shape_text(&a->shape, x),
                     cdad_shape_text(shape, y));
    else
        return 0;
    Py_CLEAR(in->held);
    return -1;
}

PyObject *cdad_py_array_numpy(PyObject *o, PyObject *unused) {
    const cdad_py_array *a = (cdad_py_array *)o;
    (void)unused;
    return cdad_py_download(a->device, &a->shape, NPY_FLOAT32, a->data, 1);
}

static PyObject *array_array(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *type = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &type, &copy))
        return NULL;
    if (copy == Py_False)
        return PyErr_Format(PyExc_ValueError, "memory of %s goes to the host by a copy alone",
                            ((cdad_py_array *)o)->device->name);
    PyObject *array = cdad_py_array_numpy(o, NULL);
    if (array && type != Py_None)
        Py_SETREF(array, PyObject_CallMethod(array, "astype", "O", type));
    return array;
}

static Py_ssize_t array_length(PyObject *o) {
    const cdad_py_array *a = (cdad_py_array *)o;
    if (a->shape.ndim > 0)
        return (Py_ssize_t)a->shape.dim[0];
    PyErr_SetString(PyExc_TypeError, "a device array without dimensions has no length");
    return -1;
}

/* From element `start` on, on the same memory. */
static PyObject *array_view(const cdad_py_array *a, const cdad_shape *shape, int64_t start) {
    PyObject *view = cdad_py_device_array(a->owner, a->device, shape, a->data + start);
    if (view)
        ((cdad_py_array *)view)->read_only = a->read_only;
    return view;
}

static PyObject *array_subscript(PyObject *o, PyObject *key) {
    const cdad_py_array *a = (cdad_py_array *)o;
    Py_ssize_t start, stop, step;
    const Py_ssize_t length = array_length(o);
    if (length < 0)
        return NULL;
    if (!PySlice_Check(key))
        return PyErr_Format(PyExc_TypeError, "a device array is cut by a slice of its first dimension, not by %R", key);
    if (PySlice_Unpack(key, &start, &stop, &step) < 0)
        return NULL;
    cdad_shape shape = a->shape;
    shape.dim[0] = PySlice_AdjustIndices(length, &start, &stop, step);
    if (step != 1 || shape.dim[0] < 1)
        return PyErr_Format(PyExc_ValueError, "a device array is cut in steps of 1 into parts that are not empty");
    return array_view(a, &shape, start * cdad_shape_span(&shape, 1, shape.ndim));
}

static int array_assign(PyObject *o, PyObject *key, PyObject *values) {
    cdad_py_array *part = NULL;
    cdad_py_input in = {0};
    cdad_error err = {0};
    cdad_status status = CDAD_OK;
    int done = -1;
    if (!values)
        PyErr_SetString(PyExc_TypeError, "parts of a device array cannot be deleted");
    else if (((cdad_py_array *)o)->read_only)
        PyErr_SetString(PyExc_ValueError, "this device array is read-only");
    else
        part = (cdad_py_array *)array_subscript(o, key);
    if (part && cdad_py_input_of(&in, values, &part->shape, part->device, "what is assigned") == 0) {
        const int64_t bytes = cdad_shape_count(&part->shape) * (int64_t)sizeof(float);
        const int64_t apart = (int64_t)((uintptr_t)in.data - (uintptr_t)part->data);
        if (in.on_device && apart < bytes && apart > -bytes) { /* it overlaps */
            Py_SETREF(in.held, cdad_py_device_copy(part->device, &part->shape, in.data));
            in.data = in.held ? ((cdad_py_array *)in.held)->data : NULL;
        }
        if (in.data) {
            Py_BEGIN_ALLOW_THREADS
            status = in.on_device ? cdad_device_copy(part->device, part->data, in.data, bytes, &err)
                                  : cdad_device_upload(part->device, part->data, in.data, bytes, &err);
            Py_END_ALLOW_THREADS
            done = status == CDAD_OK ? 0 : -1;
        }
    }
    if (status != CDAD_OK)
        cdad_py_raise(&err);
    Py_XDECREF(in.held);
    Py_XDECREF(part);
    return done;
}

static PyObject *array_reshape(PyObject *o, PyObject *arg) {
    const cdad_py_array *a = (cdad_py_array *)o;
    char from[CDAD_SHAPE_TEXT], to[CDAD_SHAPE_TEXT];
    cdad_error err = {0};
    cdad_shape shape;
    if (cdad_py_shape(arg, &shape) < 0)
        return NULL;
    if (cdad_shape_check(&shape, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    if (cdad_shape_count(&shape) != cdad_shape_count(&a->shape))
        return PyErr_Format(PyExc_ValueError, "%s has not as many elements as %s", cdad_shape_text(&a->shape, from),
                            cdad_shape_text(&shape, to));
    return array_view(a, &shape, 0);
}

/* The shape of `list` [n], arrays of one device, joined; 0 with an exception where they do not fit. */
static int joined_shape(PyObject *list, Py_ssize_t n, cdad_shape *shape) {
    const cdad_py_array *first = (cdad_py_array *)PyTuple_GetItem(list, 0);
    for (Py_ssize_t i = 0; first && i < n; i++) {
        const cdad_py_array *a = (cdad_py_array *)PyTuple_GetItem(list, i);
        if (!cdad_py_is_device_array((PyObject *)a)) {
            PyErr_Format(PyExc_TypeError, "join takes device arrays, not %R", Py_TYPE(a));
            return 0;
        }
        if (i == 0) {
            *shape = a->shape;
            continue;
        }
        cdad_shape fits = *shape;
        fits.dim[0] = a->shape.dim[0];
        if (a->device != first->device || shape->ndim < 1 || !cdad_shape_equal(&fits, &a->shape)) {
            PyErr_SetString(PyExc_ValueError, "arrays of one device, alike but in their first dimension, can be joined");
            return 0;
        }
        shape->dim[0] += a->shape.dim[0];
    }
    return first != NULL;
}

static PyObject *array_join(PyObject *unused, PyObject *arrays) {
    cdad_error err = {0};
    cdad_shape shape;
    cdad_py_array *joined = NULL;
    (void)unused;
    PyObject *list = PySequence_Tuple(arrays);
    if (!list)
        return NULL;
    const Py_ssize_t n = PyTuple_Size(list);
    if (n == 0)
        PyErr_SetString(PyExc_ValueError, "there is nothing to join");
    else if (joined_shape(list, n, &shape))
        joined = array_alloc(((cdad_py_array *)PyTuple_GetItem(list, 0))->device, &shape);
    int64_t at = 0;
    for (Py_ssize_t i = 0; joined && i < n; i++) {
        const cdad_py_array *a = (cdad_py_array *)PyTuple_GetItem(list, i);
        const int64_t count = cdad_shape_count(&a->shape);
        if (cdad_device_copy(joined->device, joined->data + at, a->data, count * (int64_t)sizeof(float), &err) != CDAD_OK) {
            Py_CLEAR(joined);
            cdad_py_raise(&err);
        }
        at += count;
    }
    Py_DECREF(list);
    return (PyObject *)joined;
}

static PyObject *array_shape(PyObject *o, void *unused) {
    (void)unused;
    return cdad_py_shape_tuple(&((cdad_py_array *)o)->shape);
}

static PyObject *array_dtype(PyObject *o, void *unused) {
    (void)o;
    (void)unused;
    return (PyObject *)PyArray_DescrFromType(NPY_FLOAT32);
}

static PyObject *array_device(PyObject *o, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((cdad_py_array *)o)->device->name);
}

static PyObject *array_repr(PyObject *o) {
    char text[CDAD_SHAPE_TEXT];
    const cdad_py_array *a = (cdad_py_array *)o;
    return PyUnicode_FromFormat("<DeviceArray %s on %s>", cdad_shape_text(&a->shape, text), a->device->name);
}

static PyMethodDef array_methods[] = {
    {"numpy", cdad_py_array_numpy, METH_NOARGS, "numpy($self, /)\n--\n\nA copy on the host."},
    {"reshape", array_reshape, METH_O, "reshape($self, shape, /)\n--\n\nThe same memory in another shape."},
    {"join", array_join, METH_O | METH_STATIC,
     "join(arrays, /)\n--\n\nCopies of arrays of one device, one after the other along their first dimension, there."},
    {"__array__", (PyCFunction)(void (*)(void))array_array, METH_VARARGS | METH_KEYWORDS,
     "__array__($self, dtype=None, copy=None)\n--\n\nA copy on the host."},
    {"__dlpack__", (PyCFunction)(void (*)(void))cdad_py_array_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__($self, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\nA capsule of DLPack's on this "
     "memory, as the array API standard says; `stream`, of CUDA None for the default one, then waits for what was queued here."},
    {"__dlpack_device__", cdad_py_array_dlpack_device, METH_NOARGS,
     "__dlpack_device__($self, /)\n--\n\n(2, N): CUDA's device N; (12, 0): the emulated one."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef array_getset[] = {
    {"shape", array_shape, NULL, "A tuple of int.", NULL},
    {"dtype", array_dtype, NULL, "float32.", NULL},
    {"device", array_device, NULL, "The name of the device.", NULL},
    {"__cuda_array_interface__", cdad_py_array_interface, NULL, "Version 3; of CUDA's devices alone.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot array_slots[] = {
    {Py_tp_new, array_new},
    {Py_tp_dealloc, array_dealloc},
    {Py_tp_repr, array_repr},
    {Py_tp_methods, array_methods},
    {Py_tp_getset, array_getset},
    {Py_mp_length, array_length},
    {Py_mp_subscript, array_subscript},
    {Py_mp_ass_subscript, array_assign},
    {Py_tp_doc, "DeviceArray(x, device=None)\n--\n\nDense float32 memory of a device. x of a device (a torch, CuPy or JAX array, "
                "or anything else with __dlpack__ or __cuda_array_interface__) is shared, and kept alive by this; x of the "
                "host is copied to `device` (None: get_device()). Other libraries take it the same two ways. a[i:j] is a "
                "part of the first dimension, on the same memory, and a[i:j] = x copies x of its shape there. TypeError: x is not of float32; ValueError: it is not dense, is "
                "empty, or lies elsewhere.\n\nWhat is queued on the default stream comes before what is done here with x, "
                "and what was done here before what others do with this array on the stream that they name. A borrower that "
                "works on another stream than the default one keeps the array until it is done."},
    {0, NULL}};
static PyType_Spec array_spec = {.name = "cdad._core.DeviceArray",
                                 .basicsize = sizeof(cdad_py_array),
                                 .flags = Py_TPFLAGS_DEFAULT,
                                 .slots = array_slots};

static PyObject *as_device_array(PyObject *module, PyObject *x) {
    PyObject *array;
    (void)module;
    if (cdad_py_as_device_array(x, NULL, &array) < 0)
        return NULL;
    return array ? array : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"as_device_array", as_device_array, METH_O,
     "as_device_array(x, /)\n--\n\nx as a DeviceArray on the same memory, or None where it is of the host."},
    {NULL, NULL, 0, NULL}};

int cdad_py_add_device_array(PyObject *module) {
    return cdad_py_add_type(module, &array_spec, &array_type) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}

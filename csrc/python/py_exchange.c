/* How a DeviceArray's memory is shared with other libraries: DLPack and __cuda_array_interface__, both ways. */
#include "python/device_array.h"

#include <string.h>

#include "python/dlpack.h"

/* ---- in ------------------------------------------------------------------------------------------------- */

/* What `o` offers by that name: 1, 0 where there is no such thing, -1 with an exception. */
static int offered(PyObject *o, const char *name, PyObject **out) {
    *out = PyObject_GetAttrString(o, name);
    if (*out)
        return 1;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    PyErr_Clear();
    return 0;
}

/* Of what another library lends: whether its elements are float32. */
static int is_float32(const dl_tensor *t) {
    static const char *const kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const size_t n = sizeof kinds / sizeof *kinds;
    if (t->code == DL_FLOAT && t->bits == 32 && t->lanes == 1)
        return 1;
    PyErr_Format(PyExc_TypeError, "a device array holds float32, not %s%d%s", t->code < n ? kinds[t->code] : "an unknown type ",
                 t->bits, t->lanes == 1 ? "" : " in vectors");
    return 0;
}

/* Whether elements that are `step` units apart in the last dimension lie densely, row by row; strides NULL: they do. */
static int is_dense(const cdad_shape *shape, const int64_t *strides, int64_t step) {
    for (int i = shape->ndim - 1; strides && i >= 0; i--) {
        if (shape->dim[i] != 1 && strides[i] != step) {
            PyErr_SetString(PyExc_ValueError, "a device array is dense, row by row: make a contiguous copy first");
            return 0;
        }
        step *= shape->dim[i];
    }
    return 1;
}

static int is_possible(const cdad_shape *shape) {
    cdad_error err = {0};
    if (cdad_shape_check(shape, &err) == CDAD_OK)
        return 1;
    cdad_py_raise(&err);
    return 0;
}

/* What is queued elsewhere comes before our next. */
static int follow(cdad_device *device, void *stream) {
    cdad_error err = {0};
    if (device->order(device, stream, 0, &err) == CDAD_OK)
        return 1;
    cdad_py_raise(&err);
    return 0;
}

static int shape_of(const dl_tensor *t, cdad_shape *shape) {
    *shape = (cdad_shape){.ndim = t->ndim};
    for (int i = 0; i < t->ndim && i < CDAD_MAX_DIMS; i++)
        shape->dim[i] = t->shape[i];
    return is_possible(shape);
}

static void give_back_plain(void *lent) {
    dl_managed *m = lent;
    if (m->deleter)
        m->deleter(m);
}
static void give_back_versioned(void *lent) {
    dl_versioned *m = lent;
    if (m->deleter)
        m->deleter(m);
}
static void give_back_object(void *lent) { Py_DECREF((PyObject *)lent); }

/* On what a capsule holds, which it then does no longer. */
static PyObject *array_of_capsule(PyObject *capsule, cdad_device *device) {
    dl_versioned *versioned = NULL;
    dl_managed *plain = NULL;
    cdad_shape shape;
    cdad_py_memory *m;
    if (PyCapsule_IsValid(capsule, DL_VERSIONED_NAME))
        versioned = PyCapsule_GetPointer(capsule, DL_VERSIONED_NAME);
    else if (PyCapsule_IsValid(capsule, DL_PLAIN_NAME))
        plain = PyCapsule_GetPointer(capsule, DL_PLAIN_NAME);
    else
        return PyErr_Format(PyExc_ValueError, "__dlpack__ gave no capsule that holds a tensor still");
    if (versioned && versioned->major != 1)
        return PyErr_Format(PyExc_BufferError, "__dlpack__ gave version %u of DLPack; 1 is known", versioned->major);
    const dl_tensor *t = versioned ? &versioned->tensor : &plain->tensor;
    if (!is_float32(t) || !shape_of(t, &shape) || !is_dense(&shape, t->strides, 1))
        return NULL;
    if (!t->data || t->device_type != device->dlpack_type || t->device_id != device->dlpack_number)
        return PyErr_Format(PyExc_ValueError, "__dlpack__ gave no memory of %s", device->name);
    if (!follow(device, CDAD_DEFAULT_STREAM))
        return NULL;
    PyObject *owner = cdad_py_memory_new(device, &m);
    if (!owner)
        return NULL;
    if (PyCapsule_SetName(capsule, versioned ? "used_" DL_VERSIONED_NAME : "used_" DL_PLAIN_NAME) < 0) {
        Py_DECREF(owner);
        return NULL;
    }
    m->give_back = versioned ? give_back_versioned : give_back_plain;
    m->lent = versioned ? (void *)versioned : (void *)plain;
    PyObject *array = cdad_py_device_array(owner, device, &shape, (float *)((char *)t->data + t->byte_offset));
    Py_DECREF(owner);
    if (array)
        ((cdad_py_array *)array)->read_only = versioned && versioned->flags & DL_READ_ONLY;
    return array;
}

/* `type` and `number` are what o.__dlpack_device__() gave. */
static PyObject *array_of_dlpack(PyObject *o, int type, int number) {
    cdad_device *device;
    PyObject *array = NULL, *method = NULL;
    PyObject *name = type == DL_CUDA ? PyUnicode_FromFormat("cuda:%d", number)
                                     : PyUnicode_FromString(type == DL_EXT_DEV && number == 0 ? "emulated" : "");
    if (name && PyUnicode_GetLength(name) == 0)
        PyErr_Format(PyExc_ValueError, "memory of DLPack's device (%d, %d) is neither the host's nor a CUDA device's", type,
                     number);
    else if (name && cdad_py_device(name, &device) == 0)
        method = PyObject_GetAttrString(o, "__dlpack__");
    Py_XDECREF(name);
    if (!method)
        return NULL;
    PyObject *none = PyTuple_New(0);
    PyObject *how = none ? Py_BuildValue("{s:N,s:(ii)}", "stream", type == DL_CUDA ? PyLong_FromLong(1) : Py_NewRef(Py_None),
                                         "max_version", 1, 0)
                         : NULL;
    PyObject *capsule = how ? PyObject_Call(method, none, how) : NULL;
    if (how && !capsule && PyErr_ExceptionMatches(PyExc_TypeError)) { /* of a time before versions */
        PyErr_Clear();
        if (PyDict_DelItemString(how, "max_version") == 0)
            capsule = PyObject_Call(method, none, how);
    }
    if (capsule)
        array = array_of_capsule(capsule, device);
    Py_XDECREF(capsule);
    Py_XDECREF(how);
    Py_XDECREF(none);
    Py_DECREF(method);
    return array;
}

/* A stream as DLPack and __cuda_array_interface__ number them, NULL where nobody waits: None of the latter, for which
 * `none` is NULL, and -1 of the former. -1 with an exception. */
static int stream_of(PyObject *o, void *none, void **stream) {
    *stream = none;
    if (!o || o == Py_None)
        return 0;
    const long long number = PyLong_AsLongLong(o);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number == -1 && none) {
        *stream = NULL;
        return 0;
    }
    if (number < 1) {
        PyErr_Format(PyExc_ValueError, "there is no stream %lld: 1 is the default one, 2 a thread's, more a handle", number);
        return -1;
    }
    *stream = (void *)(uintptr_t)number;
    return 0;
}

static PyObject *array_of_interface(PyObject *o, PyObject *dict, cdad_device *device) {
    const char *text;
    unsigned long long address;
    int read_only;
    cdad_shape shape, strides;
    void *stream;
    cdad_py_memory *m;
    if (!PyDict_Check(dict))
        return PyErr_Format(PyExc_TypeError, "__cuda_array_interface__ is no dict");
    PyObject *type = PyDict_GetItemString(dict, "typestr"), *data = PyDict_GetItemString(dict, "data");
    PyObject *dims = PyDict_GetItemString(dict, "shape"), *steps = PyDict_GetItemString(dict, "strides");
    PyObject *mask = PyDict_GetItemString(dict, "mask");
    if (!type || !data || !dims || !PyTuple_Check(dims) || !PyTuple_Check(data))
        return PyErr_Format(PyExc_ValueError, "__cuda_array_interface__ lacks one of shape, typestr and data");
    if (!(text = PyUnicode_AsUTF8(type)) || !PyArg_ParseTuple(data, "Kp", &address, &read_only))
        return NULL;
    if (strcmp(text, "<f4") != 0)
        return PyErr_Format(PyExc_TypeError, "a device array holds float32 ('<f4'), not %R", type);
    if (!address || (mask && mask != Py_None))
        return PyErr_Format(PyExc_ValueError, "__cuda_array_interface__ has %s", address ? "a mask" : "no memory");
    if (cdad_py_shape(dims, &shape) < 0 || !is_possible(&shape))
        return NULL;
    if (steps && steps != Py_None) {
        if (cdad_py_shape(steps, &strides) < 0)
            return NULL;
        if (strides.ndim != shape.ndim)
            return PyErr_Format(PyExc_ValueError, "__cuda_array_interface__ has %d strides of %d dimensions", strides.ndim,
                                shape.ndim);
        if (!is_dense(&shape, strides.dim, sizeof(float)))
            return NULL;
    }
    PyObject *queue = PyDict_GetItemString(dict, "stream"); /* before version 3 there was none */
    if (stream_of(queue, queue ? NULL : CDAD_DEFAULT_STREAM, &stream) < 0 || (stream && !follow(device, stream)))
        return NULL;
    PyObject *owner = cdad_py_memory_new(device, &m);
    if (!owner)
        return NULL;
    m->give_back = give_back_object;
    m->lent = Py_NewRef(o);
    PyObject *array = cdad_py_device_array(owner, device, &shape, (float *)(uintptr_t)address);
    Py_DECREF(owner);
    if (array)
        ((cdad_py_array *)array)->read_only = read_only;
    return array;
}

/* By DLPack where it is offered, as that tells the device. */
int cdad_py_as_device_array(PyObject *o, cdad_device *expected, PyObject **out) {
    PyObject *found;
    int type, number, there;
    *out = NULL;
    if (cdad_py_is_device_array(o))
        *out = Py_NewRef(o);
    if (*out || PyArray_Check(o))
        return 0;
    if ((there = offered(o, "__dlpack_device__", &found)) < 0)
        return -1;
    if (there) {
        PyObject *place = PyObject_CallNoArgs(found);
        Py_DECREF(found);
        PyObject *pair = place ? PySequence_Tuple(place) : NULL; /* the type may be an enum */
        Py_XDECREF(place);
        const int told = pair && PyArg_ParseTuple(pair, "ii", &type, &number);
        Py_XDECREF(pair);
        if (told && type != DL_CPU && type != DL_CUDA_HOST)
            *out = array_of_dlpack(o, type, number);
        return told && (*out || type == DL_CPU || type == DL_CUDA_HOST) ? 0 : -1;
    }
    if ((there = offered(o, "__cuda_array_interface__", &found)) <= 0)
        return there;
    if (!expected || expected->dlpack_type != DL_CUDA) { /* it does not tell which device's */
        PyObject *name = PyUnicode_FromString("cuda");
        const int status = name ? cdad_py_device(name, &expected) : -1;
        Py_XDECREF(name);
        if (status < 0)
            expected = NULL;
    }
    if (expected)
        *out = array_of_interface(o, found, expected);
    Py_DECREF(found);
    return *out ? 0 : -1;
}

/* ---- out ------------------------------------------------------------------------------------------------ */

/* An array that another library borrows. */
typedef struct loan {
    union {
        dl_managed plain;
        dl_versioned versioned;
    } as;
    cdad_py_array *array;
    int64_t shape[CDAD_MAX_DIMS], strides[CDAD_MAX_DIMS];
} loan;

/* May come from any thread. What the borrower still does on the default stream comes before what we do next. */
static void end_loan(loan *l) {
    if (!Py_IsInitialized())
        return; /* the process ends */
    const PyGILState_STATE gil = PyGILState_Ensure();
    cdad_device *d = l->array->device;
    (void)!d->order(d, CDAD_DEFAULT_STREAM, 0, NULL);
    Py_DECREF(l->array);
    PyMem_RawFree(l);
    PyGILState_Release(gil);
}
static void end_plain(dl_managed *m) { end_loan(m->manager); }
static void end_versioned(dl_versioned *m) { end_loan(m->manager); }

/* Of a capsule that nobody used. */
static void capsule_free(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, DL_VERSIONED_NAME))
        end_versioned(PyCapsule_GetPointer(capsule, DL_VERSIONED_NAME));
    else if (PyCapsule_IsValid(capsule, DL_PLAIN_NAME))
        end_plain(PyCapsule_GetPointer(capsule, DL_PLAIN_NAME));
}

static PyObject *lend(cdad_py_array *a, int is_versioned, uint64_t flags) {
    loan *l = PyMem_RawCalloc(1, sizeof *l);
    if (!l)
        return PyErr_NoMemory();
    const dl_tensor tensor = {.data = a->data, .device_type = a->device->dlpack_type,
                              .device_id = a->device->dlpack_number, .ndim = a->shape.ndim, .code = DL_FLOAT, .bits = 32,
                              .lanes = 1, .shape = l->shape, .strides = l->strides};
    l->array = (cdad_py_array *)Py_NewRef(a);
    for (int i = 0; i < a->shape.ndim; i++) {
        l->shape[i] = a->shape.dim[i];
        l->strides[i] = cdad_shape_span(&a->shape, i + 1, a->shape.ndim);
    }
    if (is_versioned)
        l->as.versioned = (dl_versioned){.major = 1, .manager = l, .deleter = end_versioned, .flags = flags, .tensor = tensor};
    else
        l->as.plain = (dl_managed){.manager = l, .deleter = end_plain, .tensor = tensor};
    PyObject *capsule = PyCapsule_New(&l->as, is_versioned ? DL_VERSIONED_NAME : DL_PLAIN_NAME, capsule_free);
    if (!capsule)
        end_loan(l);
    return capsule;
}

static PyObject *refuse(const char *what, const cdad_device *device) {
    return PyErr_Format(PyExc_BufferError, "memory of %s %s", device->name, what);
}

/* None leaves them as they are. */
static int pair_of(PyObject *o, const char *format, int *a, int *b) {
    if (o == Py_None)
        return 1;
    if (PyTuple_Check(o))
        return PyArg_ParseTuple(o, format, a, b);
    PyErr_Format(PyExc_TypeError, "%s, not %R", strchr(format, ';') + 1, Py_TYPE(o));
    return 0;
}

PyObject *cdad_py_array_dlpack(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    cdad_py_array *a = (cdad_py_array *)o;
    PyObject *stream_arg = Py_None, *version = Py_None, *place = Py_None, *copy = Py_None;
    int type = a->device->dlpack_type, number = a->device->dlpack_number, major = 0, minor;
    void *stream;
    cdad_error err = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream_arg, &version, &place, &copy) ||
        !pair_of(version, "ii;max_version is a pair", &major, &minor) || !pair_of(place, "ii;dl_device is a pair", &type, &number))
        return NULL;
    if (type == DL_CPU) {
        PyObject *host = copy == Py_False ? refuse("goes to the host by a copy alone", a->device) : cdad_py_array_numpy(o, NULL);
        PyObject *capsule = host ? PyObject_CallMethod(host, "__dlpack__", NULL) : NULL;
        Py_XDECREF(host);
        return capsule;
    }
    if (!type)
        return refuse("is only planned", a->device);
    if (type != a->device->dlpack_type || number != a->device->dlpack_number)
        return refuse("is shared there, or copied to the host (1, 0)", a->device);
    if (a->read_only && major < 1 && copy != Py_True)
        return refuse("that is read-only wants DLPack 1, which can say so", a->device);
    if (stream_of(stream_arg, CDAD_DEFAULT_STREAM, &stream) < 0)
        return NULL;
    const int is_copied = copy == Py_True;
    cdad_py_array *lent = (cdad_py_array *)(is_copied ? cdad_py_device_copy(a->device, &a->shape, a->data) : Py_NewRef(o));
    PyObject *capsule = NULL;
    if (!lent)
        return NULL;
    if (stream && a->device->order(a->device, stream, 1, &err) != CDAD_OK)
        cdad_py_raise(&err);
    else
        capsule = lend(lent, major >= 1, is_copied ? DL_IS_COPIED : a->read_only ? DL_READ_ONLY : 0);
    Py_DECREF(lent);
    return capsule;
}

PyObject *cdad_py_array_dlpack_device(PyObject *o, PyObject *unused) {
    const cdad_device *d = ((cdad_py_array *)o)->device;
    (void)unused;
    return d->dlpack_type ? Py_BuildValue("(ii)", d->dlpack_type, d->dlpack_number) : refuse("is only planned", d);
}

PyObject *cdad_py_array_interface(PyObject *o, void *unused) {
    cdad_py_array *a = (cdad_py_array *)o;
    cdad_error err = {0};
    (void)unused;
    if (a->device->dlpack_type != DL_CUDA)
        return PyErr_Format(PyExc_AttributeError, "memory of %s has no __cuda_array_interface__", a->device->name);
    if (a->device->order(a->device, CDAD_DEFAULT_STREAM, 1, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    a->shown = 1;
    return Py_BuildValue("{s:N,s:s,s:(KO),s:i,s:O,s:i}", "shape", cdad_py_shape_tuple(&a->shape), "typestr", "<f4", "data",
                         (unsigned long long)(uintptr_t)a->data, a->read_only ? Py_True : Py_False, "version", 3, "strides",
                         Py_None, "stream", 1);
}

/* The module cdad._core: the process's context, errors and arrays; the types are in the other files. */
#define CDAD_IMPORTS_NUMPY
#include "python/bindings.h"

#include <string.h>

#include "base/blas.h"
#include "base/philox.h"
#include "continual/linalg.h"
#include "graph/op.h"
#include "kernels/devices.h"
#include "kernels/kernels.h"
#include "ops/winograd.h"

#define MAX_THREADS 256

/* Pools are made at first use, one for each number of threads asked for, and live as long as the process: a
 * computation in another thread may be using one. All of this is read and written with the GIL held. */
static cdad_pool *pools[MAX_THREADS + 1];
static int threads_now;
static cdad_profile *profile;
static char device_name[32] = "cpu"; /* where objects are made that are not told; opened when the first of them is */

static int poll_signals(void *arg) {
    (void)arg;
    const PyGILState_STATE gil = PyGILState_Ensure();
    const int stop = PyErr_CheckSignals() != 0;
    PyGILState_Release(gil);
    return stop;
}

/* Where Python knows of NVIDIA's libraries (cdad/devices.py), ':' between. */
static int library_folders(char *folders, size_t bytes) {
    PyObject *module = PyImport_ImportModule("cdad.devices");
    PyObject *found = module ? PyObject_CallMethod(module, "library_folders", NULL) : NULL;
    const char *text = found ? PyUnicode_AsUTF8(found) : NULL;
    if (text)
        snprintf(folders, bytes, "%s", text);
    Py_XDECREF(found);
    Py_XDECREF(module);
    return text ? 0 : -1;
}

int cdad_py_device(PyObject *name, cdad_device **device) {
    cdad_error err = {0};
    const char *text = name && name != Py_None ? PyUnicode_AsUTF8(name) : device_name;
    char folders[4096] = "";
    if (!text || (strncmp(text, "cuda", 4) == 0 && library_folders(folders, sizeof folders) < 0))
        return -1;
    if (cdad_device_open(text, folders, device, &err) == CDAD_OK)
        return 0;
    cdad_py_raise(&err);
    return -1;
}

/* What is planned is a run where objects are made, with the scratch of its kernels; where that cannot be opened, on the host. */
static const cdad_kernels *kernels_of(cdad_device *device) {
    if (device && device->is_planned) {
        device = NULL;
        if (cdad_py_device(NULL, &device) < 0)
            PyErr_Clear();
    }
    return device && !device->is_planned ? device->kernels : cdad_kernels_select(NULL);
}

cdad_context cdad_py_context(cdad_device *device) {
    return (cdad_context){.pool = pools[threads_now], .kernels = kernels_of(device), .device = device,
                          .host_kernels = cdad_kernels_select(NULL), .poll = poll_signals,
                          .profile = cdad_profile_is_on(profile) ? profile : NULL};
}

PyObject *cdad_py_raise(const cdad_error *err) {
    PyObject *type = PyExc_RuntimeError;
    switch (err->status) {
    case CDAD_INVALID:
    case CDAD_SHAPE:
        type = PyExc_ValueError;
        break;
    case CDAD_NO_MEMORY:
        type = PyExc_MemoryError;
        break;
    case CDAD_CANCELLED:
        if (PyErr_Occurred())
            return NULL;
        type = PyExc_KeyboardInterrupt;
        break;
    case CDAD_NOT_FINITE: {
        PyObject *errors = PyImport_ImportModule("cdad.errors");
        PyObject *training = errors ? PyObject_GetAttrString(errors, "TrainingError") : NULL;
        Py_XDECREF(errors);
        if (!training)
            return NULL;
        PyErr_SetString(training, err->message);
        Py_DECREF(training);
        return NULL;
    }
    default:
        break;
    }
    PyErr_SetString(type, err->message);
    return NULL;
}

PyArrayObject *cdad_py_integers(PyObject *o, int64_t n, const char *what) {
    PyArrayObject *given = (PyArrayObject *)PyArray_FROM_O(o), *a = NULL;
    if (!given)
        return NULL;
    if (!PyArray_ISINTEGER(given))
        PyErr_Format(PyExc_TypeError, "%s: integers are wanted", what);
    else if (PyArray_NDIM(given) != 1 || PyArray_SIZE(given) != n)
        PyErr_Format(PyExc_ValueError, "%s: %lld are wanted", what, (long long)n);
    else
        a = (PyArrayObject *)PyArray_FROMANY((PyObject *)given, NPY_INT64, 1, 1, NPY_ARRAY_CARRAY_RO);
    Py_DECREF(given);
    return a;
}

PyArrayObject *cdad_py_floats_any(PyObject *o, const char *what) {
    PyArrayObject *a = (PyArrayObject *)PyArray_FromAny(o, NULL, 0, 0, 0, NULL);
    if (!a)
        return NULL;
    const int type = PyArray_TYPE(a);
    if (type != NPY_FLOAT32 && type != NPY_FLOAT64) {
        PyErr_Format(PyExc_TypeError, "%s: an array of float32 is wanted, not %R", what, PyArray_DESCR(a));
        Py_DECREF(a);
        return NULL;
    }
    if (PyArray_NDIM(a) > CDAD_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s has %d dimensions; at most %d are possible", what, PyArray_NDIM(a),
                     CDAD_MAX_DIMS);
        Py_DECREF(a);
        return NULL;
    }
    PyArrayObject *c = (PyArrayObject *)PyArray_FROMANY((PyObject *)a, NPY_FLOAT32, 0, 0,
                                                        NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED |
                                                            NPY_ARRAY_FORCECAST);
    Py_DECREF(a);
    return c;
}

cdad_shape cdad_py_shape_of(PyArrayObject *a) {
    cdad_shape s = {.ndim = PyArray_NDIM(a)};
    for (int i = 0; i < s.ndim; i++)
        s.dim[i] = PyArray_DIM(a, i);
    return s;
}

PyArrayObject *cdad_py_floats(PyObject *o, const cdad_shape *shape, const char *what) {
    PyArrayObject *a = cdad_py_floats_any(o, what);
    if (!a)
        return NULL;
    const cdad_shape found = cdad_py_shape_of(a);
    if (!cdad_shape_equal(&found, shape)) {
        char x[CDAD_SHAPE_TEXT], y[CDAD_SHAPE_TEXT];
        PyErr_Format(PyExc_ValueError, "%s has shape %s; %s is wanted", what, cdad_shape_text(&found, x),
                     cdad_shape_text(shape, y));
        Py_DECREF(a);
        return NULL;
    }
    return a;
}

PyObject *cdad_py_download(cdad_device *device, const cdad_shape *shape, int type, const void *data, int written) {
    npy_intp dims[CDAD_MAX_DIMS];
    cdad_error err = {0};
    for (int i = 0; i < shape->ndim; i++)
        dims[i] = (npy_intp)shape->dim[i];
    PyObject *a = PyArray_SimpleNew(shape->ndim, dims, type);
    if (!a)
        return NULL;
    PyArrayObject *array = (PyArrayObject *)a;
    if (cdad_device_download(device, PyArray_DATA(array), data, (int64_t)PyArray_NBYTES(array), &err) != CDAD_OK) {
        Py_DECREF(a);
        return cdad_py_raise(&err);
    }
    if (!written)
        PyArray_CLEARFLAGS(array, NPY_ARRAY_WRITEABLE);
    return a;
}

#define SHARED "cdad.shared"

static void drop_shared(PyObject *capsule) { cdad_shared_drop(PyCapsule_GetPointer(capsule, SHARED)); }

PyObject *cdad_py_shared(cdad_shared *s) {
    PyObject *capsule = PyCapsule_New(s, SHARED, drop_shared);
    if (capsule)
        cdad_shared_hold(s);
    return capsule;
}

#define TAKEN "cdad.taken"

static void free_taken(PyObject *capsule) { cdad_free(PyCapsule_GetPointer(capsule, TAKEN)); }

PyObject *cdad_py_taken_floats(const cdad_shape *shape, float *data) {
    npy_intp dims[CDAD_MAX_DIMS];
    for (int i = 0; i < shape->ndim; i++)
        dims[i] = (npy_intp)shape->dim[i];
    PyObject *owner = PyCapsule_New(data, TAKEN, free_taken);
    if (!owner) {
        cdad_free(data);
        return NULL;
    }
    PyObject *a = PyArray_SimpleNewFromData(shape->ndim, dims, NPY_FLOAT32, data);
    if (!a)
        Py_DECREF(owner);
    else if (PyArray_SetBaseObject((PyArrayObject *)a, owner) < 0) /* which it takes over in any case */
        Py_CLEAR(a);
    return a;
}

PyObject *cdad_py_new_floats(const cdad_shape *shape, const float *data) {
    npy_intp dims[CDAD_MAX_DIMS];
    for (int i = 0; i < shape->ndim; i++)
        dims[i] = (npy_intp)shape->dim[i];
    PyObject *a = PyArray_SimpleNew(shape->ndim, dims, NPY_FLOAT32);
    if (a && data)
        memcpy(PyArray_DATA((PyArrayObject *)a), data, (size_t)cdad_shape_count(shape) * sizeof(float));
    return a;
}

PyObject *cdad_py_shape_tuple(const cdad_shape *s) {
    PyObject *tuple = PyTuple_New(s->ndim);
    for (int i = 0; tuple && i < s->ndim; i++)
        PyTuple_SetItem(tuple, i, PyLong_FromLongLong(s->dim[i]));
    return tuple;
}

int cdad_py_shape(PyObject *o, cdad_shape *shape) {
    PyObject *list = PyLong_Check(o) ? PyTuple_Pack(1, o) : PySequence_Tuple(o);
    if (!list)
        return -1;
    const Py_ssize_t n = PyTuple_Size(list);
    int status = 0;
    *shape = (cdad_shape){.ndim = (int)(n > CDAD_MAX_DIMS ? CDAD_MAX_DIMS + 1 : n)};
    if (n > CDAD_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%zd dimensions; at most %d are possible", n, CDAD_MAX_DIMS);
        status = -1;
    }
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) {
        shape->dim[i] = PyLong_AsLongLong(PyTuple_GetItem(list, i));
        if (shape->dim[i] == -1 && PyErr_Occurred())
            status = -1;
    }
    Py_DECREF(list);
    return status;
}

int cdad_py_add_type(PyObject *module, PyType_Spec *spec, PyObject **type) {
    PyObject *made = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!made)
        return -1;
    const int status = PyModule_AddObjectRef(module, strrchr(spec->name, '.') + 1, made);
    if (type && status == 0)
        *type = Py_NewRef(made); /* for good: a second import's module may go before this one's */
    Py_DECREF(made);
    return status;
}

static PyObject *set_threads(PyObject *module, PyObject *arg) {
    (void)module;
    const long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred())
        return NULL;
    if (n < 1 || n > MAX_THREADS)
        return PyErr_Format(PyExc_ValueError, "%ld threads; 1 to %d are possible", n, MAX_THREADS);
    cdad_error err = {0};
    if (!pools[n] && cdad_pool_new(&pools[n], (int)n, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    threads_now = (int)n;
    Py_RETURN_NONE;
}

static PyObject *get_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(threads_now);
}

static PyObject *set_isa(PyObject *module, PyObject *arg) {
    (void)module;
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name)
        return NULL;
    const cdad_kernels *k = cdad_kernels_select(name);
    if (!k)
        return PyErr_Format(PyExc_ValueError, "there are no %s kernels in this build, or this processor cannot run them",
                            name);
    cdad_kernels_use(k);
    Py_RETURN_NONE;
}

static PyObject *cuda_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    cdad_error err = {0};
    const cdad_cuda_table *table;
    cdad_cuda_probe *found;
    char path[512], folders[4096];
    if (library_folders(folders, sizeof folders) < 0)
        return NULL;
    if (cdad_cuda_load(&table, path, sizeof path, &err) != CDAD_OK)
        return Py_BuildValue("{s:s,s:s}", "library", path, "error", err.message);
    found = PyMem_Calloc(1, sizeof *found);
    if (!found)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    table->probe(folders, found);
    Py_END_ALLOW_THREADS
    PyObject *devices = PyList_New(0), *result = NULL;
    for (int i = 0; devices && i < found->n_devices; i++) {
        PyObject *item = Py_BuildValue("(siiL)", found->devices[i].name, found->devices[i].major, found->devices[i].minor,
                                       (long long)found->devices[i].bytes);
        if (!item || PyList_Append(devices, item) < 0)
            Py_CLEAR(devices);
        Py_XDECREF(item);
    }
    if (devices)
        result = Py_BuildValue("{s:s,s:s,s:s,s:i,s:i,s:N,s:s,s:O}", "library", path, "error", found->error, "archs",
                               table->archs, "driver", found->driver, "runtime", found->runtime, "devices", devices,
                               "cublas", found->cublas, "has_cublas", found->has_cublas ? Py_True : Py_False);
    PyMem_Free(found);
    return result;
}

static PyObject *set_device(PyObject *module, PyObject *arg) {
    (void)module;
    cdad_device *device;
    const char *name = PyUnicode_AsUTF8(arg);
    if (!name || cdad_py_device(arg, &device) < 0)
        return NULL;
    snprintf(device_name, sizeof device_name, "%s", name);
    Py_RETURN_NONE;
}

static PyObject *get_device(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyUnicode_FromString(device_name);
}

/* The device of a name, or NULL with ValueError for the host, whose memory is not counted. */
static cdad_device *counted_device(PyObject *name) {
    cdad_device *device;
    if (cdad_py_device(name, &device) < 0)
        return NULL;
    if (!device)
        PyErr_SetString(PyExc_ValueError, "the memory of the device 'cpu' is not counted");
    return device;
}

static PyObject *device_memory(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name = Py_None;
    int forget_peak = 0;
    if (!PyArg_ParseTuple(args, "|Op:device_memory", &name, &forget_peak))
        return NULL;
    cdad_device *device = counted_device(name);
    if (!device)
        return NULL;
    const cdad_device_memory memory = device->memory(device, forget_peak);
    return Py_BuildValue("{s:L,s:L,s:L}", "used", (long long)memory.used, "peak", (long long)memory.peak, "limit",
                         (long long)device->limit);
}

static PyObject *device_traffic(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name = Py_None;
    if (!PyArg_ParseTuple(args, "|O:device_traffic", &name))
        return NULL;
    cdad_device *device = counted_device(name);
    if (!device)
        return NULL;
    return Py_BuildValue("{s:L,s:L}", "uploaded", (long long)__atomic_load_n(&device->uploaded, __ATOMIC_RELAXED), "downloaded",
                         (long long)__atomic_load_n(&device->downloaded, __ATOMIC_RELAXED));
}

static PyObject *limit_device_memory(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name = Py_None;
    long long bytes;
    if (!PyArg_ParseTuple(args, "L|O:limit_device_memory", &bytes, &name))
        return NULL;
    if (bytes < 0)
        return PyErr_Format(PyExc_ValueError, "a limit of %lld bytes", bytes);
    cdad_device *device = counted_device(name);
    if (!device)
        return NULL;
    device->limit = bytes;
    Py_RETURN_NONE;
}

static PyObject *build_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *isas = PyList_New(0);
    if (!isas)
        return NULL;
    for (int i = 0; cdad_kernels_at(i); i++) {
        PyObject *name = PyUnicode_FromString(cdad_kernels_at(i)->name);
        if (!name || PyList_Append(isas, name) < 0) {
            Py_XDECREF(name);
            Py_DECREF(isas);
            return NULL;
        }
        Py_DECREF(name);
    }
    return Py_BuildValue("{s:s,s:N,s:i,s:s,s:s,s:s}", "isa", cdad_kernels_select(NULL)->name, "isas", isas, "threads", threads_now,
                         "blas", openblas_get_config(), "blas_core", openblas_get_corename(), "compiler",
#ifdef __clang__
                         "clang " __clang_version__
#else
                         "gcc " __VERSION__
#endif
    );
}

static PyObject *op_names(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && cdad_op_at(i); i++) {
        PyObject *item = Py_BuildValue("(sI)", cdad_op_at(i)->name, cdad_op_at(i)->flags);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *random_normal(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *shape_arg;
    unsigned long long seed, stream;
    cdad_shape shape;
    if (!PyArg_ParseTuple(args, "OKK:random_normal", &shape_arg, &seed, &stream) ||
        cdad_py_shape(shape_arg, &shape) < 0)
        return NULL;
    cdad_error err = {0};
    if (cdad_shape_check(&shape, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    PyObject *a = cdad_py_new_floats(&shape, NULL);
    if (a)
        cdad_random_normal(PyArray_DATA((PyArrayObject *)a), cdad_shape_count(&shape), seed, stream, 0);
    return a;
}

static PyObject *orthonormalise(PyObject *module, PyObject *arg) {
    (void)module;
    PyArrayObject *given = cdad_py_floats_any(arg, "rows");
    if (!given)
        return NULL;
    const cdad_shape shape = cdad_py_shape_of(given);
    PyObject *rows = NULL;
    if (shape.ndim != 2 || shape.dim[0] > shape.dim[1] || shape.dim[1] > CDAD_LINALG_MAX)
        PyErr_Format(PyExc_ValueError, "rows [k, d] with k <= d <= %d are wanted", CDAD_LINALG_MAX);
    else
        rows = cdad_py_new_floats(&shape, cdad_py_data(given));
    Py_DECREF(given);
    if (!rows || shape.dim[0] == 0)
        return rows;
    cdad_error err = {0};
    cdad_status status;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_reorthonormalise(PyArray_DATA((PyArrayObject *)rows), shape.dim[1], shape.dim[0], &err);
    Py_END_ALLOW_THREADS
    if (status == CDAD_OK)
        return rows;
    Py_DECREF(rows);
    return cdad_py_raise(&err);
}

static PyObject *profile_start(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    cdad_profile_switch(profile, 1);
    Py_RETURN_NONE;
}

static PyObject *profile_stop(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    cdad_profile_switch(profile, 0);
    PyObject *list = PyList_New(0);
    cdad_event e; /* a copy: what is collected meanwhile may switch the profile on again */
    for (int64_t i = 0; list && cdad_profile_get(profile, i, &e); i++) {
        PyObject *item = Py_BuildValue("(sssdddL)", e.op, e.name, e.shape, e.start, e.seconds, e.flops, (long long)e.bytes);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyMethodDef methods[] = {
    {"set_threads", set_threads, METH_O, "set_threads(n, /)\n--\n\nThreads of later calls (1 to 256)."},
    {"get_threads", get_threads, METH_NOARGS, "get_threads()\n--\n\nThreads that calls use."},
    {"set_isa", set_isa, METH_O,
     "set_isa(name, /)\n--\n\nKernels of later calls: 'portable', 'avx2', 'avx512' or 'amx'; ValueError where not available."},
    {"set_device", set_device, METH_O,
     "set_device(name, /)\n--\n\nWhere programs and parameters that are made later, and not told, lie: 'cpu', 'cuda' or "
     "'cuda:N'; RuntimeError, which says why, where there is no such device."},
    {"cuda_info", cuda_info, METH_NOARGS,
     "cuda_info()\n--\n\nWhat was found for 'cuda': a dict of library, error ('' or why there is no device) and, where the "
     "library is there, archs, driver, runtime, devices (name, major, minor, bytes), cublas, has_cublas."},
    {"get_device", get_device, METH_NOARGS, "get_device()\n--\n\nThe name that set_device was given."},
    {"device_memory", device_memory, METH_VARARGS,
     "device_memory(device=None, forget_peak=False, /)\n--\n\nBytes of a device (by default the one that set_device named) "
     "that this process has allocated: a dict of used, peak (the most at once, since it was last forgotten) and limit (0: none). "
     "ValueError for 'cpu', whose memory is not counted."},
    {"device_traffic", device_traffic, METH_VARARGS,
     "device_traffic(device=None, /)\n--\n\nBytes that this process has moved between the host and a device: a dict of uploaded and "
     "downloaded."},
    {"limit_device_memory", limit_device_memory, METH_VARARGS,
     "limit_device_memory(bytes, device=None, /)\n--\n\nAllocations that would take more of a device in all raise MemoryError, "
     "and leave what is there usable. 0: no limit."},
    {"build_info", build_info, METH_NOARGS,
     "build_info()\n--\n\nA dict: isa, isas, threads, blas, blas_core, compiler."},
    {"op_names", op_names, METH_NOARGS, "op_names()\n--\n\n(name, flags) of every op of the graph."},
    {"profile_start", profile_start, METH_NOARGS,
     "profile_start()\n--\n\nKeep an event for every node and optimiser step that runs from now on, in any thread."},
    {"profile_stop", profile_stop, METH_NOARGS,
     "profile_stop()\n--\n\nStop; the events as (op, weight, shape, start, seconds, flops, bytes)."},
    {"random_normal", random_normal, METH_VARARGS,
     "random_normal(shape, seed, stream, /)\n--\n\nStandard normal float32 values that depend on (seed, stream, "
     "index) only (Philox4x32-10)."},
    {"orthonormalise", orthonormalise, METH_O,
     "orthonormalise(rows, /)\n--\n\nOrthonormal rows [k, d] of the span of `rows`, the first j of that of its first j; "
     "they may change their signs."},
    {NULL, NULL, 0, NULL}};

static int init_context(void) {
    const char *isa = getenv("CDAD_CPU_ISA"), *threads = getenv("CDAD_NUM_THREADS"), *winograd = getenv("CDAD_WINOGRAD");
    const char *device = getenv("CDAD_DEVICE");
    cdad_error err = {0};
    if (winograd && *winograd) {
        if (strcmp(winograd, "0") && strcmp(winograd, "1")) {
            PyErr_Format(PyExc_ImportError, "CDAD_WINOGRAD=%s: 0 or 1 is wanted", winograd);
            return -1;
        }
        if (*winograd == '0')
            cdad_winograd_disable();
    }
    if (device && *device)
        snprintf(device_name, sizeof device_name, "%s", device);
    if (!profile && cdad_profile_new(&profile, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        return -1;
    }
    const cdad_kernels *kernels = cdad_kernels_select(isa && *isa ? isa : NULL);
    if (!kernels) {
        PyErr_Format(PyExc_ImportError, "CDAD_CPU_ISA=%s: no such kernels here", isa);
        return -1;
    }
    cdad_kernels_use(kernels);
    long n = cdad_cpu_count();
    if (threads && *threads) {
        char *end;
        n = strtol(threads, &end, 10);
        if (*end || n < 1 || n > MAX_THREADS) {
            PyErr_Format(PyExc_ImportError, "CDAD_NUM_THREADS=%s: 1 to %d is wanted", threads, MAX_THREADS);
            return -1;
        }
    }
    threads_now = (int)(n > MAX_THREADS ? MAX_THREADS : n);
    if (!pools[threads_now] && cdad_pool_new(&pools[threads_now], threads_now, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        return -1;
    }
    openblas_set_num_threads(1); /* the pool calls it from its own threads: bits must not depend on their number */
    return 0;
}

static int module_exec(PyObject *module) {
    import_array1(-1);
    if (init_context() < 0 || cdad_py_add_graph(module) < 0 || cdad_py_add_params(module) < 0 ||
        cdad_py_add_network(module) < 0 || cdad_py_add_train(module) < 0 || cdad_py_add_sampler(module) < 0 ||
        cdad_py_add_stream(module) < 0 || cdad_py_add_metrics(module) < 0 || cdad_py_add_device_array(module) < 0)
        return -1;
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT,
                                        .m_name = "cdad._core",
                                        .m_doc = "The C core of cdad.",
                                        .m_size = 0,
                                        .m_methods = methods,
                                        .m_slots = slots};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }

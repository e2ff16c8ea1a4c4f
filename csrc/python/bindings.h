/* What the binding files share. Only files of this folder include Python and NumPy headers; they parse, borrow
 * buffers, release the GIL around one call into the core, and turn a status into an exception. */
#ifndef CDAD_PYTHON_BINDINGS_H
#define CDAD_PYTHON_BINDINGS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL cdad_array_api
#ifndef CDAD_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include <semaphore.h>

#include "base/context.h"
#include "base/forked.h"
#include "base/memory.h"
#include "base/shared.h"
#include "continual/plan.h"
#include "graph/program.h"
#include "nn/params.h"

/* Sets the exception for err->status and returns NULL. */
PyObject *cdad_py_raise(const cdad_error *err);

/* The process's threads and, on the host, its kernels, with a poll that lets Python's signal handlers run. Copied by
 * each call, so that a change of threads or kernels takes effect at the next one. device NULL: the host. */
cdad_context cdad_py_context(cdad_device *device);
/* The device of a name (str), or with None or NULL the process's: -1 with an exception. */
int cdad_py_device(PyObject *name, cdad_device **device);

/* A float32, C-contiguous, native array with the elements of `o` (float32 or float64; anything else is a
 * TypeError), of exactly this shape (else a ValueError that names `what`). New reference. */
PyArrayObject *cdad_py_floats(PyObject *o, const cdad_shape *shape, const char *what);
/* The same with any shape of at most CDAD_MAX_DIMS dimensions. */
PyArrayObject *cdad_py_floats_any(PyObject *o, const char *what);
/* int64 [n] of whole numbers: TypeError, ValueError where there are not n. */
PyArrayObject *cdad_py_integers(PyObject *o, int64_t n, const char *what);
cdad_shape cdad_py_shape_of(PyArrayObject *a);
/* A new float32 array; copied from data, of the host, unless that is NULL. */
PyObject *cdad_py_new_floats(const cdad_shape *shape, const float *data);
/* On memory of the core's (cdad_alloc), which is taken over, as it is where this fails. */
PyObject *cdad_py_taken_floats(const cdad_shape *shape, float *data);
/* A new array of `type` copied from a device; `written` 0: it is read-only, as nothing would come of writing it. */
PyObject *cdad_py_download(cdad_device *device, const cdad_shape *shape, int type, const void *data, int written);
/* An object that is one owner of `s` as long as it lives. */
PyObject *cdad_py_shared(cdad_shared *s);
/* A tuple of ints or an int -> a shape. */
int cdad_py_shape(PyObject *o, cdad_shape *shape);
PyObject *cdad_py_shape_tuple(const cdad_shape *s); /* and back */

static inline float *cdad_py_data(PyArrayObject *a) { return a ? (float *)PyArray_DATA(a) : NULL; }

/* A lock for one stateful object (py_lock.c). It survives forks: the child's is free, unless the forking thread has it. */
typedef struct cdad_py_lock {
    cdad_forked forked;
    sem_t free;
    _Atomic unsigned long holder; /* the thread that has it, or 0 */
} cdad_py_lock;
void cdad_py_lock_init(cdad_py_lock *lock);
void cdad_py_lock_destroy(cdad_py_lock *lock);
/* Waits with the GIL released. -1 with an exception: this thread has it already (Python's signal handlers run within a call that
 * polls), or a signal's handler raised. */
int cdad_py_lock_take(cdad_py_lock *lock);
void cdad_py_lock_give(cdad_py_lock *lock);
static inline int cdad_py_lock_is_mine(const cdad_py_lock *lock) { return lock->holder == PyThread_get_thread_ident(); }

/* A stream's method by its name in Python (py_stream.c), and back; -1 with an exception. */
int cdad_py_stream_method(const char *name);
const char *cdad_py_stream_method_name(cdad_stream_method method);

/* In what the networks of one or more parameter stores run, and its lock: for what runs there, and for what is made or reads results
 * there. */
typedef struct cdad_py_workspace {
    Py_ssize_t stores; /* that use it */
    cdad_workspace memory;
    cdad_py_lock lock;
} cdad_py_workspace;

/* The parameter store type (py_params.c). */
typedef struct cdad_py_params {
    PyObject_HEAD
    cdad_params *params;
    cdad_py_workspace *workspace;
} cdad_py_params;
/* `o` as a parameter store, or NULL with a TypeError. Borrowed. */
cdad_py_params *cdad_py_params_check(PyObject *module, PyObject *o);

/* DeviceArray (py_device_array.c) on memory of a device that `owner` keeps alive. New reference, as are those below. */
PyObject *cdad_py_device_array(PyObject *owner, cdad_device *device, const cdad_shape *shape, float *data);
/* On memory of its own, copied from `from`, which lies there too. */
PyObject *cdad_py_device_copy(cdad_device *device, const cdad_shape *shape, const float *from);
/* `o` as an array on the same memory, or *out NULL: it is of the host. `expected`: where it lies, should it not tell which CUDA
 * device that is; NULL: on "cuda". -1 with an exception. */
int cdad_py_as_device_array(PyObject *o, cdad_device *expected, PyObject **out);

/* What a program of `device` is given. */
typedef struct cdad_py_input {
    PyObject *held; /* keeps the memory alive while the program runs */
    const float *data;
    int on_device; /* it lies where the program runs */
} cdad_py_input;
/* -1 with an exception, for memory of another device too. */
int cdad_py_input_of(cdad_py_input *in, PyObject *o, const cdad_shape *shape, cdad_device *device, const char *what);
static inline cdad_status cdad_py_give(cdad_program *p, cdad_value v, const cdad_py_input *in, cdad_error *err) {
    return in->on_device ? cdad_program_feed_there(p, v, in->data, err) : cdad_program_feed(p, v, in->data, err);
}
/* A value after a run: an array of the host or, `device` given, of that device, where the program runs. */
PyObject *cdad_py_value(const cdad_program *p, cdad_value v, const cdad_shape *shape, cdad_device *device);

/* Of a Trainer (py_train.c): the weights that predict, its moving average or, where it keeps none, the weights, where the
 * parameters `of` lie; NULL with an exception, for a trainer of others too. */
int cdad_py_is_trainer(PyObject *o);
const float *cdad_py_trained_weights(PyObject *o, const cdad_py_params *of);

/* Each adds its types and functions to the module; -1 with an exception on failure. */
int cdad_py_add_graph(PyObject *module);
int cdad_py_add_params(PyObject *module);
int cdad_py_add_network(PyObject *module);
int cdad_py_add_train(PyObject *module);
int cdad_py_add_sampler(PyObject *module);
int cdad_py_add_stream(PyObject *module);
int cdad_py_add_metrics(PyObject *module);
int cdad_py_add_device_array(PyObject *module);

/* Makes a heap type, adds it to the module, and keeps it in *type for type checks (may be NULL). */
int cdad_py_add_type(PyObject *module, PyType_Spec *spec, PyObject **type);

#endif

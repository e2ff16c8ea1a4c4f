/* What the files of DeviceArray share. */
#ifndef CDAD_PYTHON_DEVICE_ARRAY_H
#define CDAD_PYTHON_DEVICE_ARRAY_H

#include "python/bindings.h"

typedef struct cdad_py_array {
    PyObject_HEAD
    cdad_device *device;
    cdad_shape shape;
    float *data;
    int read_only;   /* as its lender said */
    int shown;       /* by __cuda_array_interface__, whose borrowers do not say when they are done */
    PyObject *owner; /* keeps the memory alive: cdad_py_memory_new's, or a parameter store */
} cdad_py_array;

int cdad_py_is_device_array(PyObject *o);

/* What goes with the last array on it: our own memory or, once all that is queued is done, another library's. */
typedef struct cdad_py_memory {
    cdad_device *device;
    void *own;
    void *lent;
    void (*give_back)(void *lent); /* NULL: nothing is lent */
} cdad_py_memory;
#define CDAD_PY_MEMORY "cdad memory" /* the name of its capsules */
/* An owner of *m, which is to be filled in. */
PyObject *cdad_py_memory_new(cdad_device *device, cdad_py_memory **m);

/* Its methods, and the getter of __cuda_array_interface__. */
PyObject *cdad_py_array_numpy(PyObject *o, PyObject *unused);
PyObject *cdad_py_array_dlpack(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *cdad_py_array_dlpack_device(PyObject *o, PyObject *unused);
PyObject *cdad_py_array_interface(PyObject *o, void *unused);

#endif

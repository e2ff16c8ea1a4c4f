/* count_places: values by their place among marks. */
#include "python/bindings.h"

#include "metrics/places.h"

static PyObject *count_places(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *values_arg, *skip_arg, *marks_arg, *counts = NULL;
    if (!PyArg_ParseTuple(args, "OOO:count_places", &values_arg, &skip_arg, &marks_arg))
        return NULL;
    const int type = PyArray_Check(values_arg) && PyArray_TYPE((PyArrayObject *)values_arg) == NPY_FLOAT32 ? NPY_FLOAT32
                                                                                                          : NPY_FLOAT64;
    PyArrayObject *values = (PyArrayObject *)PyArray_FROMANY(values_arg, type, 1, 1, NPY_ARRAY_CARRAY_RO);
    PyArrayObject *skip =
        values ? (PyArrayObject *)PyArray_FROMANY(skip_arg, NPY_BOOL, 1, 1, NPY_ARRAY_CARRAY_RO) : NULL;
    PyArrayObject *marks = skip ? (PyArrayObject *)PyArray_FROMANY(marks_arg, NPY_FLOAT64, 1, 1, NPY_ARRAY_CARRAY_RO) : NULL;
    if (!marks)
        goto done;
    const int64_t n = PyArray_SIZE(values), k = PyArray_SIZE(marks);
    if (PyArray_SIZE(skip) != n) {
        PyErr_Format(PyExc_ValueError, "%lld values but %lld flags", (long long)n, (long long)PyArray_SIZE(skip));
        goto done;
    }
    npy_intp places = 2 * k + 1;
    if (!(counts = PyArray_SimpleNew(1, &places, NPY_INT64)))
        goto done;
    cdad_error err = {0};
    cdad_status status;
    const cdad_context ctx = cdad_py_context(NULL);
    int64_t *to = PyArray_DATA((PyArrayObject *)counts);
    Py_BEGIN_ALLOW_THREADS
    status = cdad_count_places(&ctx, to, type == NPY_FLOAT32 ? PyArray_DATA(values) : NULL,
                               type == NPY_FLOAT64 ? PyArray_DATA(values) : NULL, PyArray_DATA(skip), n,
                               PyArray_DATA(marks), k, &err);
    Py_END_ALLOW_THREADS
    if (status != CDAD_OK) {
        Py_CLEAR(counts);
        cdad_py_raise(&err);
    }
done:
    Py_XDECREF(values);
    Py_XDECREF(skip);
    Py_XDECREF(marks);
    return counts;
}

static PyMethodDef methods[] = {
    {"count_places", count_places, METH_VARARGS,
     "count_places(values, skip, marks, /)\n--\n\nOf the values [n] that are not skipped, how many stand at each place "
     "among the strictly rising marks [k]: int64 [2k+1], below mark 0, equal to it, between it and mark 1, and so on. "
     "Values that are not float32 are taken as float64."},
    {NULL, NULL, 0, NULL}};

int cdad_py_add_metrics(PyObject *module) { return PyModule_AddFunctions(module, methods); }

/* Graph and Program: any small graph can be built and run from Python. */
#include "python/bindings.h"

#include <string.h>

typedef struct py_graph {
    PyObject_HEAD
    cdad_graph *g;
    int compiled; /* programs point into the graph: it must not grow any more */
} py_graph;

typedef struct py_program {
    PyObject_HEAD
    py_graph *graph;
    cdad_program *program;
    cdad_device *device;
    cdad_value *outputs;
    Py_ssize_t n_outputs;
    cdad_py_lock lock;
} py_program;

static PyObject *program_type;

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    if (PyTuple_Size(args) || (kwargs && PyDict_Size(kwargs)))
        return PyErr_Format(PyExc_TypeError, "Graph() takes no arguments");
    py_graph *self = (py_graph *)PyType_GenericAlloc(type, 0);
    cdad_error err = {0};
    if (self && cdad_graph_new(&self->g, &err) != CDAD_OK) {
        Py_DECREF(self);
        return cdad_py_raise(&err);
    }
    return (PyObject *)self;
}

static void graph_dealloc(PyObject *o) {
    PyTypeObject *type = Py_TYPE(o);
    cdad_graph_free(((py_graph *)o)->g);
    type->tp_free(o);
    Py_DECREF(type);
}

static int may_grow(const py_graph *self) {
    if (self->compiled)
        PyErr_SetString(PyExc_ValueError, "the graph is compiled: it cannot grow any more");
    return !self->compiled;
}

typedef cdad_status (*named_value_fn)(cdad_graph *, const char *, cdad_shape, cdad_value *, cdad_error *);

static PyObject *add_named(PyObject *o, PyObject *args, named_value_fn add) {
    py_graph *self = (py_graph *)o;
    const char *name;
    PyObject *shape_arg;
    cdad_shape shape;
    if (!PyArg_ParseTuple(args, "sO", &name, &shape_arg) || cdad_py_shape(shape_arg, &shape) < 0 || !may_grow(self))
        return NULL;
    cdad_error err = {0};
    cdad_value v;
    if (add(self->g, name, shape, &v, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    return PyLong_FromLong(v);
}

static PyObject *graph_input(PyObject *o, PyObject *args) { return add_named(o, args, cdad_graph_input); }
static PyObject *graph_param(PyObject *o, PyObject *args) { return add_named(o, args, cdad_graph_param); }

static PyObject *graph_const(PyObject *o, PyObject *arg) {
    py_graph *self = (py_graph *)o;
    PyArrayObject *a = cdad_py_floats_any(arg, "const");
    if (!a || !may_grow(self)) {
        Py_XDECREF(a);
        return NULL;
    }
    cdad_error err = {0};
    cdad_value v;
    const cdad_status status = cdad_graph_const(self->g, cdad_py_shape_of(a), cdad_py_data(a), &v, &err);
    Py_DECREF(a);
    return status == CDAD_OK ? PyLong_FromLong(v) : cdad_py_raise(&err);
}

/* A sequence of value ids (None: absent) -> values; -1 with an exception on failure. */
static Py_ssize_t parse_values(PyObject *o, cdad_value *values, Py_ssize_t most, int none_allowed) {
    PyObject *list = PySequence_Tuple(o);
    if (!list)
        return -1;
    Py_ssize_t n = PyTuple_Size(list);
    if (n > most) {
        PyErr_Format(PyExc_ValueError, "%zd values; at most %zd are possible", n, most);
        n = -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyTuple_GetItem(list, i);
        if (item == Py_None && none_allowed) {
            values[i] = CDAD_NONE;
            continue;
        }
        const long v = PyLong_AsLong(item);
        if (v == -1 && PyErr_Occurred()) {
            n = -1;
            break;
        }
        if (v < 0 || v > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%ld is no value of a graph", v);
            n = -1;
            break;
        }
        values[i] = (cdad_value)v;
    }
    Py_DECREF(list);
    return n;
}

static PyObject *graph_op(PyObject *o, PyObject *args, PyObject *kwargs) {
    py_graph *self = (py_graph *)o;
    const char *name;
    PyObject *inputs;
    cdad_error err = {0};
    if (!PyArg_ParseTuple(args, "sO:op", &name, &inputs))
        return NULL;
    const cdad_op *op = cdad_op_find(name);
    if (!op)
        return PyErr_Format(PyExc_ValueError, "there is no op %s", name);
    cdad_value in[CDAD_MAX_INPUTS], out[CDAD_MAX_OUTPUTS];
    const Py_ssize_t n = parse_values(inputs, in, CDAD_MAX_INPUTS, 1);
    if (n < 0)
        return NULL;
    cdad_attr attrs[CDAD_MAX_ATTRS];
    cdad_attr_defaults(op, attrs);
    PyObject *key, *value;
    for (Py_ssize_t at = 0; kwargs && PyDict_Next(kwargs, &at, &key, &value);) {
        const double x = PyFloat_AsDouble(value);
        if (x == -1.0 && PyErr_Occurred())
            return NULL;
        const char *attr = PyUnicode_AsUTF8(key);
        if (!attr)
            return NULL;
        if (cdad_attr_set(op, attrs, attr, x, &err) != CDAD_OK)
            return cdad_py_raise(&err);
    }
    if (!may_grow(self)) /* asked last: what is read above may run any Python, and let go of the GIL */
        return NULL;
    if (cdad_graph_add(self->g, op, (int)n, in, attrs, out, &err) != CDAD_OK)
        return cdad_py_raise(&err);
    PyObject *result = PyTuple_New(op->n_out);
    for (int j = 0; result && j < op->n_out; j++)
        PyTuple_SetItem(result, j, PyLong_FromLong(out[j]));
    return result;
}

static PyObject *graph_shape(PyObject *o, PyObject *arg) {
    py_graph *self = (py_graph *)o;
    const long v = PyLong_AsLong(arg);
    if (v == -1 && PyErr_Occurred())
        return NULL;
    if (v < 0 || v >= self->g->n_values)
        return PyErr_Format(PyExc_ValueError, "%ld is no value of this graph", v);
    return cdad_py_shape_tuple(cdad_graph_shape(self->g, (cdad_value)v));
}

static PyObject *graph_backward(PyObject *o, PyObject *args) {
    py_graph *self = (py_graph *)o;
    PyObject *wanted_arg, *result = NULL;
    int loss;
    if (!PyArg_ParseTuple(args, "iO:backward", &loss, &wanted_arg) || !(wanted_arg = PySequence_Tuple(wanted_arg)))
        return NULL;
    const Py_ssize_t most = PyTuple_Size(wanted_arg); /* not what its __len__ says */
    cdad_value *values = PyMem_Malloc((size_t)(2 * most + 1) * sizeof *values);
    if (!values) {
        Py_DECREF(wanted_arg);
        return PyErr_NoMemory();
    }
    const Py_ssize_t n = parse_values(wanted_arg, values, most, 0);
    cdad_error err = {0};
    if (n < 0 || !may_grow(self))
        goto done;
    if (cdad_graph_backward(self->g, loss, n, values, 0, values + n, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        goto done;
    }
    result = PyList_New(n);
    for (Py_ssize_t i = 0; result && i < n; i++)
        PyList_SetItem(result, i, values[n + i] == CDAD_NONE ? Py_NewRef(Py_None) : PyLong_FromLong(values[n + i]));
done:
    Py_DECREF(wanted_arg);
    PyMem_Free(values);
    return result;
}

static PyObject *graph_compile(PyObject *o, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"outputs", "device", NULL};
    py_graph *self = (py_graph *)o;
    PyObject *arg, *where = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:compile", names, &arg, &where) || !(arg = PySequence_Tuple(arg)))
        return NULL;
    const Py_ssize_t most = PyTuple_Size(arg);
    PyTypeObject *type = (PyTypeObject *)program_type;
    py_program *p = (py_program *)PyType_GenericAlloc(type, 0);
    if (!p) {
        Py_DECREF(arg);
        return NULL;
    }
    p->graph = (py_graph *)Py_NewRef(o);
    cdad_py_lock_init(&p->lock);
    p->outputs = PyMem_Malloc((size_t)(most + 1) * sizeof *p->outputs);
    cdad_error err = {0};
    if (!p->outputs) {
        PyErr_NoMemory();
        goto fail;
    }
    p->n_outputs = parse_values(arg, p->outputs, most, 0);
    if (p->n_outputs < 0)
        goto fail;
    if (cdad_py_device(where, &p->device) < 0)
        goto fail;
    const cdad_context ctx = cdad_py_context(p->device);
    if (cdad_program_new(&p->program, self->g, p->n_outputs, p->outputs, NULL, &ctx, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        goto fail;
    }
    self->compiled = 1;
    Py_DECREF(arg);
    return (PyObject *)p;
fail:
    Py_DECREF(arg);
    Py_DECREF(p);
    return NULL;
}

static void program_dealloc(PyObject *o) {
    py_program *self = (py_program *)o;
    PyTypeObject *type = Py_TYPE(o);
    cdad_program_free(self->program);
    PyMem_Free(self->outputs);
    cdad_py_lock_destroy(&self->lock);
    Py_XDECREF(self->graph);
    type->tp_free(o);
    Py_DECREF(type);
}

/* Binds one (value, array) pair; the array is appended to `held`, which keeps it alive while the program runs. Whether it lies
 * on the device, or -1. */
static int bind_item(py_program *self, PyObject *key, PyObject *value, PyObject *held) {
    const cdad_graph *g = self->graph->g;
    const long v = PyLong_AsLong(key);
    cdad_py_input in;
    if (v == -1 && PyErr_Occurred())
        return -1;
    if (v < 0 || v >= g->n_values) {
        PyErr_Format(PyExc_ValueError, "%ld is no value of this graph", v);
        return -1;
    }
    const char *name = g->values[v].name;
    if (cdad_py_input_of(&in, value, &g->values[v].shape, self->device, name ? name : "value") < 0)
        return -1;
    const int kept = PyList_Append(held, in.held);
    Py_DECREF(in.held);
    cdad_error err = {0};
    if (kept < 0)
        return -1;
    if (cdad_py_give(self->program, (cdad_value)v, &in, &err) != CDAD_OK) {
        cdad_py_raise(&err);
        return -1;
    }
    return in.on_device;
}

/* What an earlier run was given may be gone. */
static void unbind(const py_program *self) {
    const cdad_graph *g = self->graph->g;
    for (int64_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == CDAD_VALUE_INPUT || g->values[v].kind == CDAD_VALUE_PARAM)
            (void)!cdad_program_bind(self->program, (cdad_value)v, NULL, NULL);
}

static PyObject *program_run(PyObject *o, PyObject *feeds) {
    py_program *self = (py_program *)o;
    if (!PyDict_Check(feeds))
        return PyErr_Format(PyExc_TypeError, "run() wants a dict of arrays by value");
    feeds = PyDict_Copy(feeds); /* what its arrays run when they are asked may change it */
    PyObject *held = feeds ? PyList_New(0) : NULL, *result = NULL;
    if (!held || cdad_py_lock_take(&self->lock) < 0) {
        Py_XDECREF(held);
        Py_XDECREF(feeds);
        return NULL;
    }
    unbind(self);
    PyObject *key, *value;
    int on_device = 0;
    for (Py_ssize_t at = 0; PyDict_Next(feeds, &at, &key, &value);) {
        const int there = bind_item(self, key, value, held);
        if (there < 0)
            goto done;
        on_device |= there;
    }
    cdad_error err = {0};
    const cdad_context ctx = cdad_py_context(self->device);
    cdad_status status;
    Py_BEGIN_ALLOW_THREADS
    status = cdad_program_run(self->program, &ctx, &err);
    Py_END_ALLOW_THREADS
    if (status != CDAD_OK) {
        cdad_py_raise(&err);
        goto done;
    }
    result = PyList_New(self->n_outputs);
    for (Py_ssize_t i = 0; result && i < self->n_outputs; i++) {
        const cdad_value v = self->outputs[i];
        PyObject *a = cdad_py_value(self->program, v, cdad_graph_shape(self->graph->g, v), on_device ? self->device : NULL);
        if (!a) {
            Py_CLEAR(result);
            break;
        }
        PyList_SetItem(result, i, a);
    }
done:
    cdad_py_lock_give(&self->lock);
    Py_DECREF(held);
    Py_DECREF(feeds);
    return result;
}

static PyObject *program_arena_bytes(PyObject *o, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(cdad_program_arena_bytes(((py_program *)o)->program));
}

static PyObject *program_recorded(PyObject *o, void *unused) {
    (void)unused;
    return PyBool_FromLong(cdad_program_is_recorded(((py_program *)o)->program));
}

static PyMethodDef graph_methods[] = {
    {"input", graph_input, METH_VARARGS, "input($self, name, shape, /)\n--\n\nAn input value; returns its id."},
    {"param", graph_param, METH_VARARGS, "param($self, name, shape, /)\n--\n\nA parameter value; returns its id."},
    {"const", graph_const, METH_O, "const($self, array, /)\n--\n\nA constant; returns its id."},
    {"op", (PyCFunction)(void (*)(void))graph_op, METH_VARARGS | METH_KEYWORDS,
     "op($self, name, inputs, /, **attributes)\n--\n\nAdds a node; returns the ids of its outputs."},
    {"shape", graph_shape, METH_O, "shape($self, value, /)\n--\n\nThe shape of a value."},
    {"backward", graph_backward, METH_VARARGS,
     "backward($self, loss, wanted, /)\n--\n\nAdds the gradient's nodes; returns the ids of d loss / d wanted "
     "(None where the loss does not depend on it)."},
    {"compile", (PyCFunction)(void (*)(void))graph_compile, METH_VARARGS | METH_KEYWORDS,
     "compile($self, outputs, device=None)\n--\n\nPlans memory on the device (None: get_device()); returns a Program."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot graph_slots[] = {{Py_tp_new, graph_new},
                                    {Py_tp_dealloc, graph_dealloc},
                                    {Py_tp_methods, graph_methods},
                                    {Py_tp_doc, "A static graph of float32 values, channels last."},
                                    {0, NULL}};
static PyType_Spec graph_spec = {
    .name = "cdad._core.Graph", .basicsize = sizeof(py_graph), .flags = Py_TPFLAGS_DEFAULT, .slots = graph_slots};

static PyMethodDef program_methods[] = {
    {"run", program_run, METH_O,
     "run($self, feeds, /)\n--\n\nRuns with {value id: array}; returns the outputs as a list of float32 arrays. Where an array of "
     "the program's device is given, the outputs are DeviceArrays."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef program_getset[] = {
    {"arena_bytes", program_arena_bytes, NULL, "Peak bytes of the values, known before the run.", NULL},
    {"recorded", program_recorded, NULL, "Whether runs on its device are replayed from a recording by now.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot program_slots[] = {{Py_tp_dealloc, program_dealloc},
                                      {Py_tp_methods, program_methods},
                                      {Py_tp_getset, program_getset},
                                      {Py_tp_doc, "A planned graph that can run. Made by Graph.compile."},
                                      {0, NULL}};
static PyType_Spec program_spec = {.name = "cdad._core.Program",
                                   .basicsize = sizeof(py_program),
                                   .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   .slots = program_slots};

int cdad_py_add_graph(PyObject *module) {
    return cdad_py_add_type(module, &graph_spec, NULL) < 0 || cdad_py_add_type(module, &program_spec, &program_type) < 0
               ? -1
               : 0;
}

/* The trainer's object, of the files that give it its methods. */
#ifndef CDAD_PYTHON_PY_TRAINER_H
#define CDAD_PYTHON_PY_TRAINER_H

#include "python/bindings.h"
#include "train/trainer.h"

/* The blocks that a trainer borrows. */
enum { CDAD_LENT_IMPORTANCE, CDAD_LENT_ANCHOR, CDAD_LENT_TEACHER, CDAD_LENT_TETHER, CDAD_N_LENT };

typedef struct py_trainer {
    PyObject_HEAD
    cdad_py_params *params;
    cdad_trainer *trainer;
    cdad_denoiser_config config;
    int64_t n;
    PyObject *borrowed; /* {name: array}: keeps alive what the optimiser borrows: bases by parameter, and blocks */
    float *mirrors[CDAD_N_LENT]; /* of borrowed blocks, where the parameters lie on a device */
} py_trainer;

static inline cdad_device *cdad_py_trainer_device(const py_trainer *self) { return self->params->params->device; }

/* The trainer's optimiser, or NULL with an exception. */
cdad_optimizer *cdad_py_trainer_optimizer(const py_trainer *self);

/* Methods of py_trainer_blocks.c. */
PyObject *cdad_py_trainer_penalize(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *cdad_py_trainer_tether(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *cdad_py_trainer_follow(PyObject *o, PyObject *on);
PyObject *cdad_py_trainer_teach(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *cdad_py_trainer_protect(PyObject *o, PyObject *args, PyObject *kwargs);
PyObject *cdad_py_trainer_confine(PyObject *o, PyObject *args);
PyObject *cdad_py_trainer_block(PyObject *o, PyObject *name);
PyObject *cdad_py_trainer_set_block(PyObject *o, PyObject *args);

#endif

/* The parameters of a model: names, shapes and one block of memory. */
#ifndef CDAD_NN_PARAMS_H
#define CDAD_NN_PARAMS_H

#include "base/device.h"
#include "graph/graph.h"
#include "graph/workspace.h"

typedef enum { CDAD_INIT_CONST, CDAD_INIT_UNIFORM, CDAD_INIT_NORMAL } cdad_init_kind;

/* CONST: every element is scale; UNIFORM: in [-scale, scale); NORMAL: standard deviation scale. */
typedef struct cdad_init {
    cdad_init_kind kind;
    float scale;
} cdad_init;

typedef struct cdad_param {
    char *name;
    cdad_shape shape; /* conv weights [O,R,S,C], linear weights [O,K] */
    cdad_init init;
    int64_t offset; /* in floats, a multiple of 16 */
    int64_t count;
} cdad_param;

/* Parameters are registered while graphs are built; cdad_params_allocate then lays them out. After that the
 * memory stays where it is, and later graphs may only use parameters that are there. */
typedef struct cdad_params {
    cdad_param *items;
    int64_t n, capacity;
    cdad_device *device; /* where the values lie; to be set before they are allocated */
    float *values; /* [total], NULL before cdad_params_allocate */
    int64_t total;
    cdad_workspace *workspace; /* in which the networks' programs run; NULL: each in its own. Not owned */
} cdad_params;

CDAD_MUST_USE cdad_status cdad_params_new(cdad_params **out, cdad_error *err);
void cdad_params_free(cdad_params *p); /* NULL is allowed */

/* The index of a name, or -1. */
int64_t cdad_params_find(const cdad_params *p, const char *name);

/* Registers a parameter, or checks that it is there with this shape. */
CDAD_MUST_USE cdad_status cdad_params_register(cdad_params *p, const char *name, cdad_shape shape, cdad_init init,
                                               cdad_error *err);

/* Undoes cdad_params_allocate. */
void cdad_params_release(cdad_params *p);

/* Forgets those registered after the first n, of a network that could not be built. Nothing where they are allocated. */
void cdad_params_forget(cdad_params *p, int64_t n);

/* Allocates the block and fills it by each parameter's rule; a value depends on (seed, name, index) only. */
CDAD_MUST_USE cdad_status cdad_params_allocate(cdad_params *p, uint64_t seed, cdad_error *err);

/* Copies parameter i from the host. */
CDAD_MUST_USE cdad_status cdad_params_write(cdad_params *p, int64_t i, const float *from, cdad_error *err);

/* Binds every PARAM value that the program uses to base + offset of the parameter of its name, where base has
 * the layout of p->values (the values themselves, or a moving average of them). */
struct cdad_program;
CDAD_MUST_USE cdad_status cdad_params_bind(const cdad_params *p, const float *base, const cdad_graph *g,
                                           struct cdad_program *program, cdad_error *err);

#endif

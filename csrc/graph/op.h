/* An op is one constant object: its name, attributes, shape rule, gradient rule and how it runs.
 *
 * A graph node points to its op; there is no list of op numbers and no parallel table. Adding an op means one
 * object in a file of ops/ and one line in ops/registry.c. */
#ifndef CDAD_GRAPH_OP_H
#define CDAD_GRAPH_OP_H

#include <stdint.h>

#include "base/context.h"
#include "base/status.h"

#define CDAD_MAX_DIMS 5
#define CDAD_MAX_INPUTS 8
#define CDAD_MAX_OUTPUTS 4
#define CDAD_MAX_ATTRS 10

typedef struct cdad_shape {
    int ndim;
    int64_t dim[CDAD_MAX_DIMS];
} cdad_shape;

/* A value's number in its graph; CDAD_NONE stands for an absent optional input. */
typedef int cdad_value;
#define CDAD_NONE (-1)

typedef enum { CDAD_ATTR_INT, CDAD_ATTR_FLOAT } cdad_attr_type;

typedef struct cdad_attr_spec {
    const char *name; /* NULL ends the list */
    cdad_attr_type type;
    double fallback; /* the value when it is not given */
} cdad_attr_spec;

typedef union cdad_attr {
    int64_t i;
    double f;
} cdad_attr;

/* What a shape rule is given and fills in. Absent optional inputs have ndim -1. */
typedef struct cdad_infer {
    int n_in;
    const cdad_shape *in;
    const cdad_attr *attr;
    cdad_shape *out; /* [op->n_out] */
} cdad_infer;

/* What a running op is given. Absent optional inputs are NULL. */
typedef struct cdad_call {
    int n_in;
    const float *const *in;
    const cdad_shape *in_shape;
    float *const *out;
    const cdad_shape *out_shape;
    const cdad_attr *attr;
    void *scratch;
    const float *sum; /* of CDAD_OP_EPILOGUE: what to add to output 0, of its shape; or NULL */
    int act;          /* and what to apply to that, a cdad_activation */
} cdad_call;

struct cdad_graph;
struct cdad_node;

enum {
    CDAD_OP_NO_GRAD = 1,  /* has no gradient rule: it is never on a path that wants one */
    CDAD_OP_IN_PLACE = 2, /* output 0 may take over the memory of input 0 when nobody else reads it */
    CDAD_OP_VIEW = 4,     /* output 0 has the same elements as input 0, and shares its memory if it can */
    CDAD_OP_STOP = 8,     /* gradients end here by intent */
    CDAD_OP_EPILOGUE = 16, /* takes over a following sum and activation (graph/fuse.h): cdad_call.sum and .act */
    CDAD_OP_WAITS = 32,    /* its kernel waits for the device: it cannot be recorded */
    CDAD_OP_PRODUCT = 128, /* its kernel is one product (`gemm`), whose first factor is input 0 */
    CDAD_OP_LINEAR = 64    /* output 0 is linear in input 1, a weight [O,...], whose row o gives its last dimension's element o */
};

typedef struct cdad_op {
    const char *name;
    int min_in, max_in, n_out;
    unsigned flags;
    const cdad_attr_spec *attrs; /* NULL: none */
    int activation;              /* elementwise: the cdad_activation that it applies to its input; 0: another op */

    /* Checks shapes and attributes, fills in the output shapes. All checks live here. */
    cdad_status (*infer)(const cdad_infer *args, cdad_error *err);

    /* Adds the nodes that compute the gradient: dout[j] is the gradient of output j (CDAD_NONE: zero),
     * din[i] is to be set for every input i with want[i] != 0 (CDAD_NONE: zero). */
    cdad_status (*grad)(struct cdad_graph *graph, const struct cdad_node *node, const cdad_value *dout,
                        const unsigned char *want, cdad_value *din, cdad_error *err);

    /* Floating-point operations of its products; NULL: none that count. */
    double (*flops)(const cdad_infer *args);

    /* Bytes of scratch for these shapes and so many threads; NULL: none. */
    int64_t (*scratch)(const cdad_infer *args, const struct cdad_kernels *kernels, int threads);

    cdad_status (*run)(const cdad_context *ctx, const cdad_call *call, cdad_error *err);
} cdad_op;

/* ops/registry.c: the op of that name, or NULL; op number i, or NULL past the end. */
const cdad_op *cdad_op_find(const char *name);
const cdad_op *cdad_op_at(int i);

/* Shape helpers (graph/shape.c). */
int cdad_shape_equal(const cdad_shape *a, const cdad_shape *b);
int64_t cdad_shape_count(const cdad_shape *s); /* elements; shapes in a graph were checked for overflow */
CDAD_MUST_USE cdad_status cdad_shape_check(const cdad_shape *s, cdad_error *err); /* dims >= 1, bytes fit */
#define CDAD_SHAPE_TEXT 96
const char *cdad_shape_text(const cdad_shape *s, char buffer[CDAD_SHAPE_TEXT]); /* "[2,16,16,32]" */
cdad_shape cdad_shape_make(int ndim, ...); /* ndim int64_t values */
/* The product of dims first .. last-1. */
int64_t cdad_shape_span(const cdad_shape *s, int first, int last);

#endif

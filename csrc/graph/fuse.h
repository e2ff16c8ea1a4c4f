/* Sums and activations that follow a product run in its epilogue: one pass over the result less for each. */
#ifndef CDAD_GRAPH_FUSE_H
#define CDAD_GRAPH_FUSE_H

#include "graph/graph.h"

/* A node that runs, and what it takes over of the nodes that followed it. */
typedef struct cdad_step {
    int64_t node;
    cdad_value out; /* what output 0 is then */
    cdad_value sum; /* is added to it, or CDAD_NONE */
    int act;        /* is applied to that: a cdad_activation */
} cdad_step;

/* Merges, where nothing else reads what lies between and it is not in `kept` [n_values], a step of CDAD_OP_EPILOGUE with
 * a following sum of two values of one shape, then with a following activation. *n_steps becomes the number that is left.
 * No bit of a result changes. */
CDAD_MUST_USE cdad_status cdad_fuse(const cdad_graph *g, cdad_step *steps, int64_t *n_steps, const unsigned char *kept,
                                    cdad_error *err);

#endif

/* A program: a graph's nodes that some outputs need, a place in one arena for every value, and how to run it. */
#ifndef CDAD_GRAPH_PROGRAM_H
#define CDAD_GRAPH_PROGRAM_H

#include "graph/graph.h"
#include "graph/workspace.h"

typedef struct cdad_program cdad_program;

/* Called before a node runs, with its input 0 in the host's memory and a context of the host, or with both where the program runs: how
 * features are collected while a model runs. */
typedef cdad_status (*cdad_tap_fn)(void *arg, const cdad_context *ctx, const cdad_node *node, const float *input,
                                   const cdad_shape *shape, cdad_error *err);

/* A value that is handed over while the program runs, as soon as no later node reads it or the parameter `spares`,
 * which may be written from then on. Its memory then serves other values. */
typedef struct cdad_handover {
    cdad_value value, spares;
} cdad_handover;

/* data is the value of handover number i, where the program runs. */
typedef cdad_status (*cdad_handover_fn)(void *arg, const cdad_context *ctx, int64_t i, const float *data,
                                        cdad_error *err);

typedef struct cdad_program_options {
    int64_t n_external, n_handovers;
    const cdad_value *external;     /* of the outputs, those without a place in the arena: they must be bound */
    const cdad_handover *handovers; /* values that need not be outputs */
    cdad_workspace *workspace; /* of the same device, which outlives the program; NULL: one of its own */
} cdad_program_options;

/* Plans `outputs` of `g`, which must outlive the program and not grow after, for ctx->device, on which all that is
 * bound lies. Outputs live in the workspace until a program of that workspace is made or runs. `options` may be NULL. */
CDAD_MUST_USE cdad_status cdad_program_new(cdad_program **out, const cdad_graph *g, int64_t n_outputs,
                                           const cdad_value *outputs, const cdad_program_options *options,
                                           const cdad_context *ctx, cdad_error *err);
void cdad_program_free(cdad_program *p); /* NULL is allowed */

/* Binds the memory of an input, a parameter or an external output. It is only read, except for outputs. */
CDAD_MUST_USE cdad_status cdad_program_bind(cdad_program *p, cdad_value v, const float *data, cdad_error *err);
/* Gives an input or a parameter from the host's memory: binds it there, or, on a device, copies it to memory that the
 * program keeps for it. */
CDAD_MUST_USE cdad_status cdad_program_feed(cdad_program *p, cdad_value v, const float *data, cdad_error *err);
/* The same from the memory of the program's device: copied, so that a recording finds it in its place. */
CDAD_MUST_USE cdad_status cdad_program_feed_there(cdad_program *p, cdad_value v, const float *data, cdad_error *err);
/* The memory of a value: of an output after a run, or what was bound. NULL: not in this program. */
float *cdad_program_data(const cdad_program *p, cdad_value v);
/* Copies a value to the host. */
CDAD_MUST_USE cdad_status cdad_program_read(const cdad_program *p, cdad_value v, float *to, cdad_error *err);
int cdad_program_uses(const cdad_program *p, cdad_value v);

/* Runs the tap before every node that reads param `weight` as input 1. there: with input and context where the program runs, not on the
 * host. fn NULL removes it. */
CDAD_MUST_USE cdad_status cdad_program_tap(cdad_program *p, cdad_value weight, cdad_tap_fn fn, void *arg, int there,
                                           cdad_error *err);

/* Who is handed the values of the options' handovers in the runs that follow; fn NULL: nobody. */
void cdad_program_hand_to(cdad_program *p, cdad_handover_fn fn, void *arg);

CDAD_MUST_USE cdad_status cdad_program_run(cdad_program *p, const cdad_context *ctx, cdad_error *err);

/* Peak bytes of the arena, known before the run, and what it takes of the workspace with scratch. */
int64_t cdad_program_arena_bytes(const cdad_program *p);
int64_t cdad_program_workspace_bytes(const cdad_program *p);
/* Floating-point operations of the products of a run, those of convolutions counted as direct sums. */
double cdad_program_flops(const cdad_program *p);
/* Whether the last run was replayed from a recording of an earlier one: on a device that can, from the second run with everything
 * in its place on. */
int cdad_program_is_recorded(const cdad_program *p);

#endif

/* A weighted basis S U^T (k directions of width d) of all features so far: what incremental streaming keeps.
 *
 * Features are appended to the k rows; when as many wait as there are directions, and at least `wait`, the rows [S U^T;
 * X] are factored on their smaller side (Brand, "Incremental singular value decomposition of uncertain data with
 * missing values", ECCV 2002; Ross et al., IJCV 2008, without the mean), and cdad_lowrank_cut says what stays. So the
 * result does not depend on how features are cut into blocks, bit by bit. `total`, the energy of all features, is
 * summed exactly; `loss` is what cuts took: G - A^T A is positive semi-definite, its trace is loss.energy and its
 * norm at most loss.spectral, to float32's rounding of the rows.
 *
 * A share of (1 - gamma)/4 of the energy may go, so that a basis can still reach gamma with hardly a direction too many. */
#ifndef CDAD_CONTINUAL_LOWRANK_H
#define CDAD_CONTINUAL_LOWRANK_H

#include "continual/factor.h"

enum { CDAD_LOWRANK_WAIT = 256 }; /* where nothing is known of what will come */

typedef struct cdad_lowrank_loss {
    double energy;   /* taken in all */
    double spectral; /* taken from any one direction at most */
} cdad_lowrank_loss;

typedef struct cdad_lowrank {
    int64_t d;
    int64_t wait; /* features that wait for a factorisation, at least */
    double share; /* of the energy that cuts may take to save directions */
    int narrow;   /* factorisations are products of float32: cdad_factor_may_narrow */
    int64_t k;    /* directions: the first rows of A, orthogonal, their squared lengths are energies */
    int64_t n;    /* rows: features from k on, as they came */
    int64_t capacity;
    float *A; /* [capacity,d] */
    double total;
    cdad_lowrank_loss loss;
    int torn; /* a failure left part of a block in, or half of the rows rotated */
} cdad_lowrank;

void cdad_lowrank_init(cdad_lowrank *v, int64_t d, int64_t wait, double share, int narrow);
void cdad_lowrank_reset(cdad_lowrank *v);

/* How many of n energies >= 0, descending, to keep: the tail of at most `allowed` together goes, and what is at most `noise`. */
int64_t cdad_lowrank_cut(const double *energies, int64_t n, double allowed, double noise, cdad_lowrank_loss *loss);

/* That directions and the features that wait take at most, if `columns` features come (0: any number). */
int64_t cdad_lowrank_bytes(int64_t d, int64_t wait, int64_t columns);

/* X [rows,d], already checked. Polls for a stop. A failure leaves `v` as it was or, once a block has been factored,
 * torn. */
CDAD_MUST_USE cdad_status cdad_lowrank_add(cdad_lowrank *v, const cdad_context *ctx, cdad_mat X, int64_t rows,
                                           cdad_error *err);

/* v also stands for what w, of the same width, stands for: w's rows are added, its energies and losses too. */
CDAD_MUST_USE cdad_status cdad_lowrank_merge(cdad_lowrank *v, const cdad_context *ctx, const cdad_lowrank *w,
                                             cdad_error *err);

/* What it keeps, and what cuts took. */
cdad_factor cdad_lowrank_factor(const cdad_lowrank *v);

/* Content as doubles, exact to the bit: k, n, total, both losses, then the rows. */
int64_t cdad_lowrank_packed(const cdad_lowrank *v);
void cdad_lowrank_pack(const cdad_lowrank *v, double *packed);
/* CDAD_INVALID: `n` doubles that hold no such content; `v` is then as it was. */
CDAD_MUST_USE cdad_status cdad_lowrank_unpack(cdad_lowrank *v, const double *packed, int64_t n, cdad_error *err);

#endif

/* Frequent Directions: what a stream of bounded rank gives up between two blocks, and what that guarantees.
 *
 * Where more than `limit` directions are left, the energy of the first one beyond, delta, is taken from the last fifth
 * of those that stay; what comes later and goes on coming is then not shut out by what came first, as it would be by
 * cutting alone (Ghashami, Liberty, Phillips, Woodruff, "Frequent Directions", SIAM J. Comput. 2016; shrinking a share
 * alpha of the directions: Desai, Ghashami, Phillips, "Improved Practical Matrix Sketching with Guarantees", TKDE 2016,
 * alpha = 0.2 after their measurements).
 *
 * With A all features and B what is kept, for every x of length 1 and every k < limit / 5:
 *     0 <= |A x|^2 - |B x|^2 <= spectral <= (|A - A_k|_F^2 + (limit/5) allowed) / (limit/5 - k),
 * where A_k is A's best approximation of rank k, spectral the sum over all cuts of the largest energy taken, and
 * `allowed` what the cuts by energy (cdad_sketch_cut) took together at most. So a basis that keeps an energy E of B
 * keeps at least E of A. `lost`, all that was taken, is |A|_F^2 - |B|_F^2: what a basis of all of B may miss at most,
 * measured, not estimated. */
#ifndef CDAD_CONTINUAL_SKETCH_H
#define CDAD_CONTINUAL_SKETCH_H

#include <stdint.h>

typedef struct cdad_sketch_loss {
    double energy;   /* taken in all */
    double spectral; /* taken from any one direction at most */
} cdad_sketch_loss;

/* How many of n energies >= 0, descending, to keep: the tail of at most `allowed` together goes, and what is at most
 * `noise`, and all but the first `limit`. energies[0..k) become what the kept directions have left. */
int64_t cdad_sketch_cut(double *energies, int64_t n, double allowed, double noise, int64_t limit,
                        cdad_sketch_loss *loss);

#endif

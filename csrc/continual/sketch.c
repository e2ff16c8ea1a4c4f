/* The rule of Frequent Directions. */
#include "continual/sketch.h"

enum { SHRUNK_SHARE = 5 }; /* one direction in five loses energy: alpha = 0.2 */

int64_t cdad_sketch_cut(double *energies, int64_t n, double allowed, double noise, int64_t limit,
                        cdad_sketch_loss *loss) {
    double tail = 0;
    int64_t k = n;
    *loss = (cdad_sketch_loss){0};
    while (k > 0 && (energies[k - 1] <= noise || tail + energies[k - 1] <= allowed))
        tail += energies[--k];
    if (k > limit) {
        const double delta = energies[limit];
        for (; k > limit; k--)
            tail += energies[k - 1];
        for (int64_t i = limit - (limit + SHRUNK_SHARE - 1) / SHRUNK_SHARE; i < limit; i++) {
            energies[i] -= delta;
            tail += delta;
        }
        loss->spectral = delta;
        while (k > 0 && energies[k - 1] <= noise) /* as large as delta itself: nothing is left */
            tail += energies[--k];
    } else if (k < n) {
        loss->spectral = energies[k];
    }
    loss->energy = tail;
    return k;
}

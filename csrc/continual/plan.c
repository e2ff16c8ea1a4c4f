/* Choosing a stream's method. */
#include "continual/plan.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>

#include "continual/isvd.h"
#include "continual/linalg.h"
#include "continual/lowrank.h"
#include "continual/sketch.h"

enum {
    EXACT_ALWAYS = 4096,
    EXACT_WIDEST = 6144,
    SKETCH_SHARE = 8, /* of the width: directions of a sketch */
    SKETCH_LEAST = 256,
    SKETCH_MOST = 1024, /* sums grow with it, and the cube of it is what a basis takes */
    RANK_LEAST = 64     /* of a sketch that memory limits */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static cdad_stream_method choose(int64_t d, double gamma, int64_t columns) {
    if (1 - gamma < 4 * (double)FLT_EPSILON * sqrt((double)d))
        return CDAD_STREAM_INCREMENTAL;
    if (d <= EXACT_ALWAYS)
        return CDAD_STREAM_EXACT;
    if (columns > 0 && columns <= d)
        return CDAD_STREAM_INCREMENTAL;
    return d <= EXACT_WIDEST ? CDAD_STREAM_EXACT : CDAD_STREAM_SKETCH;
}

static int64_t bytes_of(const cdad_stream_plan *p, int64_t columns) {
    if (p->method == CDAD_STREAM_EXACT)
        return cdad_gram_bytes(p->d);
    if (p->method == CDAD_STREAM_ISVD)
        return cdad_isvd_bytes(p->d);
    return p->method == CDAD_STREAM_SKETCH ? cdad_sketch_bytes(p->d, p->rank) : cdad_lowrank_bytes(p->d, p->wait, columns);
}

cdad_status cdad_stream_plan_make(cdad_stream_plan *plan, int64_t d, cdad_stream_method method, double gamma,
                                  const cdad_stream_hints *hints, cdad_error *err) {
    const cdad_stream_hints h = hints ? *hints : (cdad_stream_hints){0};
    CDAD_FAIL_IF(d < 1 || d > CDAD_LINALG_MAX, err, CDAD_SHAPE,
                 "stream: features of width %" PRId64 ", expected 1 to %d", d, CDAD_LINALG_MAX);
    CDAD_FAIL_IF(!(gamma > 0 && gamma <= 1), err, CDAD_INVALID,
                 "stream: energy threshold gamma is %g, expected above 0 and at most 1", gamma);
    CDAD_FAIL_IF((int)method < CDAD_STREAM_EXACT || method > CDAD_STREAM_AUTO, err, CDAD_INVALID,
                 "stream: method %d is unknown", (int)method);
    CDAD_FAIL_IF(h.columns < 0 || h.memory < 0 || h.rank < 0, err, CDAD_INVALID,
                 "stream: %" PRId64 " columns, %" PRId64 " bytes, rank %" PRId64 ": none may be negative", h.columns,
                 h.memory, h.rank);
    *plan = (cdad_stream_plan){.d = d, .method = method, .gamma = gamma, .rank = d, .wait = CDAD_LOWRANK_WAIT,
                               .chosen = method == CDAD_STREAM_AUTO};
    if (plan->chosen)
        plan->method = choose(d, gamma, h.columns);
    if (plan->chosen && plan->method == CDAD_STREAM_EXACT)
        plan->rounding = cdad_gram_rounding_for(d, gamma, h.columns);
    if (plan->method == CDAD_STREAM_INCREMENTAL && h.columns <= d)
        plan->wait = max64(h.columns, plan->wait);
    if (plan->method == CDAD_STREAM_SKETCH) {
        plan->rank = min64(max64(d / SKETCH_SHARE, SKETCH_LEAST), SKETCH_MOST);
        if (h.memory > 0) /* it grows by as much with each two directions as with the two before, up to where it holds all */
            plan->rank = max64(2 * ((h.memory - cdad_sketch_bytes(d, 0)) / (cdad_sketch_bytes(d, 2) - cdad_sketch_bytes(d, 0))), RANK_LEAST);
        if (h.rank > 0)
            plan->rank = h.rank;
        plan->rank = min64(plan->rank, d);
    }
    plan->bytes = bytes_of(plan, h.columns);
    return CDAD_OK;
}

static int64_t sum_bytes(const cdad_stream_plan *plans, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += plans[i].bytes;
    return sum;
}

/* The widest chosen stream, of the sketches or of the others, that another plan would shrink; *smaller is that plan.
 * NULL: none. */
static cdad_stream_plan *widest(cdad_stream_plan *plans, int64_t n, int sketches, cdad_stream_plan *smaller) {
    cdad_stream_plan *found = NULL;
    for (int64_t i = 0; i < n; i++) {
        cdad_stream_plan next = plans[i];
        if (!next.chosen || (next.method == CDAD_STREAM_SKETCH) != sketches || (found && next.d <= found->d))
            continue;
        if (sketches)
            next.rank /= 2;
        else
            next.rank = min64(min64(max64(next.d / SKETCH_SHARE, SKETCH_LEAST), SKETCH_MOST), next.d);
        next.method = CDAD_STREAM_SKETCH;
        next.wait = CDAD_LOWRANK_WAIT;
        next.rounding = CDAD_GRAM_PLAIN;
        next.bytes = bytes_of(&next, 0);
        if (next.rank < RANK_LEAST || next.bytes >= plans[i].bytes)
            continue;
        found = &plans[i];
        *smaller = next;
    }
    return found;
}

int64_t cdad_stream_plans_fit(cdad_stream_plan *plans, int64_t n, int64_t memory) {
    int64_t sum = sum_bytes(plans, n);
    while (sum > memory) {
        cdad_stream_plan smaller, *p = widest(plans, n, 0, &smaller);
        if (!p)
            p = widest(plans, n, 1, &smaller);
        if (!p)
            break;
        sum -= p->bytes - smaller.bytes;
        *p = smaller;
    }
    return sum;
}

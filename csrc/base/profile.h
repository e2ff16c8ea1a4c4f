/* Where the time goes: an event for every node that runs and every optimiser step, while somebody asks. */
#ifndef CDAD_BASE_PROFILE_H
#define CDAD_BASE_PROFILE_H

#include <stdint.h>

#include "base/status.h"

typedef struct cdad_profile cdad_profile;

typedef struct cdad_event {
    const char *op;       /* static */
    char name[96];        /* of the weight that the node reads or makes the gradient of; "" where there is none */
    char shape[96];       /* of the first output */
    double start, seconds; /* by cdad_clock */
    double flops;         /* of its products, additions and multiplications counted apart; 0: it only moves memory */
    int64_t bytes;        /* of its inputs and outputs together */
} cdad_event;

/* Seconds of a clock that only moves forward. */
double cdad_clock(void);

CDAD_MUST_USE cdad_status cdad_profile_new(cdad_profile **out, cdad_error *err);

/* Any thread may add; events of one thread come in their order. */
CDAD_MUST_USE cdad_status cdad_profile_add(cdad_profile *p, const cdad_event *event, cdad_error *err);
/* Whether events are kept (not at first). Switching it on drops what was kept before. */
void cdad_profile_switch(cdad_profile *p, int on);
int cdad_profile_is_on(const cdad_profile *p);
/* At any time, a copy of event i: whether there is one. */
int cdad_profile_get(cdad_profile *p, int64_t i, cdad_event *out);

#endif

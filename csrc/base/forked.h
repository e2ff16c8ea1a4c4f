/* What a child of a fork has to make anew: other threads do not survive, and what they held stays held. */
#ifndef CDAD_BASE_FORKED_H
#define CDAD_BASE_FORKED_H

typedef struct cdad_forked {
    struct cdad_forked *prev, *next;
    void (*renew)(struct cdad_forked *self);
} cdad_forked;

/* From now on every child begins with self->renew, in the thread that forked. */
void cdad_forked_watch(cdad_forked *self);
void cdad_forked_unwatch(cdad_forked *self);

#endif

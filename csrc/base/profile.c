/* Events of a profile: one array behind a lock. */
#include "base/profile.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/forked.h"
#include "base/memory.h"

struct cdad_profile {
    cdad_forked forked; /* its first member */
    pthread_mutex_t lock;
    atomic_int on;
    cdad_event *events;
    int64_t n, capacity;
};

double cdad_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Of a child of a fork: another thread may have been adding. What was kept stays the parent's. */
static void renew(cdad_forked *forked) {
    cdad_profile *p = (cdad_profile *)forked;
    pthread_mutex_init(&p->lock, NULL);
    p->events = NULL;
    p->n = p->capacity = 0;
}

cdad_status cdad_profile_new(cdad_profile **out, cdad_error *err) {
    *out = NULL;
    void *p;
    CDAD_TRY(cdad_alloc_zero(&p, sizeof(cdad_profile), err));
    *out = p;
    pthread_mutex_init(&(*out)->lock, NULL);
    (*out)->forked.renew = renew;
    cdad_forked_watch(&(*out)->forked);
    return CDAD_OK;
}

static cdad_status append(cdad_profile *p, const cdad_event *event, cdad_error *err) {
    if (!atomic_load(&p->on)) /* switched off since the work began */
        return CDAD_OK;
    if (p->n == p->capacity)
        CDAD_TRY(cdad_grow((void **)&p->events, p->n, &p->capacity, sizeof *p->events, err));
    p->events[p->n++] = *event;
    return CDAD_OK;
}

cdad_status cdad_profile_add(cdad_profile *p, const cdad_event *event, cdad_error *err) {
    pthread_mutex_lock(&p->lock);
    const cdad_status status = append(p, event, err);
    pthread_mutex_unlock(&p->lock);
    return status;
}

void cdad_profile_switch(cdad_profile *p, int on) {
    pthread_mutex_lock(&p->lock);
    if (on)
        p->n = 0;
    atomic_store(&p->on, on);
    pthread_mutex_unlock(&p->lock);
}

int cdad_profile_is_on(const cdad_profile *p) { return atomic_load(&p->on); }

int cdad_profile_get(cdad_profile *p, int64_t i, cdad_event *out) {
    pthread_mutex_lock(&p->lock);
    const int found = i >= 0 && i < p->n;
    if (found)
        *out = p->events[i];
    pthread_mutex_unlock(&p->lock);
    return found;
}

/* What a child of a fork has to make anew. */
#include "base/forked.h"

#include <pthread.h>
#include <stddef.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cdad_forked *all;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before(void) { pthread_mutex_lock(&lock); }
static void in_parent(void) { pthread_mutex_unlock(&lock); }
static void in_child(void) {
    pthread_mutex_init(&lock, NULL);
    for (cdad_forked *f = all; f; f = f->next)
        f->renew(f);
}
static void begin(void) { pthread_atfork(before, in_parent, in_child); }

void cdad_forked_watch(cdad_forked *self) {
    pthread_once(&once, begin);
    pthread_mutex_lock(&lock);
    self->prev = NULL;
    self->next = all;
    if (all)
        all->prev = self;
    all = self;
    pthread_mutex_unlock(&lock);
}

void cdad_forked_unwatch(cdad_forked *self) {
    pthread_mutex_lock(&lock);
    *(self->prev ? &self->prev->next : &all) = self->next;
    if (self->next)
        self->next->prev = self->prev;
    pthread_mutex_unlock(&lock);
}

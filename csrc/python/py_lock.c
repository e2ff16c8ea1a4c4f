/* Locks of stateful objects. */
#include "python/bindings.h"

#include <errno.h>

/* Of a child of a fork: what another thread held is free; the forking thread goes on with what is its own. */
static void renew(cdad_forked *forked) {
    cdad_py_lock *lock = (cdad_py_lock *)forked; /* its first member */
    if (cdad_py_lock_is_mine(lock))
        return;
    lock->holder = 0;
    sem_init(&lock->free, 0, 1);
}

void cdad_py_lock_init(cdad_py_lock *lock) {
    lock->holder = 0;
    sem_init(&lock->free, 0, 1);
    lock->forked.renew = renew;
    cdad_forked_watch(&lock->forked);
}

void cdad_py_lock_destroy(cdad_py_lock *lock) {
    cdad_forked_unwatch(&lock->forked);
    sem_destroy(&lock->free);
}

int cdad_py_lock_take(cdad_py_lock *lock) {
    if (cdad_py_lock_is_mine(lock)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "it is in use by this very call: what a signal's handler or a callback runs meanwhile cannot use it too");
        return -1;
    }
    int taken = sem_trywait(&lock->free) == 0;
    while (!taken) {
        int interrupted;
        Py_BEGIN_ALLOW_THREADS
        taken = sem_wait(&lock->free) == 0;
        interrupted = !taken && errno == EINTR;
        Py_END_ALLOW_THREADS
        if (interrupted && PyErr_CheckSignals() < 0)
            return -1;
    }
    lock->holder = PyThread_get_thread_ident();
    return 0;
}

void cdad_py_lock_give(cdad_py_lock *lock) {
    lock->holder = 0;
    sem_post(&lock->free);
}

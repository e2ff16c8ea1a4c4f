/* One way to fail: a status code, and a message in an error record that the caller owns.
 *
 * A function that can fail returns cdad_status and takes `cdad_error *err` last. It never aborts, exits or
 * prints. A function that owns something has one `done:` label where it is released. */
#ifndef CDAD_BASE_STATUS_H
#define CDAD_BASE_STATUS_H

#include <stdint.h>

typedef enum {
    CDAD_OK = 0,
    CDAD_INVALID,    /* a wrong argument or attribute -> ValueError */
    CDAD_SHAPE,      /* shapes that do not fit -> ValueError */
    CDAD_NO_MEMORY,  /* -> MemoryError */
    CDAD_NOT_FINITE, /* a NaN or infinity where none may be -> cdad.TrainingError */
    CDAD_LAPACK,     /* a factorisation that does not converge -> RuntimeError */
    CDAD_CANCELLED,  /* the caller asked to stop -> the pending Python exception */
    CDAD_NO_DEVICE   /* a device that is not there, or that fails -> RuntimeError */
} cdad_status_code;

#define CDAD_MUST_USE __attribute__((warn_unused_result))
typedef int cdad_status; /* a cdad_status_code; functions that return it are marked CDAD_MUST_USE */

typedef struct cdad_error {
    cdad_status status;
    char message[512];
} cdad_error;

/* Records the failure in `err` (which may be NULL) and returns `status`. */
cdad_status cdad_fail(cdad_error *err, cdad_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "where: " before the message already in `err`; returns err->status. */
cdad_status cdad_fail_in(cdad_error *err, const char *where);

#define CDAD_TRY(expr)                   \
    do {                                 \
        cdad_status status_ = (expr);    \
        if (status_ != CDAD_OK)          \
            return status_;              \
    } while (0)

/* For functions that own something: needs a local `cdad_status status` and a label `done`. */
#define CDAD_TRY_DONE(expr)   \
    do {                      \
        status = (expr);      \
        if (status != CDAD_OK) \
            goto done;        \
    } while (0)

#define CDAD_FAIL_IF(cond, err, status, ...)            \
    do {                                                \
        if (cond)                                       \
            return cdad_fail((err), (status), __VA_ARGS__); \
    } while (0)

#endif

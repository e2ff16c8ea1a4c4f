/* Failure records. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

cdad_status cdad_fail(cdad_error *err, cdad_status status, const char *format, ...) {
    if (err) {
        va_list list;
        err->status = status;
        va_start(list, format);
        vsnprintf(err->message, sizeof err->message, format, list);
        va_end(list);
    }
    return status;
}

cdad_status cdad_fail_in(cdad_error *err, const char *where) {
    if (!err)
        return CDAD_INVALID;
    char message[sizeof err->message];
    memcpy(message, err->message, sizeof message);
    return cdad_fail(err, err->status, "%s: %s", where, message);
}

/* Shapes: counting, comparing, printing. */
#include <stdarg.h>
#include <stdio.h>

#include "base/memory.h"
#include "graph/op.h"

int cdad_shape_equal(const cdad_shape *a, const cdad_shape *b) {
    if (a->ndim != b->ndim)
        return 0;
    for (int i = 0; i < a->ndim; i++)
        if (a->dim[i] != b->dim[i])
            return 0;
    return 1;
}

int64_t cdad_shape_span(const cdad_shape *s, int first, int last) {
    int64_t n = 1;
    for (int i = first; i < last; i++)
        n *= s->dim[i];
    return n;
}

int64_t cdad_shape_count(const cdad_shape *s) { return cdad_shape_span(s, 0, s->ndim); }

cdad_status cdad_shape_check(const cdad_shape *s, cdad_error *err) {
    CDAD_FAIL_IF(s->ndim < 0 || s->ndim > CDAD_MAX_DIMS, err, CDAD_SHAPE, "%d dimensions; at most %d are possible",
                 s->ndim, CDAD_MAX_DIMS);
    int64_t bytes = sizeof(float);
    for (int i = 0; i < s->ndim; i++) {
        char text[CDAD_SHAPE_TEXT];
        CDAD_FAIL_IF(s->dim[i] < 1, err, CDAD_SHAPE, "shape %s has an empty dimension", cdad_shape_text(s, text));
        CDAD_TRY(cdad_size_mul(bytes, s->dim[i], &bytes, err));
    }
    return CDAD_OK;
}

const char *cdad_shape_text(const cdad_shape *s, char buffer[CDAD_SHAPE_TEXT]) {
    int at = snprintf(buffer, CDAD_SHAPE_TEXT, "[");
    for (int i = 0; i < s->ndim && at < CDAD_SHAPE_TEXT - 24; i++)
        at += snprintf(buffer + at, (size_t)(CDAD_SHAPE_TEXT - at), "%s%lld", i ? "," : "", (long long)s->dim[i]);
    snprintf(buffer + at, (size_t)(CDAD_SHAPE_TEXT - at), "]");
    return buffer;
}

cdad_shape cdad_shape_make(int ndim, ...) {
    cdad_shape s = {.ndim = ndim};
    va_list list;
    va_start(list, ndim);
    for (int i = 0; i < ndim; i++)
        s.dim[i] = va_arg(list, int64_t);
    va_end(list);
    return s;
}

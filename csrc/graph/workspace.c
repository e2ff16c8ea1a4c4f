/* Memory that programs share. */
#include "graph/workspace.h"

#include <stddef.h>

void cdad_workspace_clear(cdad_workspace *w) {
    cdad_device_free(w->device, w->data);
    w->data = NULL;
    w->bytes = 0;
}

cdad_status cdad_workspace_reserve(cdad_workspace *w, int64_t bytes, cdad_error *err) {
    if (w->data && w->bytes >= bytes)
        return CDAD_OK;
    cdad_workspace_clear(w); /* first: both at once may not fit */
    CDAD_TRY(cdad_device_alloc(w->device, (void **)&w->data, bytes, err));
    w->bytes = bytes;
    return CDAD_OK;
}

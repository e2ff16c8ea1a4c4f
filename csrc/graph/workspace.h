/* Memory in which programs work that run one at a time: each begins at its start, so that together they take what the largest
 * does. */
#ifndef CDAD_GRAPH_WORKSPACE_H
#define CDAD_GRAPH_WORKSPACE_H

#include "base/device.h"

typedef struct cdad_workspace {
    cdad_device *device;
    char *data; /* NULL: nothing is reserved */
    int64_t bytes;
} cdad_workspace;

/* Makes it hold `bytes` at least. What it held is lost where it grows, or fails. */
CDAD_MUST_USE cdad_status cdad_workspace_reserve(cdad_workspace *w, int64_t bytes, cdad_error *err);
void cdad_workspace_clear(cdad_workspace *w);

#endif

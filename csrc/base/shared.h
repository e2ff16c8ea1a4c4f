/* Memory with several owners, as of what is shown to a caller who may keep it longer: it goes with the last of them. */
#ifndef CDAD_BASE_SHARED_H
#define CDAD_BASE_SHARED_H

#include "base/device.h"

typedef struct cdad_shared cdad_shared;

/* `bytes` of zeros where `device` is, with one owner. */
CDAD_MUST_USE cdad_status cdad_shared_new(cdad_shared **out, cdad_device *device, int64_t bytes, cdad_error *err);
void cdad_shared_hold(cdad_shared *s); /* one owner more */
void cdad_shared_drop(cdad_shared *s); /* one less; NULL is allowed */

void *cdad_shared_data(const cdad_shared *s);

#endif

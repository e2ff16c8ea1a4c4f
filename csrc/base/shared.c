/* Memory with several owners. */
#include "base/shared.h"

#include <stdatomic.h>

#include "base/memory.h"

struct cdad_shared {
    atomic_int owners;
    cdad_device *device;
    void *data;
};

cdad_status cdad_shared_new(cdad_shared **out, cdad_device *device, int64_t bytes, cdad_error *err) {
    cdad_shared *s;
    *out = NULL;
    CDAD_TRY(cdad_alloc((void **)&s, (int64_t)sizeof *s, err));
    const cdad_status status = cdad_device_alloc_zero(device, &s->data, bytes, err);
    if (status != CDAD_OK) {
        cdad_free(s);
        return status;
    }
    s->device = device;
    atomic_init(&s->owners, 1);
    *out = s;
    return CDAD_OK;
}

void cdad_shared_hold(cdad_shared *s) { atomic_fetch_add(&s->owners, 1); }

void cdad_shared_drop(cdad_shared *s) {
    if (!s || atomic_fetch_sub(&s->owners, 1) > 1)
        return;
    cdad_device_free(s->device, s->data);
    cdad_free(s);
}

void *cdad_shared_data(const cdad_shared *s) { return s->data; }

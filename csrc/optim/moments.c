/* Moments as float32, bfloat16 and 8 bit. */
#include "optim/moments.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/bfloat16.h"
#include "kernels/dynamic8.h"

static int is_coded(const cdad_param *p, cdad_moment_format format) {
    return format == CDAD_MOMENT_8BIT && p->count >= CDAD_SMALL8;
}

static int64_t element_of(const cdad_param *p, cdad_moment_format format) {
    return is_coded(p, format) ? 1 : format == CDAD_MOMENT_BFLOAT16 ? sizeof(uint16_t) : sizeof(float);
}

static int64_t blocks_of(const cdad_param *p) { return (p->count + CDAD_BLOCK8 - 1) / CDAD_BLOCK8; }

/* From a parameter's first byte to the next one's. */
static int64_t bytes_of(const cdad_param *p, cdad_moment_format format) {
    const int64_t largest = is_coded(p, format) ? cdad_align_up(blocks_of(p) * (int64_t)sizeof(float)) : 0;
    if (format == CDAD_MOMENT_8BIT)
        return cdad_align_up(p->count * element_of(p, format)) + largest;
    return cdad_align_up(p->count * (int64_t)sizeof(float)) / (int64_t)sizeof(float) * element_of(p, format);
}

int64_t cdad_moment_element(const cdad_params *params, cdad_moment_format format, int64_t i) {
    return element_of(&params->items[i], format);
}

int64_t cdad_moment_bytes(const cdad_params *params, cdad_moment_format format) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < params->n; i++)
        bytes += bytes_of(&params->items[i], format);
    return bytes;
}

cdad_status cdad_moment_new(cdad_moment *out, const cdad_params *params, cdad_moment_format format, int is_signed,
                            cdad_error *err) {
    *out = (cdad_moment){.params = params, .format = format, .is_signed = is_signed};
    CDAD_TRY(cdad_alloc((void **)&out->at, params->n * (int64_t)sizeof *out->at, err));
    int64_t at = 0;
    for (int64_t i = 0; i < params->n; i++) {
        out->at[i] = at;
        at += bytes_of(&params->items[i], format);
    }
    return cdad_device_alloc_zero(params->device, &out->data, at, err);
}

void cdad_moment_free(cdad_moment *m) {
    if (m->params)
        cdad_device_free(m->params->device, m->data);
    cdad_free(m->at);
}

cdad_status cdad_moment_zero(cdad_moment *m, cdad_error *err) {
    return cdad_device_zero(m->params->device, m->data, cdad_moment_bytes(m->params, m->format), err);
}

/* The largest of the blocks of a parameter that begins there, or NULL. */
static float *most_of(const cdad_param *p, cdad_moment_format format, void *begin) {
    return is_coded(p, format) ? (float *)((char *)begin + cdad_align_up(p->count)) : NULL;
}

void *cdad_moment_of(const cdad_moment *m, int64_t i, float **most) {
    void *const begin = (char *)m->data + m->at[i];
    *most = most_of(&m->params->items[i], m->format, begin);
    return begin;
}

static void decode(const cdad_param *p, cdad_moment_format format, int is_signed, const void *begin, float *to) {
    const float *most = most_of(p, format, (void *)(uintptr_t)begin);
    if (most && is_signed)
        cdad_decode8(1, to, begin, most, p->count);
    else if (most)
        cdad_decode8(0, to, begin, most, p->count);
    else if (format == CDAD_MOMENT_BFLOAT16)
        for (int64_t i = 0; i < p->count; i++)
            to[i] = cdad_from_bf16(((const uint16_t *)begin)[i]);
    else
        memcpy(to, begin, (size_t)p->count * sizeof *to);
}

static void encode(const cdad_param *p, cdad_moment_format format, int is_signed, const float *from, void *begin) {
    float *most = most_of(p, format, begin);
    if (most && is_signed)
        cdad_encode8(1, begin, most, from, p->count);
    else if (most)
        cdad_encode8(0, begin, most, from, p->count);
    else if (format == CDAD_MOMENT_BFLOAT16)
        for (int64_t i = 0; i < p->count; i++)
            ((uint16_t *)begin)[i] = cdad_to_bf16(from[i]);
    else
        memcpy(begin, from, (size_t)p->count * sizeof *from);
}

cdad_status cdad_moment_set(cdad_moment *m, cdad_moment_format format, const void *block, cdad_error *err) {
    cdad_device *const device = m->params->device;
    cdad_status status = CDAD_OK;
    int64_t most = 0, at = 0;
    float *values = NULL;
    void *kept = NULL;
    if (format == m->format)
        return cdad_device_upload(device, m->data, block, cdad_moment_bytes(m->params, format), err);
    for (int64_t i = 0; i < m->params->n; i++)
        most = m->params->items[i].count > most ? m->params->items[i].count : most;
    CDAD_TRY_DONE(cdad_alloc((void **)&values, most * (int64_t)sizeof *values, err));
    CDAD_TRY_DONE(cdad_alloc(&kept, cdad_align_up(most * (int64_t)sizeof(float)), err)); /* no way needs more */
    for (int64_t i = 0; i < m->params->n; i++) {
        const cdad_param *p = &m->params->items[i];
        const int64_t bytes = bytes_of(p, m->format);
        memset(kept, 0, (size_t)bytes);
        decode(p, format, m->is_signed, (const char *)block + at, values);
        encode(p, m->format, m->is_signed, values, kept);
        CDAD_TRY_DONE(cdad_device_upload(device, (char *)m->data + m->at[i], kept, bytes, err));
        at += bytes_of(p, format);
    }
done:
    cdad_free(values);
    cdad_free(kept);
    return status;
}

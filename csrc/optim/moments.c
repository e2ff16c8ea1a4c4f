/* Moments as float32, bfloat16 and 8 bit. */
#include "optim/moments.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/bfloat16.h"
#include "kernels/dynamic8.h"

static int is_coded(int64_t count, cdad_moment_format format) { return format == CDAD_MOMENT_8BIT && count >= CDAD_SMALL8; }

int64_t cdad_moment_element(int64_t count, cdad_moment_format format) {
    return is_coded(count, format) ? 1 : format == CDAD_MOMENT_BFLOAT16 ? sizeof(uint16_t) : sizeof(float);
}

static int64_t blocks_of(int64_t count) { return (count + CDAD_BLOCK8 - 1) / CDAD_BLOCK8; }

/* From a parameter's first byte to the next one's. */
static int64_t bytes_of(int64_t count, cdad_moment_format format) {
    const int64_t largest = is_coded(count, format) ? cdad_align_up(blocks_of(count) * (int64_t)sizeof(float)) : 0;
    if (format == CDAD_MOMENT_8BIT)
        return cdad_align_up(count * cdad_moment_element(count, format)) + largest;
    return cdad_align_up(count * (int64_t)sizeof(float)) / (int64_t)sizeof(float) * cdad_moment_element(count, format);
}

int64_t cdad_moment_bytes(const int64_t *counts, int64_t n, cdad_moment_format format) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < n; i++)
        bytes += bytes_of(counts[i], format);
    return bytes;
}

cdad_status cdad_moment_new(cdad_moment *out, cdad_device *device, const int64_t *counts, int64_t n, cdad_moment_format format,
                            int is_signed, cdad_error *err) {
    cdad_status status;
    *out = (cdad_moment){.format = format, .is_signed = is_signed, .n = n, .device = device};
    CDAD_TRY_DONE(cdad_alloc((void **)&out->counts, n * (int64_t)sizeof *out->counts, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&out->at, n * (int64_t)sizeof *out->at, err));
    for (int64_t i = 0; i < n; i++) {
        out->counts[i] = counts[i];
        out->at[i] = out->bytes;
        out->bytes += bytes_of(counts[i], format);
    }
    CDAD_TRY_DONE(cdad_shared_new(&out->memory, device, out->bytes, err));
done:
    if (status != CDAD_OK)
        cdad_moment_free(out);
    return status;
}

void cdad_moment_free(cdad_moment *m) {
    cdad_shared_drop(m->memory);
    cdad_free(m->counts);
    cdad_free(m->at);
    *m = (cdad_moment){0};
}

int cdad_moment_fits(const cdad_moment *m, const int64_t *counts) {
    return m->memory && memcmp(m->counts, counts, (size_t)m->n * sizeof *counts) == 0;
}

cdad_status cdad_moment_take(cdad_moment *m, const cdad_moment *from, cdad_error *err) {
    float *most;
    for (int64_t i = 0; i < m->n; i++)
        if (m->counts[i] == from->counts[i])
            CDAD_TRY(cdad_device_copy(m->device, cdad_moment_of(m, i, &most), cdad_moment_of(from, i, &most),
                                      bytes_of(m->counts[i], m->format), err));
    return CDAD_OK;
}

void *cdad_moment_data(const cdad_moment *m) { return cdad_shared_data(m->memory); }

/* The largest of the blocks of a parameter that begins there, or NULL. */
static float *most_of(int64_t count, cdad_moment_format format, void *begin) {
    return is_coded(count, format) ? (float *)((char *)begin + cdad_align_up(count)) : NULL;
}

void *cdad_moment_of(const cdad_moment *m, int64_t i, float **most) {
    void *const begin = (char *)cdad_moment_data(m) + m->at[i];
    *most = most_of(m->counts[i], m->format, begin);
    return begin;
}

static void decode(int64_t count, cdad_moment_format format, int is_signed, const void *begin, float *to) {
    const float *most = most_of(count, format, (void *)(uintptr_t)begin);
    if (most && is_signed)
        cdad_decode8(1, to, begin, most, count);
    else if (most)
        cdad_decode8(0, to, begin, most, count);
    else if (format == CDAD_MOMENT_BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            to[i] = cdad_from_bf16(((const uint16_t *)begin)[i]);
    else
        memcpy(to, begin, (size_t)count * sizeof *to);
}

static void encode(int64_t count, cdad_moment_format format, int is_signed, const float *from, void *begin) {
    float *most = most_of(count, format, begin);
    if (most && is_signed)
        cdad_encode8(1, begin, most, from, count);
    else if (most)
        cdad_encode8(0, begin, most, from, count);
    else if (format == CDAD_MOMENT_BFLOAT16)
        for (int64_t i = 0; i < count; i++)
            ((uint16_t *)begin)[i] = cdad_to_bf16(from[i]);
    else
        memcpy(begin, from, (size_t)count * sizeof *from);
}

cdad_status cdad_moment_set(cdad_moment *m, cdad_moment_format format, const void *block, cdad_error *err) {
    cdad_status status = CDAD_OK;
    int64_t most = 0, at = 0;
    float *values = NULL;
    void *kept = NULL;
    if (format == m->format)
        return cdad_device_upload(m->device, cdad_moment_data(m), block, m->bytes, err);
    for (int64_t i = 0; i < m->n; i++)
        most = m->counts[i] > most ? m->counts[i] : most;
    CDAD_TRY_DONE(cdad_alloc((void **)&values, most * (int64_t)sizeof *values, err));
    CDAD_TRY_DONE(cdad_alloc(&kept, cdad_align_up(most * (int64_t)sizeof(float)), err)); /* no way needs more */
    for (int64_t i = 0; i < m->n; i++) {
        const int64_t count = m->counts[i], bytes = bytes_of(count, m->format);
        memset(kept, 0, (size_t)bytes);
        decode(count, format, m->is_signed, (const char *)block + at, values);
        encode(count, m->format, m->is_signed, values, kept);
        CDAD_TRY_DONE(cdad_device_upload(m->device, (char *)cdad_moment_data(m) + m->at[i], kept, bytes, err));
        at += bytes_of(count, format);
    }
done:
    cdad_free(values);
    cdad_free(kept);
    return status;
}

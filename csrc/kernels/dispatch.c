/* Which tables this build holds, and which of them this processor and operating system can run. */
#include <string.h>

#include "kernels/kernels.h"

extern const cdad_kernels cdad_kernels_portable;
#ifdef CDAD_HAVE_X86
extern const cdad_kernels cdad_kernels_avx2, cdad_kernels_avx512;

/* __builtin_cpu_supports asks the operating system too: it reads XGETBV. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const cdad_kernels *cdad_kernels_at(int i) {
    const cdad_kernels *tables[4] = {NULL};
    int n = 0;
#ifdef CDAD_HAVE_X86
    if (has_avx512())
        tables[n++] = &cdad_kernels_avx512;
    if (has_avx2())
        tables[n++] = &cdad_kernels_avx2;
#endif
    tables[n++] = &cdad_kernels_portable;
    return i >= 0 && i < n ? tables[i] : NULL;
}

const cdad_kernels *cdad_kernels_select(const char *name) {
    if (!name)
        return cdad_kernels_at(0);
    for (int i = 0; cdad_kernels_at(i); i++)
        if (strcmp(cdad_kernels_at(i)->name, name) == 0)
            return cdad_kernels_at(i);
    return NULL;
}

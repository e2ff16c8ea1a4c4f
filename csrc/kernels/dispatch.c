/* Which tables this build holds, and which of them this processor and operating system can run. */
#include <string.h>

#include "kernels/kernels.h"

#ifdef CDAD_HAVE_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const cdad_kernels cdad_kernels_portable;
#ifdef CDAD_HAVE_X86
extern const cdad_kernels cdad_kernels_avx2, cdad_kernels_avx512, cdad_kernels_amx;

/* __builtin_cpu_supports asks the operating system too: it reads XGETBV. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* Linux gives a process AMX' registers when it asks, for all its threads: not where a thread's stack for signals is too small to
 * save them. */
static int may_use_tiles(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return 0;
#endif
}
static int has_amx(void) {
    static int known = -1; /* whoever comes first finds the same */
    const unsigned tiles = 1u << 24, bf16 = 1u << 22;
    unsigned a, b, c, d;
    if (known < 0)
        known = has_avx512() && __builtin_cpu_supports("avx512bf16") && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
                (d & tiles) && (d & bf16) && may_use_tiles();
    return known;
}
#endif

const cdad_kernels *cdad_kernels_at(int i) {
    const cdad_kernels *tables[5] = {NULL};
    int n = 0;
#ifdef CDAD_HAVE_X86
    if (has_amx())
        tables[n++] = &cdad_kernels_amx;
    if (has_avx512())
        tables[n++] = &cdad_kernels_avx512;
    if (has_avx2())
        tables[n++] = &cdad_kernels_avx2;
#endif
    tables[n++] = &cdad_kernels_portable;
    return i >= 0 && i < n ? tables[i] : NULL;
}

static const cdad_kernels *used;

void cdad_kernels_use(const cdad_kernels *kernels) { used = kernels; }

const cdad_kernels *cdad_kernels_select(const char *name) {
    if (!name)
        return used ? used : cdad_kernels_at(0);
    for (int i = 0; cdad_kernels_at(i); i++)
        if (strcmp(cdad_kernels_at(i)->name, name) == 0)
            return cdad_kernels_at(i);
    return NULL;
}

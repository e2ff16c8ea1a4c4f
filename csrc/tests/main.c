/* Runs every C test, or those named; each returns its number of failed checks. `--counted NAME REPEATS` runs one case of
 * counted.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"

int cdad_counted(const char *name, int repeats);
int cdad_test_base(void);
int cdad_test_kernels(void);
int cdad_test_resample(void);
int cdad_test_norm(void);
int cdad_test_attention(void);
int cdad_test_gemm(void);
int cdad_test_epilogue(void);
int cdad_test_winograd(void);
int cdad_test_conv_narrow(void);
int cdad_test_continual(void);
int cdad_test_streams(void);
int cdad_test_leading(void);
int cdad_test_gram(void);
int cdad_test_sketch(void);
int cdad_test_places(void);
int cdad_test_graph(void);
int cdad_test_coordinates(void);
int cdad_test_moments(void);
int cdad_test_devices(void);
int cdad_test_training(void);

static const struct {
    const char *name;
    int (*run)(void);
} tests[] = {
    {"base", cdad_test_base},
    {"kernels", cdad_test_kernels},
    {"resample", cdad_test_resample},
    {"norm", cdad_test_norm},
    {"attention", cdad_test_attention},
    {"gemm", cdad_test_gemm},
    {"gram", cdad_test_gram},
    {"sketch", cdad_test_sketch},
    {"epilogue", cdad_test_epilogue},
    {"winograd", cdad_test_winograd},
    {"conv_narrow", cdad_test_conv_narrow},
    {"continual", cdad_test_continual},
    {"streams", cdad_test_streams},
    {"leading", cdad_test_leading},
    {"places", cdad_test_places},
    {"graph", cdad_test_graph},
    {"coordinates", cdad_test_coordinates},
    {"moments", cdad_test_moments},
    {"devices", cdad_test_devices},
    {"training", cdad_test_training},
};

int main(int argc, char **argv) {
    openblas_set_num_threads(1); /* as the bindings do */
    if (argc == 4 && strcmp(argv[1], "--counted") == 0)
        return cdad_counted(argv[2], atoi(argv[3])) != 0;
    int failed = 0, ran = 0;
    const int n = (int)(sizeof tests / sizeof *tests);
    for (int i = 0; i < n; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++)
            wanted |= strcmp(argv[a], tests[i].name) == 0;
        if (!wanted)
            continue;
        const int failures = tests[i].run();
        ran++;
        printf("%s: %s\n", tests[i].name, failures ? "FAILED" : "ok");
        failed += failures != 0;
    }
    printf("%d passed, %d failed\n", ran - failed, failed);
    return failed != 0 || ran == 0;
}

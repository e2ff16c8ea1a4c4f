/* Runs every C test; each returns its number of failed checks. */
#include <stdio.h>

int cdad_test_gemm(void);
int cdad_test_continual(void);

static const struct {
    const char *name;
    int (*run)(void);
} tests[] = {
    {"gemm", cdad_test_gemm},
    {"continual", cdad_test_continual},
};

int main(void) {
    int failed = 0;
    const int n = (int)(sizeof tests / sizeof *tests);
    for (int i = 0; i < n; i++) {
        const int failures = tests[i].run();
        printf("%s: %s\n", tests[i].name, failures ? "FAILED" : "ok");
        failed += failures != 0;
    }
    printf("%d passed, %d failed\n", n - failed, failed);
    return failed != 0;
}

/* Noise schedules and DDIM's timesteps. */
#include "diffusion/schedule.h"

#include <math.h>

cdad_status cdad_schedule_init(cdad_schedule *s, int64_t n, double beta_start, double beta_end,
                               int zero_terminal_snr, cdad_error *err) {
    CDAD_FAIL_IF(n < 2 || n > CDAD_MAX_TIMESTEPS, err, CDAD_INVALID, "%lld training timesteps; 2 to %d are possible",
                 (long long)n, CDAD_MAX_TIMESTEPS);
    CDAD_FAIL_IF(!(beta_start > 0 && beta_start <= beta_end && beta_end < 1), err, CDAD_INVALID,
                 "betas from %g to %g; 0 < beta_start <= beta_end < 1 is wanted", beta_start, beta_end);
    s->num_train_timesteps = n;
    double product = 1.0;
    for (int64_t t = 0; t < n; t++) {
        const double root = sqrt(beta_start) + (sqrt(beta_end) - sqrt(beta_start)) * (double)t / (double)(n - 1);
        product *= 1.0 - root * root;
        s->alphas_cumprod[t] = product;
    }
    s->zero_terminal_snr = zero_terminal_snr;
    if (zero_terminal_snr) {
        const double first = sqrt(s->alphas_cumprod[0]), last = sqrt(product), scale = first / (first - last);
        for (int64_t t = 0; t < n; t++) {
            const double root = (sqrt(s->alphas_cumprod[t]) - last) * scale;
            s->alphas_cumprod[t] = root * root;
        }
    }
    return CDAD_OK;
}

cdad_status cdad_ddim_timesteps(const cdad_schedule *s, int64_t n, int64_t *timesteps, cdad_error *err) {
    CDAD_FAIL_IF(n < 1 || n >= s->num_train_timesteps, err, CDAD_INVALID,
                 "%lld sampling steps; 1 to %lld are possible", (long long)n,
                 (long long)s->num_train_timesteps - 1);
    for (int64_t i = 0; i < n; i++)
        timesteps[i] = s->zero_terminal_snr ? (i + 1) * s->num_train_timesteps / n - 1
                                            : i * (s->num_train_timesteps / n) + 1;
    return CDAD_OK;
}

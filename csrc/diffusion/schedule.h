/* Noise schedules (Ho et al. 2020; Rombach et al. 2022) and DDIM's timesteps (Song et al. 2021). */
#ifndef CDAD_DIFFUSION_SCHEDULE_H
#define CDAD_DIFFUSION_SCHEDULE_H

#include <stdint.h>

#include "base/status.h"

#define CDAD_MAX_TIMESTEPS 4096

typedef struct cdad_schedule {
    int64_t num_train_timesteps;
    int zero_terminal_snr;
    double alphas_cumprod[CDAD_MAX_TIMESTEPS]; /* alpha_bar_t: product of 1 - beta */
} cdad_schedule;

/* Betas linear in their square root ("scaled_linear"): 0.00085 .. 0.012 over 1000 steps in the paper. With
 * `zero_terminal_snr` sqrt(alpha_bar) is shifted and scaled so that the last timestep is noise alone (Lin et al. 2024,
 * Algorithm 1): there v = -x0, and a prediction of x0 carries none of the noise that it starts from. */
CDAD_MUST_USE cdad_status cdad_schedule_init(cdad_schedule *s, int64_t num_train_timesteps, double beta_start,
                                             double beta_end, int zero_terminal_snr, cdad_error *err);

/* Ascending timesteps [n]: LDM's uniform spacing with offset 1, 1, 1 + T/n, ...; with zero_terminal_snr "trailing", so
 * that the last is T - 1 (Lin et al. 2024, section 3.3). */
CDAD_MUST_USE cdad_status cdad_ddim_timesteps(const cdad_schedule *s, int64_t n, int64_t *timesteps,
                                              cdad_error *err);

#endif

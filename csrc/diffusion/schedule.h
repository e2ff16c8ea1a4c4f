/* Noise schedules (Ho et al. 2020; Rombach et al. 2022) and DDIM's timesteps (Song et al. 2021). */
#ifndef CDAD_DIFFUSION_SCHEDULE_H
#define CDAD_DIFFUSION_SCHEDULE_H

#include <stdint.h>

#include "base/status.h"

#define CDAD_MAX_TIMESTEPS 4096

typedef struct cdad_schedule {
    int64_t num_train_timesteps;
    double alphas_cumprod[CDAD_MAX_TIMESTEPS]; /* alpha_bar_t: product of 1 - beta */
} cdad_schedule;

/* Betas linear in their square root ("scaled_linear"): 0.00085 .. 0.012 over 1000 steps in the paper. */
CDAD_MUST_USE cdad_status cdad_schedule_init(cdad_schedule *s, int64_t num_train_timesteps, double beta_start,
                                             double beta_end, cdad_error *err);

/* LDM's uniform spacing with offset 1, ascending: 1, 1 + T/n, ... timesteps [n]. */
CDAD_MUST_USE cdad_status cdad_ddim_timesteps(const cdad_schedule *s, int64_t n, int64_t *timesteps,
                                              cdad_error *err);

#endif

/* Configurations as dicts of ints, floats, strings and lists. Every key is wanted, and no other. */
#ifndef CDAD_PYTHON_CONFIG_H
#define CDAD_PYTHON_CONFIG_H

#include "diffusion/denoiser.h"
#include "optim/adamw.h"
#include "python/bindings.h"

/* Each returns -1 with an exception that names the key on failure. */
int cdad_py_denoiser_config(PyObject *dict, cdad_denoiser_config *c);
int cdad_py_optimizer_config(PyObject *dict, cdad_optimizer_config *c);
int cdad_py_vae_config(PyObject *dict, cdad_vae_config *c);
int cdad_py_tiny_ae_config(PyObject *dict, cdad_tiny_ae_config *c);
int cdad_py_dct_config(PyObject *dict, cdad_dct_config *c);
int cdad_py_clip_text_config(PyObject *dict, cdad_clip_text_config *c);
int cdad_py_resnet_config(PyObject *dict, cdad_resnet_config *c);

#endif

/* Dicts to C structs. */
#include "python/config.h"

#include <string.h>

typedef enum { FIELD_INT, FIELD_BOOL, FIELD_FLOAT, FIELD_LIST, FIELD_PAIR, FIELD_CHOICE } field_type;

typedef struct field {
    const char *name;
    field_type type;
    void *at;             /* int64_t, int, double, int64_t[], int64_t (two pointers), int */
    void *also;           /* LIST: int64_t count; PAIR: the second int64_t; CHOICE: const char *[], NULL at its end */
    int64_t low;          /* INT, LIST, PAIR: the smallest value allowed */
} field;

static int read_int(PyObject *o, const char *name, int64_t low, int64_t *out) {
    const long long v = PyLong_Check(o) ? PyLong_AsLongLong(o) : -1;
    if (!PyLong_Check(o)) {
        PyErr_Format(PyExc_TypeError, "%s: an integer is wanted, not %R", name, o);
        return -1;
    }
    if (v == -1 && PyErr_Occurred())
        return -1;
    if (v < low || v > (1 << 24)) {
        PyErr_Format(PyExc_ValueError, "%s is %lld; %lld to %d is wanted", name, v, (long long)low, 1 << 24);
        return -1;
    }
    *out = v;
    return 0;
}

static int read_ints(PyObject *o, const char *name, int64_t low, int64_t most, int64_t *out, int64_t *count) {
    PyObject *list = PySequence_Check(o) && !PyUnicode_Check(o) ? PySequence_Tuple(o) : NULL;
    if (!list) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%s: a list of integers is wanted, not %R", name, o);
        return -1;
    }
    int status = 0;
    *count = PyTuple_Size(list);
    if (*count > most) {
        PyErr_Format(PyExc_ValueError, "%s has %lld entries; at most %lld are possible", name, (long long)*count,
                     (long long)most);
        status = -1;
    }
    for (int64_t i = 0; status == 0 && i < *count; i++)
        status = read_int(PyTuple_GetItem(list, i), name, low, &out[i]);
    Py_DECREF(list);
    return status;
}

static int read_field(PyObject *value, const field *f) {
    int64_t number, pair[2], count;
    switch (f->type) {
    case FIELD_INT:
        return read_int(value, f->name, f->low, f->at);
    case FIELD_BOOL:
        if (read_int(value, f->name, 0, &number) < 0)
            return -1;
        *(int *)f->at = number != 0;
        return 0;
    case FIELD_FLOAT:
        *(double *)f->at = PyFloat_AsDouble(value);
        return *(double *)f->at == -1.0 && PyErr_Occurred() ? -1 : 0;
    case FIELD_LIST:
        return read_ints(value, f->name, f->low, CDAD_MAX_LEVELS, f->at, f->also);
    case FIELD_PAIR:
        if (read_ints(value, f->name, f->low, 2, pair, &count) < 0)
            return -1;
        if (count != 2) {
            PyErr_Format(PyExc_ValueError, "%s: two integers are wanted", f->name);
            return -1;
        }
        *(int64_t *)f->at = pair[0];
        *(int64_t *)f->also = pair[1];
        return 0;
    case FIELD_CHOICE: {
        const char *text = PyUnicode_AsUTF8(value), *const *choices = f->also;
        if (!text)
            return -1;
        char known[80] = "";
        for (int i = 0; choices[i]; i++) {
            if (strcmp(text, choices[i]) == 0) {
                *(int *)f->at = i;
                return 0;
            }
            snprintf(known + strlen(known), sizeof known - strlen(known), "%s'%s'", i ? " or " : "", choices[i]);
        }
        PyErr_Format(PyExc_ValueError, "%s is '%s'; %s is wanted", f->name, text, known);
        return -1;
    }
    }
    return -1;
}

static int read_fields(PyObject *dict, const char *what, const field *fields, Py_ssize_t n) {
    if (!PyDict_Check(dict)) {
        PyErr_Format(PyExc_TypeError, "%s: a dict is wanted, not %R", what, Py_TYPE(dict));
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = Py_XNewRef(PyDict_GetItemString(dict, fields[i].name)); /* which may change the dict while it is read */
        if (!value) {
            PyErr_Format(PyExc_ValueError, "%s: %s is missing", what, fields[i].name);
            return -1;
        }
        const int status = read_field(value, &fields[i]);
        Py_DECREF(value);
        if (status < 0)
            return -1;
    }
    if (PyDict_Size(dict) == n)
        return 0;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) {
        int known = 0;
        for (Py_ssize_t i = 0; i < n; i++)
            known |= PyUnicode_Check(key) && PyUnicode_CompareWithASCIIString(key, fields[i].name) == 0;
        if (!known) {
            PyErr_Format(PyExc_ValueError, "%s: unknown key %R", what, key);
            return -1;
        }
    }
    return 0;
}

#define COUNT(fields) ((Py_ssize_t)(sizeof(fields) / sizeof *(fields)))

static int read_unet(PyObject *dict, cdad_unet_config *c) {
    const field fields[] = {
        {"in_channels", FIELD_INT, &c->in_channels, NULL, 1},
        {"out_channels", FIELD_INT, &c->out_channels, NULL, 1},
        {"model_channels", FIELD_INT, &c->model_channels, NULL, 1},
        {"channel_mult", FIELD_LIST, c->channel_mult, &c->n_levels, 1},
        {"num_res_blocks", FIELD_INT, &c->num_res_blocks, NULL, 1},
        {"attention_resolutions", FIELD_LIST, c->attention_resolutions, &c->n_attention, 1},
        {"num_heads", FIELD_INT, &c->num_heads, NULL, 1},
        {"context_dim", FIELD_INT, &c->context_dim, NULL, 0},
        {"norm_groups", FIELD_INT, &c->norm_groups, NULL, 1},
    };
    return read_fields(dict, "unet", fields, COUNT(fields));
}

/* Whether there is a stride for every width. */
static int check_strides(const char *what, int64_t n_strides, int64_t n_hidden) {
    if (n_strides == n_hidden)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: %lld strides for %lld hidden widths", what, (long long)n_strides,
                 (long long)n_hidden);
    return -1;
}

static int read_amn(PyObject *dict, cdad_amn_config *c) {
    int64_t n_strides = 0;
    const field fields[] = {
        {"channels", FIELD_INT, &c->channels, NULL, 1},
        {"hidden", FIELD_LIST, c->hint.hidden, &c->hint.n_hidden, 1},
        {"strides", FIELD_LIST, c->hint.strides, &n_strides, 1},
        {"n_layers", FIELD_INT, &c->n_layers, NULL, 1},
        {"num_heads", FIELD_INT, &c->num_heads, NULL, 1},
        {"dim_feedforward", FIELD_INT, &c->dim_feedforward, NULL, 1},
        {"neighbor", FIELD_PAIR, &c->neighbor_h, &c->neighbor_w, 0},
        {"keep_variance", FIELD_BOOL, &c->hint.keep_variance, NULL, 0},
    };
    return read_fields(dict, "amn", fields, COUNT(fields)) < 0 ? -1 : check_strides("amn", n_strides, c->hint.n_hidden);
}

static int read_controlnet(PyObject *dict, cdad_hint_config *c) {
    int64_t n_strides = 0;
    const field fields[] = {
        {"hidden", FIELD_LIST, c->hidden, &c->n_hidden, 1},
        {"strides", FIELD_LIST, c->strides, &n_strides, 1},
        {"keep_variance", FIELD_BOOL, &c->keep_variance, NULL, 0},
    };
    return read_fields(dict, "controlnet", fields, COUNT(fields)) < 0 ? -1
                                                                       : check_strides("controlnet", n_strides, c->n_hidden);
}

/* The condition's network: amn or controlnet, or None for both. */
static int read_condition(PyObject *amn, PyObject *controlnet, cdad_denoiser_config *c) {
    if (amn != Py_None && controlnet != Py_None) {
        PyErr_SetString(PyExc_ValueError, "denoiser: either amn or controlnet is None");
        return -1;
    }
    c->condition = amn != Py_None          ? CDAD_CONDITION_AMN
                   : controlnet != Py_None ? CDAD_CONDITION_CONTROLNET
                                           : CDAD_CONDITION_NONE;
    switch (c->condition) {
    case CDAD_CONDITION_AMN:
        return read_amn(amn, &c->amn);
    case CDAD_CONDITION_CONTROLNET:
        return read_controlnet(controlnet, &c->controlnet);
    case CDAD_CONDITION_NONE:
        break;
    }
    return 0;
}

int cdad_py_denoiser_config(PyObject *dict, cdad_denoiser_config *c) {
    static const char *const predictions[] = {"epsilon", "v", NULL}, *const targets[] = {"as_written", "normalized", NULL};
    static const char *const precisions[] = {"float32", "bfloat16", "tf32", NULL};
    static const char *const parts[3] = {"unet", "amn", "controlnet"};
    PyObject *given[3] = {NULL}, *rest = PyDict_Check(dict) ? PyDict_Copy(dict) : NULL;
    int status = -1, prediction, target, precision;
    int64_t num_train_timesteps;
    double beta_start, beta_end;
    int zero_terminal_snr;
    memset(c, 0, sizeof *c);
    const field fields[] = {
        {"image_size", FIELD_PAIR, &c->image_h, &c->image_w, 1},
        {"latent_size", FIELD_PAIR, &c->latent_h, &c->latent_w, 1},
        {"context_length", FIELD_INT, &c->context_length, NULL, 0},
        {"prediction", FIELD_CHOICE, &prediction, (void *)(uintptr_t)predictions, 0},
        {"amn_target", FIELD_CHOICE, &target, (void *)(uintptr_t)targets, 0},
        {"precision", FIELD_CHOICE, &precision, (void *)(uintptr_t)precisions, 0},
        {"num_train_timesteps", FIELD_INT, &num_train_timesteps, NULL, 2},
        {"beta_start", FIELD_FLOAT, &beta_start, NULL, 0},
        {"beta_end", FIELD_FLOAT, &beta_end, NULL, 0},
        {"zero_terminal_snr", FIELD_BOOL, &zero_terminal_snr, NULL, 0},
        {"focus", FIELD_FLOAT, &c->focus, NULL, 0},
        {"focus_low", FIELD_INT, &c->focus_low, NULL, 0},
    };
    if (!rest) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "denoiser: a dict is wanted, not %R", Py_TYPE(dict));
        return -1;
    }
    for (int i = 0; i < 3; i++) {
        given[i] = Py_XNewRef(PyDict_GetItemString(rest, parts[i]));
        if (!given[i]) {
            PyErr_Format(PyExc_ValueError, "denoiser: %s is missing", parts[i]);
            goto done;
        }
        if (PyDict_DelItemString(rest, parts[i]) < 0)
            goto done;
    }
    if (read_unet(given[0], &c->unet) < 0 || read_condition(given[1], given[2], c) < 0 ||
        read_fields(rest, "denoiser", fields, COUNT(fields)) < 0)
        goto done;
    c->prediction = (cdad_prediction_type)prediction;
    c->amn_target = (cdad_amn_target)target;
    c->precision = (cdad_precision)precision;
    cdad_error err = {0};
    if (cdad_schedule_init(&c->schedule, num_train_timesteps, beta_start, beta_end, zero_terminal_snr, &err) !=
        CDAD_OK) {
        cdad_py_raise(&err);
        goto done;
    }
    if (zero_terminal_snr && c->prediction == CDAD_PREDICT_EPSILON) {
        PyErr_SetString(PyExc_ValueError, "zero_terminal_snr wants v-prediction: noise alone tells nothing of x0");
        goto done;
    }
    if (!(c->focus >= 0 && c->focus <= 1) || c->focus_low >= num_train_timesteps) {
        PyErr_Format(PyExc_ValueError, "focus is a share, and focus_low is below %lld", (long long)num_train_timesteps);
        goto done;
    }
    status = 0;
done:
    for (int i = 0; i < 3; i++)
        Py_XDECREF(given[i]);
    Py_DECREF(rest);
    return status;
}

int cdad_py_optimizer_config(PyObject *dict, cdad_optimizer_config *c) {
    static const char *const projections[] = {"gradient", "update", NULL};
    static const char *const formats[] = {"float32", "bfloat16", "8bit", NULL}; /* as in cdad_moment_format */
    int projection, moments;
    const field fields[] = {
        {"lr", FIELD_FLOAT, &c->lr, NULL, 0},
        {"beta1", FIELD_FLOAT, &c->beta1, NULL, 0},
        {"beta2", FIELD_FLOAT, &c->beta2, NULL, 0},
        {"eps", FIELD_FLOAT, &c->eps, NULL, 0},
        {"weight_decay", FIELD_FLOAT, &c->weight_decay, NULL, 0},
        {"clip_norm", FIELD_FLOAT, &c->clip_norm, NULL, 0},
        {"ema_decay", FIELD_FLOAT, &c->ema_decay, NULL, 0},
        {"projection", FIELD_CHOICE, &projection, (void *)(uintptr_t)projections, 0},
        {"moments", FIELD_CHOICE, &moments, (void *)(uintptr_t)formats, 0},
    };
    if (read_fields(dict, "optimizer", fields, COUNT(fields)) < 0)
        return -1;
    c->projection = (cdad_projection_mode)projection;
    c->moments = (cdad_moment_format)moments;
    return 0;
}

int cdad_py_vae_config(PyObject *dict, cdad_vae_config *c) {
    const field fields[] = {
        {"ch", FIELD_INT, &c->ch, NULL, 1},
        {"ch_mult", FIELD_LIST, c->ch_mult, &c->n_levels, 1},
        {"num_res_blocks", FIELD_INT, &c->num_res_blocks, NULL, 1},
        {"z_channels", FIELD_INT, &c->z_channels, NULL, 1},
        {"norm_groups", FIELD_INT, &c->norm_groups, NULL, 1},
    };
    return read_fields(dict, "vae", fields, COUNT(fields));
}

int cdad_py_tiny_ae_config(PyObject *dict, cdad_tiny_ae_config *c) {
    const field fields[] = {
        {"channels", FIELD_INT, &c->channels, NULL, 1},
        {"latent_channels", FIELD_INT, &c->latent_channels, NULL, 1},
        {"midblock", FIELD_BOOL, &c->midblock, NULL, 0},
    };
    return read_fields(dict, "tiny autoencoder", fields, COUNT(fields));
}

int cdad_py_dct_config(PyObject *dict, cdad_dct_config *c) {
    const field fields[] = {
        {"patch", FIELD_INT, &c->patch, NULL, 1},
        {"latent_channels", FIELD_INT, &c->latent_channels, NULL, 1},
    };
    return read_fields(dict, "dct", fields, COUNT(fields));
}

int cdad_py_clip_text_config(PyObject *dict, cdad_clip_text_config *c) {
    const field fields[] = {
        {"vocab_size", FIELD_INT, &c->vocab_size, NULL, 1},
        {"width", FIELD_INT, &c->width, NULL, 1},
        {"n_layers", FIELD_INT, &c->n_layers, NULL, 1},
        {"num_heads", FIELD_INT, &c->num_heads, NULL, 1},
        {"dim_feedforward", FIELD_INT, &c->dim_feedforward, NULL, 1},
    };
    return read_fields(dict, "clip_text", fields, COUNT(fields));
}

int cdad_py_resnet_config(PyObject *dict, cdad_resnet_config *c) {
    int64_t blocks[CDAD_MAX_LEVELS], n = 0;
    const field fields[] = {
        {"blocks", FIELD_LIST, blocks, &n, 1},
        {"bottleneck", FIELD_BOOL, &c->bottleneck, NULL, 0},
        {"widening", FIELD_INT, &c->widening, NULL, 1},
        {"channels", FIELD_INT, &c->channels, NULL, 1},
    };
    if (read_fields(dict, "resnet", fields, COUNT(fields)) < 0)
        return -1;
    if (n != CDAD_RESNET_STAGES) {
        PyErr_Format(PyExc_ValueError, "resnet: %lld numbers of blocks; %d are wanted", (long long)n, CDAD_RESNET_STAGES);
        return -1;
    }
    memcpy(c->blocks, blocks, sizeof c->blocks);
    return 0;
}

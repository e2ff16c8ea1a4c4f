/* The matrix product of bfloat16 by AMX: how its panels are packed, and a tile of C by tile registers.
 *
 * The instructions are text: the processor is asked before this runs (kernels/dispatch.c), the compiler need not know them. */
#include "kernels/cpu/gemm.h"

#if GEMM_AMX

#define INLINE V_INLINE

typedef int16_t halves __attribute__((vector_size(64))); /* bfloat16 */

static const float zeros[GEMM_GROUP];

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- rounding: to nearest even, denormals to zero; a NaN stays one ------------------------------------------------ */

/* low's sixteen, then high's. */
INLINE halves round_two(vf low, vf high) {
    halves to;
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(to) : "v"(low), "v"(high));
    return to;
}

/* What rounding leaves. */
INLINE vf rest_of(vf x) {
    const vi bits = (vi)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) & (int32_t)0xffff0000;
    return x - (vf)rounded;
}

/* Words of two steps: even's number in the lower half, odd's in the upper one. */
INLINE vf words_of(vf even, vf odd) {
    const halves two = round_two(even, odd);
    return (vf)__builtin_shufflevector(two, two, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11,
                                       27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* The words of up to GEMM_GROUP steps that lie side by side; `rest`: of what rounding them leaves. */
INLINE vf words_of_run(int rest, const float *x, int64_t n) {
    const int whole = n >= GEMM_GROUP;
    const vf low = whole ? v_load(x) : v_load_n(x, min_i(n, VL));
    const vf high = whole ? v_load(x + VL) : v_load_n(x + VL, n > VL ? n - VL : 0);
    return (vf)(rest ? round_two(rest_of(low), rest_of(high)) : round_two(low, high));
}

/* ---- sixteen by sixteen words ------------------------------------------------------------------------------------- */

/* Rows become columns. */
INLINE void transpose(vf r[16]) {
    vf t[16];
    V_UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = (vf)_mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        t[i + 1] = (vf)_mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    V_UNROLL for (int i = 0; i < 16; i += 4) {
        V_UNROLL for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = (vf)_mm512_unpacklo_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
            r[i + 2 * j + 1] = (vf)_mm512_unpackhi_pd((__m512d)t[i + j], (__m512d)t[i + j + 2]);
        }
    }
    /* Now r[4 i + c] has, in quarter q, column 4 q + c of rows 4 i to 4 i + 3. */
    V_UNROLL for (int c = 0; c < 4; c++) {
        const __m512 a = (__m512)r[c], b = (__m512)r[4 + c], d = (__m512)r[8 + c], e = (__m512)r[12 + c];
        const __m512 ab = _mm512_shuffle_f32x4(a, b, 0x88), ba = _mm512_shuffle_f32x4(a, b, 0xdd);
        const __m512 de = _mm512_shuffle_f32x4(d, e, 0x88), ed = _mm512_shuffle_f32x4(d, e, 0xdd);
        t[c] = (vf)_mm512_shuffle_f32x4(ab, de, 0x88);
        t[8 + c] = (vf)_mm512_shuffle_f32x4(ab, de, 0xdd);
        t[4 + c] = (vf)_mm512_shuffle_f32x4(ba, ed, 0x88);
        t[12 + c] = (vf)_mm512_shuffle_f32x4(ba, ed, 0xdd);
    }
    V_UNROLL for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

/* ---- packing ------------------------------------------------------------------------------------------------------ */

/* A block is sixteen lanes and as many words; r has one of either by another. Where the blocks of a panel begin, and how far apart
 * its vectors lie: A has a lane in each, B a word. */
static inline int64_t block_at(int is_a, int64_t group, int64_t lane) {
    return group * (GEMM_LANES * GEMM_GROUP / 2) + (is_a ? lane * (GEMM_GROUP / 2) : lane);
}
INLINE void put_block(float *to, int is_a, int r_has_lanes, vf r[16]) {
    if (is_a != r_has_lanes)
        transpose(r);
    V_UNROLL for (int i = 0; i < 16; i++)
        v_store(to + i * (is_a ? GEMM_GROUP / 2 : GEMM_LANES), r[i]);
}

/* Steps lie side by side in memory. */
INLINE void pack_runs(int is_a, int rest, float *to, const float *x, int64_t lane_stride, int64_t lanes, int64_t kc) {
    for (int64_t k = 0; k < kc; k += GEMM_GROUP)
        for (int64_t l = 0; l < GEMM_LANES; l += 16) {
            vf r[16];
            V_UNROLL for (int i = 0; i < 16; i++)
                r[i] = l + i < lanes ? words_of_run(rest, x + (l + i) * lane_stride + k, kc - k) : (vf){0};
            put_block(to + block_at(is_a, k / GEMM_GROUP, l), is_a, 1, r);
        }
}

/* Lanes lie side by side. */
INLINE void pack_rows(int is_a, int rest, float *to, const float *x, int64_t k_stride, int64_t lanes, int64_t kc) {
    for (int64_t k = 0; k < kc; k += GEMM_GROUP)
        for (int64_t l = 0; l < GEMM_LANES; l += 16) {
            const int64_t n = lanes - l < 0 ? 0 : min_i(16, lanes - l);
            const float *from = x + l + k * k_stride;
            vf r[16];
            V_UNROLL for (int i = 0; i < 16; i++) {
                const vf even = k + 2 * i < kc ? v_load_n(from + 2 * i * k_stride, n) : (vf){0};
                const vf odd = k + 2 * i + 1 < kc ? v_load_n(from + (2 * i + 1) * k_stride, n) : (vf){0};
                r[i] = rest ? words_of(rest_of(even), rest_of(odd)) : words_of(even, odd);
            }
            put_block(to + block_at(is_a, k / GEMM_GROUP, l), is_a, 0, r);
        }
}

/* One lane of A, the others' place left as it is. */
static void put_lane(float *to, int64_t lane, const float *x, int64_t kc) {
    for (int64_t k = 0; k < kc; k += GEMM_GROUP)
        v_store(to + block_at(1, k / GEMM_GROUP, lane), words_of_run(0, x + k, kc - k));
}

/* Pixels of an image that is unfolded, in their order. */
typedef struct walk {
    const float *image;
    int64_t p, q;
} walk;
static inline walk walk_from(const cdad_unfold *u, const float *x, int64_t pixel) {
    const int64_t row = pixel / u->Q;
    return (walk){x + row / u->P * u->H * u->W * u->C, row % u->P, pixel % u->Q};
}
static inline void walk_on(walk *at, const cdad_unfold *u) {
    if (++at->q < u->Q)
        return;
    at->q = 0;
    if (++at->p < u->P)
        return;
    at->p = 0;
    at->image += u->H * u->W * u->C;
}
/* What tap (r, s) of a pixel's window reads from channel c on; zeros outside of the image. */
static inline const float *tap_of(const walk *at, const cdad_unfold *u, int64_t r, int64_t s, int64_t c) {
    const int64_t h = gemm_source(at->p * u->stride + r - u->pad_t, u->H, u), w = gemm_source(at->q * u->stride + s - u->pad_l, u->W, u);
    return h < 0 || w < 0 ? zeros : at->image + (h * u->W + w) * u->C + c;
}

/* Lanes are pixels. Where groups of steps do not lie within a tap, a lane is laid out first. */
static void unfold_a(float *to, const cdad_mat *A, int64_t m0, int64_t rows, int64_t k0, int64_t kc) {
    const cdad_unfold *u = A->unfold;
    float line[GEMM_KC];
    if (u->C % GEMM_GROUP) {
        for (int64_t i = 0; i < GEMM_LANES; i++) {
            if (i < rows)
                CDAD_K(gemm_unfold_line)(line, u, A->data, m0 + i, k0, kc);
            else if (i == rows)
                memset(line, 0, sizeof line);
            put_lane(to, i, line, kc);
        }
        return;
    }
    walk pixels[GEMM_LANES];
    pixels[0] = walk_from(u, A->data, m0);
    for (int64_t i = 1; i < rows; i++) {
        pixels[i] = pixels[i - 1];
        walk_on(&pixels[i], u);
    }
    for (int64_t k = 0; k < kc; k += GEMM_GROUP) {
        const int64_t tap = (k0 + k) / u->C, c = (k0 + k) % u->C, r = tap / u->S, s = tap % u->S;
        for (int64_t i = 0; i < GEMM_LANES; i++)
            put_lane(to + block_at(1, k / GEMM_GROUP, 0), i, i < rows ? tap_of(&pixels[i], u, r, s, c) : zeros, GEMM_GROUP);
    }
}

/* Lanes are (r, s, c), of one tap where C is whole panels; steps are pixels. */
static void unfold_b(float *to, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc) {
    const cdad_unfold *u = B->unfold;
    if (u->C % GEMM_NR) {
        float wide[GEMM_KC * GEMM_NR];
        CDAD_K(gemm_pack_b)(wide, B, n0, cols, k0, kc);
        pack_rows(0, 0, to, wide, GEMM_NR, GEMM_NR, kc);
        return;
    }
    const int64_t tap = n0 / u->C, c = n0 % u->C, r = tap / u->S, s = tap % u->S;
    walk at = walk_from(u, B->data, k0);
    for (int64_t k = 0; k < GEMM_GROUP * ((kc + GEMM_GROUP - 1) / GEMM_GROUP); k += 2, to += GEMM_NR) {
        const float *step[2] = {zeros, zeros};
        for (int64_t i = 0; i < 2 && k + i < kc; i++, walk_on(&at, u))
            step[i] = tap_of(&at, u, r, s, c);
        v_store(to, words_of(v_load(step[0]), v_load(step[1])));
        v_store(to + VL, words_of(v_load(step[0] + VL), v_load(step[1] + VL)));
    }
}

INLINE void pack_plain(int is_a, int rest, float *panel, const cdad_mat *m, int64_t l0, int64_t n, int64_t k0, int64_t kc) {
    const int64_t lane_stride = is_a ? m->rs : m->cs, k_stride = is_a ? m->cs : m->rs;
    const float *x = m->data + l0 * lane_stride + k0 * k_stride;
    if (k_stride == 1) {
        pack_runs(is_a, rest, panel, x, lane_stride, n, kc);
        return;
    }
    if (lane_stride == 1) {
        pack_rows(is_a, rest, panel, x, k_stride, n, kc);
        return;
    }
    float wide[GEMM_KC * GEMM_LANES]; /* as B's floats, whose lanes lie side by side */
    const cdad_mat lanes = {.data = x, .rs = k_stride, .cs = lane_stride};
    CDAD_K(gemm_pack_b)(wide, &lanes, 0, n, 0, kc);
    pack_rows(is_a, rest, panel, wide, GEMM_LANES, GEMM_LANES, kc);
}

void CDAD_K(gemm_panel_amx)(int rows, float *panel, const cdad_mat *m, int64_t l0, int64_t n, int64_t k0, int64_t kc) {
    if (m->unfold)
        (rows ? unfold_a : unfold_b)(panel, m, l0, n, k0, kc);
    else if (rows)
        pack_plain(1, 0, panel, m, l0, n, k0, kc);
    else
        pack_plain(0, 0, panel, m, l0, n, k0, kc);
}

void CDAD_K(gemm_panel_amx_rest)(float *panel, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc) {
    pack_plain(0, 1, panel, B, n0, cols, k0, kc);
}

void CDAD_K(gemm_turn_amx)(float *a, const float *b, int64_t words) {
    for (int64_t w = 0; w < words; w += 16)
        for (int64_t l = 0; l < GEMM_LANES; l += 16) {
            vf r[16];
            V_UNROLL for (int i = 0; i < 16; i++)
                r[i] = v_load(b + block_at(0, w / 16, l) + i * GEMM_LANES);
            put_block(a + block_at(1, w / 16, l), 1, 0, r);
        }
}

/* ---- a tile of C, by up to four tile registers of sixteen by sixteen ---------------------------------------------- */

/* Eight registers of sixteen rows of 64 bytes. */
static const struct {
    uint8_t palette, start_row, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} shape = {.palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

void CDAD_K(gemm_amx_begin)(void) { __asm__ volatile("ldtilecfg %0" ::"m"(shape)); }
void CDAD_K(gemm_amx_end)(void) { __asm__ volatile("tilerelease"); }

#define LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((stride) * (int64_t)sizeof(float)) : "memory")
#define STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((stride) * (int64_t)sizeof(float)) : "memory")
#define ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define DOTS(to, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #to ::)

/* C [16 high, 16 wide] = add (NULL: zero) + a b. Registers 0 to 3 hold C by rows, 4 and 5 a, 6 and 7 b. */
INLINE void tile(int high, int wide, int64_t groups, const float *a, const float *b, float *C, int64_t ldc, const float *add,
                 int64_t ld_add) {
    const float *add_low = add ? add + 16 * ld_add : NULL;
    if (add) {
        LOAD(0, add, ld_add);
        if (wide > 1)
            LOAD(1, add + 16, ld_add);
        if (high > 1)
            LOAD(2, add_low, ld_add);
        if (high > 1 && wide > 1)
            LOAD(3, add_low + 16, ld_add);
    } else {
        ZERO(0);
        ZERO(1);
        ZERO(2);
        ZERO(3);
    }
    for (int64_t g = 0; g < groups; g++, a += GEMM_LANES * GEMM_GROUP / 2, b += GEMM_LANES * GEMM_GROUP / 2) {
        LOAD(4, a, 16);
        LOAD(6, b, GEMM_LANES);
        DOTS(0, 4, 6);
        if (wide > 1) {
            LOAD(7, b + 16, GEMM_LANES);
            DOTS(1, 4, 7);
        }
        if (high > 1) {
            LOAD(5, a + 16 * GEMM_GROUP / 2, 16);
            DOTS(2, 5, 6);
        }
        if (high > 1 && wide > 1)
            DOTS(3, 5, 7);
    }
    STORE(0, C, ldc);
    if (wide > 1)
        STORE(1, C + 16, ldc);
    if (high > 1)
        STORE(2, C + 16 * ldc, ldc);
    if (high > 1 && wide > 1)
        STORE(3, C + 16 * ldc + 16, ldc);
}

static void run_tile(int64_t high, int64_t wide, int64_t groups, const float *a, const float *b, float *C, int64_t ldc,
                     const float *add, int64_t ld_add) {
    if (high > 1 && wide > 1)
        tile(2, 2, groups, a, b, C, ldc, add, ld_add);
    else if (high > 1)
        tile(2, 1, groups, a, b, C, ldc, add, ld_add);
    else if (wide > 1)
        tile(1, 2, groups, a, b, C, ldc, add, ld_add);
    else
        tile(1, 1, groups, a, b, C, ldc, add, ld_add);
}

void CDAD_K(gemm_tile_amx)(int64_t words, const float *a, const float *b, int64_t rows, int64_t cols, float *C, int64_t ldc,
                           const float *add, const float *bias, const float *sum) {
    const int64_t high = (rows + 15) / 16, wide = (cols + 15) / 16, groups = words / (GEMM_GROUP / 2);
    float edge[GEMM_LANES * GEMM_NR];
    const int whole = rows == 16 * high && cols == 16 * wide;
    if (whole) {
        run_tile(high, wide, groups, a, b, C, ldc, add, ldc);
    } else {
        for (int64_t i = 0; add && i < 16 * high; i++) /* rows past the edge hold anything */
            for (int64_t j = 0; j < 16 * wide; j += VL)
                v_store(edge + i * GEMM_NR + j,
                        i < rows ? v_load_n(add + i * ldc + j, min_i(VL, cols - j)) : (vf){0});
        run_tile(high, wide, groups, a, b, edge, GEMM_NR, add ? edge : NULL, GEMM_NR);
    }
    if (whole && !bias && !sum)
        return;
    for (int64_t r = 0; r < rows; r++) {
        const float *from = whole ? C + r * ldc : edge + r * GEMM_NR;
        V_EACH(0, cols, {
            vf v = v_load_n(from + i, m);
            if (bias)
                v += v_load_n(bias + i, m);
            if (sum)
                v += v_load_n(sum + r * ldc + i, m);
            v_store_n(C + r * ldc + i, v, m);
        })
    }
}

#endif

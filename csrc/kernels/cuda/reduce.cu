/* Sums over the indices in which an operand was repeated. What is summed is cut into tiles, so that a result is the work of many
 * blocks; then the sums of tiles are summed alike. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/warp.h"

/* EACH: elements that a thread of a small tile adds up. */
enum { LANES = 32, EACH = 8, MOST_TILES = 256 };

/* x [K0,R,K1] -> [K0,tiles,K1]. Columns are taken by `lanes`, of which there are `chunks`; a team of threads takes the `rows` of a
 * tile of such. Lanes and teams are powers of two. */
typedef struct sums_plan {
    int64_t K0, R, K1, rows, tiles, chunks;
    unsigned lanes, team;
} sums_plan;

/* The dimensions that stay and those that are summed over, with their strides in x: where they do not fall into three such. */
typedef struct scattered_plan {
    int64_t kept[5], summed[5], stride[5], repeats, rows, tiles;
} scattered_plan;

static unsigned lanes_of(int64_t K1, unsigned most) {
    unsigned lanes = 1;
    while (lanes < most && lanes < K1)
        lanes *= 2;
    return lanes;
}

/* Rows of a tile of R rows, of which the threads of a block take `at_once` each time. */
static int64_t tile_rows(int64_t R, int64_t at_once) {
    const int64_t least = at_once * EACH;
    return R <= 4 * least ? R : (R + least * MOST_TILES - 1) / (least * MOST_TILES) * least;
}

static sums_plan plan_of(int64_t K0, int64_t R, int64_t K1, int64_t rows, unsigned lanes) {
    unsigned team = lanes;
    while (team < CUDA_THREADS && (int64_t)team * EACH < rows * lanes)
        team *= 2;
    const sums_plan p = {K0, R, K1, rows, (R + rows - 1) / rows, (K1 + lanes - 1) / lanes, lanes, team};
    return p;
}

/* x as [K0,R,K1], or 0 when its dimensions do not fall into such three. */
static int find_plan(const cdad_broadcast *bc, sums_plan *p) {
    int64_t K[3] = {1, 1, 1};
    int stage = 0;
    for (int k = 0; k < 5; k++) {
        if (bc->dim[k] == 1)
            continue;
        if ((bc->stride[k] == 0) != (stage == 1))
            stage++;
        if (stage > 2)
            return 0;
        K[stage] *= bc->dim[k];
    }
    const unsigned lanes = lanes_of(K[2], LANES);
    *p = plan_of(K[0], K[1], K[2], tile_rows(K[1], CUDA_THREADS / lanes), lanes);
    return 1;
}

template <typename To, typename From> __global__ static void sums_kernel(To *y, const From *x, sums_plan p) {
    __shared__ double parts[CUDA_THREADS];
    const unsigned own = threadIdx.x, member = own % p.team, row = member / p.lanes, step = p.team / p.lanes;
    const int64_t unit = (int64_t)blockIdx.x * (CUDA_THREADS / p.team) + own / p.team;
    const int64_t c = unit % p.chunks * p.lanes + member % p.lanes, tile = unit / p.chunks % p.tiles, k0 = unit / p.chunks / p.tiles;
    const int64_t end = (tile + 1) * p.rows < p.R ? (tile + 1) * p.rows : p.R;
    const bool there = k0 < p.K0 && c < p.K1;
    double sum = 0.0;
    int64_t i = tile * p.rows + row;
    for (; there && i + (EACH - 1) * step < end; i += EACH * step) {
        From several[EACH]; /* are asked for together */
        CUDA_UNROLL
        for (int j = 0; j < EACH; j++)
            several[j] = x[(k0 * p.R + i + j * step) * p.K1 + c];
        CUDA_UNROLL
        for (int j = 0; j < EACH; j++)
            sum += (double)several[j];
    }
    for (; there && i < end; i += step)
        sum += (double)x[(k0 * p.R + i) * p.K1 + c];
    parts[own] = sum;
    for (unsigned half = p.team / 2; half >= p.lanes; half /= 2) {
        __syncthreads();
        if (member < half)
            parts[own] += parts[own + half];
    }
    if (there && row == 0)
        y[(k0 * p.tiles + tile) * p.K1 + c] = (To)parts[own];
}

template <typename To, typename From> static void launch_sums(cudaStream_t stream, To *y, const From *x, const sums_plan &p) {
    const int64_t teams = CUDA_THREADS / p.team, units = p.K0 * p.tiles * p.chunks;
    CDAD_LAUNCH_JOINED((sums_kernel<To, From>), (unsigned)((units + teams - 1) / teams), CUDA_THREADS, stream, y, x, p);
}

/* sums [results,tiles], in which a block takes an element. */
__global__ static void scattered_kernel(double *sums, const float *x, scattered_plan p) {
    const int64_t first = blockIdx.x % p.tiles * p.rows, end = first + p.rows < p.repeats ? first + p.rows : p.repeats;
    int64_t rest = blockIdx.x / p.tiles, from = 0;
    for (int k = 4; k >= 0; k--) {
        from += rest % p.kept[k] * p.stride[k];
        rest /= p.kept[k];
    }
    double sum = 0.0;
    for (int64_t j = first + threadIdx.x; j < end; j += CUDA_THREADS) {
        int64_t left = j, at = from;
        for (int k = 4; k >= 0; k--) {
            at += left % p.summed[k] * p.stride[k];
            left /= p.summed[k];
        }
        sum += (double)x[at];
    }
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

/* The number of results. */
static int64_t scatter(const cdad_broadcast *bc, scattered_plan *p) {
    int64_t results = 1, stride = 1;
    p->repeats = 1;
    for (int k = 4; k >= 0; k--) {
        const int stays = bc->stride[k] != 0;
        p->kept[k] = stays ? bc->dim[k] : 1;
        p->summed[k] = stays ? 1 : bc->dim[k];
        p->stride[k] = stride;
        stride *= bc->dim[k];
        results *= p->kept[k];
        p->repeats *= p->summed[k];
    }
    p->rows = tile_rows(p->repeats, CUDA_THREADS);
    p->tiles = (p->repeats + p->rows - 1) / p->rows;
    return results;
}

void cuda_reduce(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch) {
    cudaStream_t stream = cuda_stream(ctx);
    double *sums = (double *)scratch;
    sums_plan p;
    scattered_plan s;
    if (!find_plan(bc, &p)) {
        const int64_t results = scatter(bc, &s);
        CDAD_LAUNCH_JOINED(scattered_kernel, (unsigned)(results * s.tiles), CUDA_THREADS, stream, sums, x, s);
        launch_sums(stream, y, sums, plan_of(results, s.tiles, 1, s.tiles, 1));
    } else if (p.tiles == 1) {
        launch_sums(stream, y, x, p);
    } else {
        launch_sums(stream, sums, x, p);
        launch_sums(stream, y, sums, plan_of(p.K0, p.tiles, p.K1, p.tiles, lanes_of(p.K1, LANES / 4)));
    }
    cuda_launched(ctx, "reduce");
}

int64_t cuda_reduce_scratch(const cdad_broadcast *bc) {
    sums_plan p;
    scattered_plan s;
    if (!find_plan(bc, &p))
        return scatter(bc, &s) * s.tiles * (int64_t)sizeof(double);
    return p.tiles > 1 ? p.K0 * p.tiles * p.K1 * (int64_t)sizeof(double) : 0;
}

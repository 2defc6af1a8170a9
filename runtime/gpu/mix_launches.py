"""The mix for every GPU and size: several launches, an image in device memory, which for one image is the L2 cache.

    stream ─ load ─ rows_1 ─ over_b ─ over_a, shuffle ─ rows_2 ─ over_b ─ over_a ─ rows_3 ─ out       each is a launch

A thread has a row, or a column of up to MAX_IN_REGISTERS values, or 8 values of what a longer column becomes.
"""

SOURCE = r"""
constexpr int WARPS = THREADS / 32, OUTPUTS = 8;
constexpr int A_CHUNKS = A > MAX_IN_REGISTERS ? (A + OUTPUTS - 1) / OUTPUTS : 1;
constexpr int B_CHUNKS = B > MAX_IN_REGISTERS ? (B + OUTPUTS - 1) / OUTPUTS : 1;
constexpr int SHARES = (SIZE + 16 * THREADS - 1) / (16 * THREADS);
constexpr int PARTS = MAY_TAKE_REST ? 1 : SHARES < 128 ? SHARES : 128;  // one block must see what rounding left
constexpr int STREAM_PARTS = (BLOCKS + THREADS - 1) / THREADS, ROW_PARTS = (ROWS + THREADS - 1) / THREADS;
constexpr int A_PARTS = (B * C * A_CHUNKS + THREADS - 1) / THREADS, B_PARTS = (A * C * B_CHUNKS + THREADS - 1) / THREADS;

// the workspace of an image, in words of 4 bytes
constexpr int X_AT = 0, Y_AT = SIZE, STREAM_AT = 2 * SIZE, PLACES_AT = STREAM_AT + BLOCKS * 16, COLUMNS_AT = PLACES_AT + ROWS;
constexpr int LOUD_AT = (COLUMNS_AT + C + 1) / 2 * 2, ENERGY_AT = LOUD_AT + 4 * PARTS * WARPS;
constexpr int WORK_WORDS = ENERGY_AT + 2 * ROW_PARTS * WARPS;
static_assert(WORK_WORDS == WORK, "the layout knows how much an image needs");

#ifndef SHIM
template <class T> static __device__ T* part(unsigned* work, int at, int) { return (T*)(work + at); }
#endif

struct Memory {
    span<float> x, y;
    span<unsigned> stream, places, columns;  // places of rows behind the shuffle; columns as in docs/wire.md
    span<double> loud, energy;               // sums of warps: of features, then of pads; of what goes on air
};
struct Place {
    int image, at, thread;  // at: this thread's number in its image
};

static __device__ Memory memory_of(span<unsigned> work, int image)
{
    const span<unsigned> mine = work + (size_t)image * WORK_WORDS;
    return {part<float>(mine, X_AT, SIZE), part<float>(mine, Y_AT, SIZE), part<unsigned>(mine, STREAM_AT, BLOCKS * 16),
            part<unsigned>(mine, PLACES_AT, ROWS), part<unsigned>(mine, COLUMNS_AT, C),
            part<double>(mine, LOUD_AT, 2 * PARTS * WARPS), part<double>(mine, ENERGY_AT, ROW_PARTS * WARPS)};
}
static __device__ Place place_in(int parts)
{
    const int thread = threadIdx.x, block = blockIdx.x;
    return {block / parts, block % parts * THREADS + thread, thread};
}
static __device__ double total(span<double> sums, int count, int thread)  // in every lane
{
    double sum = 0;
    for (int i = thread % 32; i < count; i += 32) sum += sums[i];
    return across(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS) stream(INPUT(unsigned) keys, span<unsigned> work)
{
    const Place p = place_in(STREAM_PARTS);
    if (p.at >= BLOCKS) return;
    const span<unsigned> to = memory_of(work, p.image).stream + p.at * 16;
    chacha(keys + (size_t)p.image * KEY, p.at, [&](int word, unsigned value) { to[word] = value; });
}

static __device__ void tables(const Memory& m, const Place& p)
{
    for (int row = p.at; row < ROWS; row += PARTS * THREADS)
        m.places[row] = place_of(row, [&](int w) { return m.stream[TURNS + w]; });
    if (p.at >= C) return;
    const unsigned mine = m.stream[ORDER + p.at];
    int order = 0;
    for (int other = 0; other < C; other++) {
        const unsigned word = m.stream[ORDER + other];
        order += word < mine || (word == mine && other < p.at);
    }
    m.columns[order] = p.at;
}

extern "C" __global__ void __launch_bounds__(THREADS) load(INPUT(feature) features, span<unsigned> work)
{
    const Place p = place_in(PARTS);
    const Memory m = memory_of(work, p.image);
    tables(m, p);
    constexpr int PLANE = REALS / CHANNELS;
    INPUT(feature) mine = features + (size_t)p.image * REALS;
    float loud = 0, noise = 0;
    #pragma unroll 4
    for (int e = p.at; e < REALS; e += PARTS * THREADS) {
        const float x = widen(mine[e]);
        m.x[e % PLANE * CHANNELS + e / PLANE] = x;
        loud += x * x;
    }
    for (int i = p.at; i < PADS; i += PARTS * THREADS) {
        const int w = PAD_WORDS + i;
        const float x = pad_of(m.stream[w], m.stream[w + PADS], m.stream[w + 2 * PADS], m.stream[w + 3 * PADS]);
        m.x[REALS + i] = x;
        noise += x * x;
    }
    const double of_features = across((double)loud), of_pads = across((double)noise);
    if (p.thread % 32) return;
    m.loud[p.at / 32] = of_features, m.loud[PARTS * WARPS + p.at / 32] = of_pads;
}

extern "C" __global__ void __launch_bounds__(THREADS) load_back(INPUT(float) received, span<unsigned> work)
{
    const Place p = place_in(PARTS);
    const Memory m = memory_of(work, p.image);
    tables(m, p);
    #pragma unroll 4
    for (int e = p.at; e < SIZE; e += PARTS * THREADS) m.x[e] = received[(size_t)p.image * SIZE + e];
}

static __device__ void factors(const Memory& m, int thread, float& for_features, float& for_pads)
{
    const float sum = (float)total(m.loud, PARTS * WARPS, thread), power = 2 * sum / REALS;
    const float unit = 1 / sqrtf(power < LEAST_POWER ? LEAST_POWER : power);
    const float noise = (float)total(m.loud + PARTS * WARPS, PARTS * WARPS, thread);
    for_pads = sqrtf(SIZE / 2 / (unit * unit * sum + noise)), for_features = unit * for_pads;
}
static __device__ void read_row(const Memory& m, int row, float (&x)[C])
{
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] = m.x[row * C + k];
}
static __device__ void write_row(const Memory& m, int row, float (&x)[C])
{
    #pragma unroll
    for (int k = 0; k < C; k++) m.x[row * C + k] = x[k];
}
static __device__ void flip_layer(const Memory& m, float (&x)[C], int layer, int row)
{
    flip(x, mask_of(layer, row, [&](int w) { return m.stream[w]; }));
}
static __device__ void flip_columns(const Memory& m, float (&x)[C])
{
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] = flipped(x[k], m.stream[COLUMN_SIGNS + k / 32], k % 32);
}

extern "C" __global__ void __launch_bounds__(THREADS) rows_1(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    const Memory m = memory_of(work, p.image);
    float for_features, for_pads, x[C];
    factors(m, p.thread, for_features, for_pads);
    if (p.at >= ROWS) return;
    read_row(m, p.at, x);
    #pragma unroll
    for (int k = 0; k < C; k++) x[k] *= p.at * C + k < REALS ? for_features : for_pads;
    flip_columns(m, x);
    along_c(x);
    flip_layer(m, x, 0, p.at);
    write_row(m, p.at, x);
}
extern "C" __global__ void __launch_bounds__(THREADS) rows_2(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    if (p.at >= ROWS) return;
    const Memory m = memory_of(work, p.image);
    float x[C];
    read_row(m, p.at, x);
    along_c(x);
    flip_layer(m, x, 2, p.at);
    write_row(m, p.at, x);
}
extern "C" __global__ void __launch_bounds__(THREADS) rows_3(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    const Memory m = memory_of(work, p.image);
    double energy = 0;
    if (p.at < ROWS) {
        float x[C];
        read_row(m, p.at, x);
        flip_layer(m, x, 3, p.at);
        along_c(x);
        flip_layer(m, x, 4, p.at);
        write_row(m, p.at, x);
        #pragma unroll
        for (int k = 0; k < C; k++) energy += (double)x[k] * x[k];
    }
    energy = across(energy);
    if (p.thread % 32 == 0) m.energy[p.at / 32] = energy;
}
extern "C" __global__ void __launch_bounds__(THREADS) rows_1_back(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    if (p.at >= ROWS) return;
    const Memory m = memory_of(work, p.image);
    float x[C];
    read_row(m, p.at, x);
    flip_layer(m, x, 4, p.at);
    along_c_back(x);
    flip_layer(m, x, 3, p.at);
    write_row(m, p.at, x);
}
extern "C" __global__ void __launch_bounds__(THREADS) rows_2_back(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    if (p.at >= ROWS) return;
    const Memory m = memory_of(work, p.image);
    float x[C];
    read_row(m, p.at, x);
    flip_layer(m, x, 2, p.at);
    along_c_back(x);
    write_row(m, p.at, x);
}
extern "C" __global__ void __launch_bounds__(THREADS) rows_3_back(span<unsigned> work)
{
    const Place p = place_in(ROW_PARTS);
    if (p.at >= ROWS) return;
    const Memory m = memory_of(work, p.image);
    float x[C];
    read_row(m, p.at, x);
    flip_layer(m, x, 0, p.at);
    along_c_back(x);
    flip_columns(m, x);
    write_row(m, p.at, x);
}

// read(i) and write(i, value) are those of one vector; a chunk is all of it, or OUTPUTS values of what it becomes
template <int M, class Read, class Write>
static __device__ void long_product(const unsigned* table, int chunk, Read read, Write write)
{
    float y[OUTPUTS] = {};
    const int first = chunk * OUTPUTS, words = (M + 31) / 32;
    #pragma unroll 1
    for (int w = 0; w < words; w++) {
        unsigned signs[OUTPUTS];
        #pragma unroll
        for (int o = 0; o < OUTPUTS; o++) signs[o] = first + o < M ? table[(first + o) * words + w] : 0;
        #pragma unroll 4
        for (int i = w * 32; i < M && i < w * 32 + 32; i++) {
            const float x = read(i);
            #pragma unroll
            for (int o = 0; o < OUTPUTS; o++) y[o] += flipped(x, signs[o], i % 32);
        }
    }
    #pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
        if (first + o < M) write(first + o, y[o]);
}

template <bool BACK, class Read, class Write>
static __device__ void product_a(int chunk, Read read, Write write)
{
#if A > MAX_IN_REGISTERS
    long_product<A>(BACK ? along_a_back : along_a, chunk, read, write);
#else
    float x[A];
    #pragma unroll
    for (int i = 0; i < A; i++) x[i] = read(i);
    BACK ? along_a_back(x) : along_a(x);
    #pragma unroll
    for (int i = 0; i < A; i++) write(i, x[i]);
#endif
}
template <bool BACK, class Read, class Write>
static __device__ void product_b(int chunk, Read read, Write write)
{
#if B > MAX_IN_REGISTERS
    long_product<B>(BACK ? along_b_back : along_b, chunk, read, write);
#else
    float x[B];
    #pragma unroll
    for (int i = 0; i < B; i++) x[i] = read(i);
    BACK ? along_b_back(x) : along_b(x);
    #pragma unroll
    for (int i = 0; i < B; i++) write(i, x[i]);
#endif
}

template <bool BACK>
static __device__ void over_b(span<float> from, span<float> to, int at)
{
    if (at >= A * C * B_CHUNKS) return;
    const int v = at % (A * C), first = v / C * B * C + v % C;
    product_b<BACK>(at / (A * C), [&](int j) { return (float)from[first + j * C]; },
                    [&](int j, float x) { to[first + j * C] = x; });
}
template <bool BACK>
static __device__ void over_a(span<float> from, span<float> to, int at)
{
    if (at >= B * C * A_CHUNKS) return;
    const int v = at % (B * C);
    product_a<BACK>(at / (B * C), [&](int i) { return (float)from[i * B * C + v]; },
                    [&](int i, float x) { to[i * B * C + v] = x; });
}

extern "C" __global__ void __launch_bounds__(THREADS) b_xy(span<unsigned> work)
{
    const Place p = place_in(B_PARTS);
    const Memory m = memory_of(work, p.image);
    over_b<false>(m.x, m.y, p.at);
}
extern "C" __global__ void __launch_bounds__(THREADS) b_xy_back(span<unsigned> work)
{
    const Place p = place_in(B_PARTS);
    const Memory m = memory_of(work, p.image);
    over_b<true>(m.x, m.y, p.at);
}
extern "C" __global__ void __launch_bounds__(THREADS) b_yx_back(span<unsigned> work)
{
    const Place p = place_in(B_PARTS);
    const Memory m = memory_of(work, p.image);
    over_b<true>(m.y, m.x, p.at);
}
extern "C" __global__ void __launch_bounds__(THREADS) a_yx(span<unsigned> work)
{
    const Place p = place_in(A_PARTS);
    const Memory m = memory_of(work, p.image);
    over_a<false>(m.y, m.x, p.at);
}
extern "C" __global__ void __launch_bounds__(THREADS) a_yx_back(span<unsigned> work)
{
    const Place p = place_in(A_PARTS);
    const Memory m = memory_of(work, p.image);
    over_a<true>(m.y, m.x, p.at);
}
// value k of row i * B + j, where the shuffle puts it or had put it
static __device__ int moved(const Memory& m, int row, int k, unsigned& minus)
{
    const int place = m.places[row], bit = place * C + k;
    minus = m.stream[LAYER + bit / 32] << (31 - bit % 32) & 0x80000000u;
    return place * C + m.columns[k];
}
extern "C" __global__ void __launch_bounds__(THREADS) a_shuffle(span<unsigned> work)
{
    const Place p = place_in(A_PARTS);
    if (p.at >= B * C * A_CHUNKS) return;
    const Memory m = memory_of(work, p.image);
    const int v = p.at % (B * C);
    product_a<false>(p.at / (B * C), [&](int i) { return (float)m.y[i * B * C + v]; },
                     [&](int i, float x) {
                         unsigned minus;
                         const int to = moved(m, i * B + v / C, v % C, minus);
                         m.x[to] = float_of(bits_of(x) ^ minus);
                     });
}
extern "C" __global__ void __launch_bounds__(THREADS) a_shuffle_back(span<unsigned> work)
{
    const Place p = place_in(A_PARTS);
    if (p.at >= B * C * A_CHUNKS) return;
    const Memory m = memory_of(work, p.image);
    const int v = p.at % (B * C);
    product_a<true>(p.at / (B * C),
                    [&](int i) {
                        unsigned minus;
                        const int from = moved(m, i * B + v / C, v % C, minus);
                        return float_of(bits_of(m.x[from]) ^ minus);
                    },
                    [&](int i, float x) { m.y[i * B * C + v] = x; });
}

// on_air[batch][SIZE], scales[batch]; every real is rounded once
extern "C" __global__ void __launch_bounds__(THREADS) out(span<unsigned> work, span<float> on_air, span<float> scales)
{
    const Place p = place_in(PARTS);
    const Memory m = memory_of(work, p.image);
    const double factor = sqrt(SIZE / 2 / total(m.energy, ROW_PARTS * WARPS, p.thread));
    float for_features, for_pads;
    factors(m, p.thread, for_features, for_pads);
    if (p.at == 0) scales[p.image] = (float)(factor * for_features / SOFTER);
    const span<float> to = on_air + (size_t)p.image * SIZE;
    const bool rest = takes_rest(factor);
    double energy = 0;
    unsigned long long largest = 0;
    #pragma unroll 4
    for (int e = p.at; e < SIZE; e += PARTS * THREADS) {
        const float x = (float)(factor * m.x[e]);
        to[e] = x;
        if (!rest) continue;
        energy += (double)x * x;
        const unsigned long long key = (unsigned long long)(bits_of(x) & 0x7fffffffu) << 32 | (0xffffffffu - e);
        largest = key > largest ? key : largest;
    }
    if (!rest) return;
    // rounding left something of the power, which the largest takes; one block has the image
    energy = across(energy), largest = largest_of(largest);
    __syncthreads();  // all have read the sums, whose place this takes
    if (p.thread % 32 == 0) m.energy[p.thread / 32] = energy, m.loud[p.thread / 32] = __longlong_as_double((long long)largest);
    __syncthreads();
    if (p.thread) return;
    energy = 0, largest = 0;
    for (int w = 0; w < WARPS; w++) {
        const unsigned long long key = (unsigned long long)__double_as_longlong(m.loud[w]);
        energy += m.energy[w], largest = key > largest ? key : largest;
    }
    const int takes = (int)(0xffffffffu - (unsigned)largest);
    const float x = to[takes];
    to[takes] = x + (float)((SIZE / 2 - energy) / (2 * (double)x));
}

// features[batch][CHANNELS][REALS / CHANNELS]
extern "C" __global__ void __launch_bounds__(THREADS) out_back(span<unsigned> work, span<feature> features)
{
    const Place p = place_in(PARTS);
    const Memory m = memory_of(work, p.image);
    constexpr int PLANE = REALS / CHANNELS;
    const span<feature> to = features + (size_t)p.image * REALS;
    #pragma unroll 4
    for (int e = p.at; e < REALS; e += PARTS * THREADS) to[e] = narrow((float)SOFTER * m.x[e % PLANE * CHANNELS + e / PLANE]);
}
"""

MIX = ("stream", "load", "rows_1", "b_xy", "a_shuffle", "rows_2", "b_xy", "a_yx", "rows_3", "out")
UNMIX = ("stream", "load_back", "rows_1_back", "b_xy_back", "a_yx_back", "rows_2_back", "a_shuffle_back", "b_yx_back",
         "rows_3_back", "out_back")  # fmt: skip

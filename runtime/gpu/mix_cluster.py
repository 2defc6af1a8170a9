"""The mix for GPUs with thread block clusters: one launch, an image in the shared memory of G blocks of a cluster.

    block r of a cluster   slabs r*SLABS.. of the first digit of a row number, as rows [SLABS * b][c + 1], and its part
                           of the key stream

    key stream, features in ─┊─ C, B ─┊─ A ┊ shuffle ─┊─ C, B ─┊─ A ┊ C ─┊─ power, out        ┊ a barrier of the cluster

C and B go along what a block has for itself. A goes across: a thread takes a column of all blocks' memory into its
registers, and holds it until all columns are taken; so one copy of the image is enough. The shuffle puts columns where
their rows belong. The last ones stay in the block that took them. Undoing it is the same backwards. With one block there is no
cluster: rows stay in their place, and it takes one image after the other, whose key stream it makes beside its stores.
"""

from semseal.runtime.gpu.mix_push import FAR
from semseal.runtime.gpu.mix_source import PLANAR

SOURCE = (
    r"""
constexpr int WARPS = THREADS / 32, SLABS = (A + G - 1) / G, SLICES = (B + G - 1) / G, PITCH = C + 1;
constexpr int HELD_ROWS = SLABS * B, TILE_ROWS = SLABS * B > SLICES * A ? SLABS * B : SLICES * A;
// One block keeps rows where they are, and those of a slice are as far from each other as no two in one bank
constexpr int SLAB_PITCH = B * PITCH + (G == 1), TILE = G == 1 ? A * SLAB_PITCH : TILE_ROWS * PITCH;
constexpr bool IN_WARPS = B == 32 && C == 32;  // rows of a slab are those of a warp, in C and in B
constexpr bool KEPT_IN_WARPS = A == 32 && C == 32 && G == 1;  // and rows of a slice, in A and in C
constexpr int CHUNK = (BLOCKS + G - 1) / G, CHUNK_WORDS = CHUNK * 16;
constexpr int SUMS = G * WARPS;  // of the warps of an image
static_assert(THREADS % 32 == 0 && SLICES * C <= THREADS, "a thread holds one column");
constexpr bool EVERY_THREAD = SLICES * C == THREADS && SLICES * G == B;  // and there are no others
// threads that make the stream and nothing else: of several blocks while others fetch the image, of one while others write it
constexpr int MAKERS = (RESIDENT == 1 || G == 1) && CHUNK + 32 <= THREADS ? (CHUNK + 31) / 32 * 32 : 0;
constexpr int OTHERS = THREADS - MAKERS;
constexpr int LOADS = 8;  // of a thread at a time

// the shared memory of a block, in bytes
constexpr int TILE_AT = 0, STREAM_AT = TILE_AT + 4 * TILE, SUMS_AT = (STREAM_AT + CHUNK * 17 * 4 + 15) / 16 * 16;
constexpr int POWERS_AT = SUMS_AT + 2 * 8 * SUMS, TURNS_AT = POWERS_AT + 2 * 4 * SUMS, WORDS_AT = TURNS_AT + 4 * 3 * TURN;
constexpr int COLUMNS_AT = WORDS_AT + 4 * (C + 2);
constexpr int PLACES_AT = (COLUMNS_AT + 4 * C + 7) / 8 * 8, NOW_AT = PLACES_AT + 8 * MASK_WORDS * SLICES * A;
constexpr int FACTOR_AT = NOW_AT + 4, ARENA_BYTES = FACTOR_AT + 4;
static_assert(ARENA_BYTES <= ROOM, "the layout knows how much a block has");

#if G == 1
#define CLUSTER
#else
#define CLUSTER __cluster_dims__(G, 1, 1)
#endif
"""
    + PLANAR
    + FAR
    + r"""
struct Memory {
    span<float> tile;
    span<unsigned> stream;    // 17 words for each 16
    span<double> sums;        // two arrays of SUMS
    span<float> powers;       // two arrays of SUMS
    span<unsigned> turns;     // of the shuffle of rows
    span<unsigned> words;     // of columns, then the columns' signs
    span<unsigned> columns;   // the one that each becomes
    // of each row of this block's slices behind the shuffle: block << 24 | place in its tile, and its signs of layer 1 above
    span<unsigned long long> places;
    span<int> now;       // the image that is worked on: threads have no register for it
    span<float> factor;  // of its features
    int rank, thread, lane;
};

static __device__ unsigned word_of(const Memory& m, int w)
{
    const int at = w % CHUNK_WORDS;
    return of_block(m.stream, w / CHUNK_WORDS)[at + at / 16];
}
template <class T>
static __device__ void give(const Memory& m, span<T> array, T value)  // a warp's value to every block
{
    for (int to = m.lane; to < G; to += 32) of_block(array, to)[m.rank * WARPS + m.thread / 32] = value;
}
template <class T>
static __device__ T total(const Memory& m, span<T> array)  // in every lane
{
    T sum = 0;
    for (int i = m.lane; i < SUMS; i += 32) sum += array[i];
    return across(sum);
}
static __device__ void rows_met() { IN_WARPS ? __syncwarp() : __syncthreads(); }
static __device__ void kept_met() { KEPT_IN_WARPS ? __syncwarp() : __syncthreads(); }

static __device__ void make_stream(const Memory& m, INPUT(unsigned) key)
{
    for (int i = m.thread; i < CHUNK; i += THREADS) {
        const int block = m.rank * CHUNK + i;
        const span<unsigned> to = m.stream + i * 17;
        if (block < BLOCKS) chacha(key, block, [&](int word, unsigned value) { to[word] = value; });
    }
}

// behind a barrier: what every block makes of the stream for itself, up to the tables
static __device__ unsigned turn_of(const Memory& m, int w) { return G == 1 ? word_of(m, TURNS + w) : m.turns[w]; }
static __device__ unsigned column_word(const Memory& m, int w)  // of the columns' order, then of their signs
{
    return G == 1 ? word_of(m, w < C ? ORDER + w : COLUMN_SIGNS + w - C) : m.words[w];
}
static __device__ void fetch_keys(const Memory& m)
{
    for (int i = m.thread; i < 3 * TURN; i += THREADS) m.turns[i] = word_of(m, TURNS + i);
    for (int i = m.thread; i < C + 2; i += THREADS) m.words[i] = word_of(m, i < C ? ORDER + i : COLUMN_SIGNS + i - C);
}
// where a row of a block's slices lies
static __device__ int kept_at(int slice, int i) { return G == 1 ? i * SLAB_PITCH + slice * PITCH : (slice * A + i) * PITCH; }
static __device__ void make_tables(const Memory& m)  // behind a barrier of the block
{
    for (int k = THREADS - 1 - m.thread; k < C; k += THREADS) {
        const unsigned mine = column_word(m, k);
        int order = 0;  // among the columns by size, equal ones as they come
        #pragma unroll 4
        for (int other = 0; other < C; other++) {
            const unsigned word = column_word(m, other);
            order += word < mine || (word == mine && other < k);
        }
        m.columns[order] = k;  // behind the shuffle, column `order` has become column k
    }
    for (int i = m.thread; i < SLICES * A; i += THREADS) {
        const int j = m.rank * SLICES + i / A;
        if (j >= B) continue;
        const int place = place_of(i % A * B + j, [&](int w) { return turn_of(m, w); });
        const unsigned at = (unsigned)(place / HELD_ROWS) << 24 | held(place % HELD_ROWS);
        const Mask mask = mask_of(1, place, [&](int w) { return word_of(m, w); });
        #pragma unroll
        for (int w = 0; w < MASK_WORDS; w++) m.places[w * SLICES * A + i] = (unsigned long long)mask.at[w] << 32 | at;
    }
}

template <bool BACK>
static __device__ void over_b(const Memory& m, int slabs)  // in this block
{
    for (int v = m.thread; v < slabs * C; v += THREADS) {
        const span<float> vector = m.tile + (v / C * SLAB_PITCH + v % C);
        float x[B];
        #pragma unroll
        for (int j = 0; j < B; j++) x[j] = vector[j * PITCH];
        BACK ? along_b_back(x) : along_b(x);
        #pragma unroll
        for (int j = 0; j < B; j++) vector[j * PITCH] = x[j];
    }
}

template <bool STORE>
static __device__ void column(const Memory& m, float (&x)[A], int j, int k)  // of all blocks
{
    #pragma unroll
    for (int owner = 0; owner < G; owner++) {
        const far<float> vector = of_block(m.tile, owner) + (j * PITCH + k);
        #pragma unroll
        for (int s = 0; s < SLABS; s++) {
            if (owner * SLABS + s >= A) break;
            if (STORE) vector[s * SLAB_PITCH] = x[owner * SLABS + s];
            else x[owner * SLABS + s] = vector[s * SLAB_PITCH];
        }
    }
}

// a block's own slices: row i * B + j lies at j's place among them, then at i
static __device__ int row_of(int rank, int r) { return r % A * B + rank * SLICES + r / A; }
template <bool STORE>
static __device__ void slice_of(const Memory& m, float (&x)[A], int slice, int k)
{
    #pragma unroll
    for (int i = 0; i < A; i++) {
        if (STORE) m.tile[kept_at(slice, i) + k] = x[i];
        else x[i] = m.tile[kept_at(slice, i) + k];
    }
}

template <bool STORE>
static __device__ void shuffled(const Memory& m, float (&x)[A], int slice, int k)  // a column whose rows have changed places
{
    const span<unsigned long long> places = m.places + (k / 32 * SLICES * A + slice * A);
    const int to = m.columns[k];
    #pragma unroll
    for (int i = 0; i < A; i++) {
        const unsigned long long place = places[i];
        const far<float> at = of_block(m.tile, (unsigned)place >> 24) + (((unsigned)place & 0xffffffu) + to);
        if (STORE) at[0] = flipped(x[i], place >> 32, k % 32);
        else x[i] = flipped(at[0], place >> 32, k % 32);
    }
}

static __device__ float unit_of(const Memory& m)  // what brings the features to power 1
{
    const float power = 2 * total(m, m.powers) / REALS;
    return 1 / sqrtf(power < LEAST_POWER ? LEAST_POWER : power);
}
static __device__ Mask column_signs(const Memory& m)  // read by every row: what a loop keeps of it takes registers
{
    Mask mask;
    #pragma unroll
    for (int w = 0; w < MASK_WORDS; w++) mask.at[w] = column_word(m, C + w);
    return mask;
}

static __device__ Memory begin(char* arena, int rank)
{
    const int thread = unforeseen(threadIdx.x);
    return {part<float>(arena, TILE_AT, TILE), part<unsigned>(arena, STREAM_AT, CHUNK * 17),
            part<double>(arena, SUMS_AT, 2 * SUMS), part<float>(arena, POWERS_AT, 2 * SUMS),
            part<unsigned>(arena, TURNS_AT, 3 * TURN), part<unsigned>(arena, WORDS_AT, C + 2),
            part<unsigned>(arena, COLUMNS_AT, C),
            part<unsigned long long>(arena, PLACES_AT, MASK_WORDS * SLICES * A), part<int>(arena, NOW_AT, 1),
            part<float>(arena, FACTOR_AT, 1), rank, thread, thread % 32};
}

// One image, whose key stream is made but for a barrier. A block that takes one after the other makes the next one's
static __device__ int mix_image(
    const Memory& m, INPUT(feature) features, INPUT(unsigned) keys, span<float> on_air, span<float> scales, int image,
    int images)
{
    const int rank = m.rank, slabs = min(SLABS, A - rank * SLABS), rows = slabs * B, first = rank * HELD_ROWS;  // may be < 0
    const int from = first * C, end = min(REALS, from + rows * C);  // its reals that are features
    const int kept = max(0, min(SLICES, B - rank * SLICES)) * A;
    const auto stream = [&](int w) { return word_of(m, w); };

    if (G == 1) __syncthreads();
    float loud = 0, noise = 0;
    if (G == 1 || m.thread >= MAKERS) {
        const int warp = (G == 1 ? m.thread : m.thread - MAKERS) / 32;
        loud = load_features(m.tile, features + (size_t)image * REALS, from, end, warp, G == 1 ? WARPS : OTHERS / 32, m.lane);
    }
    if (G > 1) all_begun();
    give(m, m.powers, across(loud));
    if (m.thread == 0) m.now[0] = image;
    if (G > 1) meet();
    if (G > 1) fetch_keys(m);
    for (int e = max(from, REALS) + m.thread; e < from + rows * C; e += THREADS) {
        const int i = PAD_WORDS + e - REALS, at = e - from;
        const float x = pad_of(stream(i), stream(i + PADS), stream(i + 2 * PADS), stream(i + 3 * PADS));
        m.tile[held(at / C) + at % C] = x;
        noise += x * x;
    }
    give(m, m.powers + SUMS, across(noise));
    if (G == 1) make_tables(m);
    __syncthreads();

    if (G > 1) make_tables(m);
    const int next = image + gridDim.x / G;
    if (G == 1 && next < images) fetch_ahead(features + (size_t)next * REALS, REALS);
    const float louder = 1 / unit_of(m);
    for (int r = m.thread; r < rows; r += THREADS) {
        const span<float> row = m.tile + held(r);
        float x[C];
        #pragma unroll
        for (int k = 0; k < C; k++) x[k] = row[k];
        const int left = REALS - (first + r) * C;  // features of this row and those behind it
        if (PADS && left < C) {  // pads become as loud as the features, whose factor comes later
            #pragma unroll
            for (int k = 0; k < C; k++) x[k] = k < left ? x[k] : x[k] * louder;
        }
        flip(x, column_signs(m));
        along_c(x);
        flip(x, mask_of(0, first + r, stream));
        #pragma unroll
        for (int k = 0; k < C; k++) row[k] = x[k];
    }
    rows_met();
    over_b<false>(m, slabs);
    meet();

    const int slice = m.thread / C, k = m.thread % C, j = rank * SLICES + slice;
    const bool has = EVERY_THREAD || (slice < SLICES && j < B);
    {
        float x[A];
        if (has) {
            column<false>(m, x, j, k);
            along_a(x);
        }
        meet();
        if (has) shuffled<true>(m, x, slice, k);
    }
    if (m.thread < 32) {  // meanwhile, for all
        const float unit = unit_of(m), features = total(m, m.powers), pads = total(m, m.powers + SUMS);
        if (m.thread == 0) m.factor[0] = unit * sqrtf(SIZE / 2 / (unit * unit * features + pads));
    }
    meet();

    const float for_features = m.factor[0];
    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<false>(m.tile + held(r), Mask{}, mask_of(2, first + r, stream), for_features);
    rows_met();
    over_b<false>(m, slabs);
    meet();

    // from here on a block has its slices of the second digit: what it takes of the others it keeps
    {
        float x[A];
        if (has) {
            column<false>(m, x, j, k);
            along_a(x);
        }
        if (G > 1) meet();
        if (has) slice_of<true>(m, x, slice, k);
    }
    kept_met();

    double energies[2] = {};
    for (int r = m.thread; r < kept; r += THREADS) {
        const int row = row_of(rank, r);
        last_row_pass(m.tile + kept_at(r / A, r % A), mask_of(3, row, stream), mask_of(4, row, stream), energies);
    }
    give(m, m.sums, across(energies[0] + energies[1]));
    meet();

    // every real is rounded once: the factor in two parts
    const double factor = rsqrt(total(m, m.sums) / (SIZE / 2));
    const float most = (float)factor, least = (float)(factor - most);
    const auto scaled = [&](int r, int k) {
        const float x = m.tile[kept_at(r / A, r % A) + k];
        return fmaf(x, most, x * least);
    };
    const int now = m.now[0];
    const span<float> out = on_air + (size_t)now * SIZE;
    if (rank == 0 && m.thread == 0) scales[now] = (float)(factor * m.factor[0] / SOFTER);
    const int after = now + gridDim.x / G;
    if (G == 1 && after < images) make_stream(m, keys + (size_t)after * KEY);  // while others write
    if (!takes_rest(factor)) {
        const int writers = G == 1 ? OTHERS : THREADS;
        #pragma unroll 8
        for (int e = m.thread - (THREADS - writers); e >= 0 && e < kept * C; e += writers)
            store_once(out + (row_of(rank, e / C) * C + e % C), scaled(e / C, e % C));
        return now;
    }
    // rounding left something of the power, which the largest takes; its magnitude's bits, then the first of equals
    double energy = 0;
    unsigned long long largest = 0;
    for (int e = m.thread; e < kept * C; e += THREADS) {
        const float x = scaled(e / C, e % C);
        const unsigned place = row_of(rank, e / C) * C + e % C;
        energy += (double)x * x;
        const unsigned long long key = (unsigned long long)(bits_of(x) & 0x7fffffffu) << 32 | (0xffffffffu - place);
        largest = key > largest ? key : largest;
    }
    meet();
    give(m, m.sums, across(energy));
    give(m, m.sums + SUMS, __longlong_as_double((long long)largest_of(largest)));
    meet();
    const double off = SIZE / 2 - total(m, m.sums);
    largest = 0;
    for (int i = m.lane; i < SUMS; i += 32) {
        const unsigned long long key = (unsigned long long)__double_as_longlong(m.sums[SUMS + i]);
        largest = key > largest ? key : largest;
    }
    const int takes = (int)(0xffffffffu - (unsigned)largest_of(largest));
    for (int e = m.thread; e < kept * C; e += THREADS) {
        const float x = scaled(e / C, e % C);
        const int place = row_of(rank, e / C) * C + e % C;
        out[place] = place == takes ? x + (float)(off / (2 * (double)x)) : x;
    }
    return now;
}

// features[images][CHANNELS][REALS / CHANNELS], keys[images][KEY], on_air[images][SIZE], scales[images]
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, RESIDENT) mix(
    INPUT(feature) features, INPUT(unsigned) keys, span<float> on_air, span<float> scales, int images)
{
    ARENA(arena);
    int image = blockIdx.x / G;
    if (G > 1) begun();
    make_stream(begin(arena, blockIdx.x % G), keys + (size_t)image * KEY);
    for (;;) {
        image = mix_image(begin(arena, blockIdx.x % G), features, keys, on_air, scales, image, images) + gridDim.x / G;
        if (G > 1 || image >= images) return;  // several blocks are launched for every image
    }
}

static __device__ void unmix_image(
    const Memory& m, INPUT(float) received, INPUT(unsigned) keys, span<feature> features, int image, int images)
{
    const int rank = m.rank, slabs = min(SLABS, A - rank * SLABS), rows = slabs * B, first = rank * HELD_ROWS;
    const int from = first * C, end = min(REALS, from + rows * C);
    const int kept = max(0, min(SLICES, B - rank * SLICES)) * A;
    const auto stream = [&](int w) { return word_of(m, w); };

    if (G == 1) __syncthreads();
    INPUT(float) mine = received + (size_t)image * SIZE;
    #pragma unroll(LOADS)
    for (int e = G == 1 ? m.thread : m.thread - MAKERS; e >= 0 && e < kept * C; e += G == 1 ? THREADS : OTHERS)
        m.tile[kept_at(e / C / A, e / C % A) + e % C] = mine[row_of(rank, e / C) * C + e % C];
    if (G == 1) make_tables(m);
    meet();

    if (G > 1) fetch_keys(m);
    const int next = image + gridDim.x / G;
    if (G == 1 && next < images) fetch_ahead(received + (size_t)next * SIZE, SIZE);
    for (int r = m.thread; r < kept; r += THREADS) {
        const int row = row_of(rank, r);
        row_pass<true>(m.tile + kept_at(r / A, r % A), mask_of(4, row, stream), mask_of(3, row, stream));
    }
    kept_met();
    if (G > 1) make_tables(m);

    // from here on a block has its slabs of the first digit: what it has of the others it gives them
    const int slice = m.thread / C, k = m.thread % C, j = rank * SLICES + slice;
    const bool has = EVERY_THREAD || (slice < SLICES && j < B);
    {
        float x[A];
        if (has) {
            slice_of<false>(m, x, slice, k);
            along_a_back(x);
        }
        if (G > 1) meet();
        if (has) column<true>(m, x, j, k);
    }
    meet();

    over_b<true>(m, slabs);
    rows_met();
    for (int r = m.thread; r < rows; r += THREADS) row_pass<true>(m.tile + held(r), mask_of(2, first + r, stream), Mask{});
    meet();

    {
        float x[A];
        if (has) shuffled<false>(m, x, slice, k);
        meet();
        if (has) {
            along_a_back(x);
            column<true>(m, x, j, k);
        }
    }
    meet();

    over_b<true>(m, slabs);
    rows_met();
    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<true>(m.tile + held(r), mask_of(0, first + r, stream), column_signs(m));
    meet();  // also: no block ends while others read its stream

    const int now = unforeseen(image), after = now + gridDim.x / G;
    if (G == 1 && after < images) make_stream(m, keys + (size_t)after * KEY);  // while others write
    if (G > 1 || m.thread >= MAKERS) {
        const int warp = (G > 1 ? m.thread : m.thread - MAKERS) / 32;
        store_features(m.tile, features + (size_t)now * REALS, from, end, warp, G > 1 ? WARPS : OTHERS / 32, m.lane);
    }
}

// received[images][SIZE], keys[images][KEY], features[images][CHANNELS][REALS / CHANNELS]
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, RESIDENT) unmix(
    INPUT(float) received, INPUT(unsigned) keys, span<feature> features, int images)
{
    ARENA(arena);
    int image = blockIdx.x / G;
    make_stream(begin(arena, blockIdx.x % G), keys + (size_t)image * KEY);
    for (;;) {
        unmix_image(begin(arena, blockIdx.x % G), received, keys, features, image, images);
        image += gridDim.x / G;
        if (G > 1 || image >= images) return;
    }
}
"""
)

"""The mix for few images on GPUs with thread block clusters: one launch, every block with a multiprocessor for itself.

    block r of a cluster   slabs r*SLABS.. of the first digit of a row number, as rows [SLABS * b][c + 1]; then slices
                           r*SLICES.. of the second digit, as rows [SLICES * a][c + 1]

    features in, key stream ─ C, B ─┊─ A, shuffle ─┊─ C, B ─┊─ A, C ─┊─ power, out            ┊ from block to block

No block waits for all others at a barrier. What another block needs is pushed into its memory by asynchronous stores, which
count the bytes that have come at a barrier object there; who needs them waits for their number. So what crosses costs its way
and no fence. A block makes of the key stream what it needs for itself, whatever others make of it too: signs of its rows
first, those of the last rows by threads that have nothing else to do. Only words of pads are made by all for those that have
the pads. Each exchange has memory of its own.
"""

from semseal.runtime.gpu.mix_push import PUSH
from semseal.runtime.gpu.mix_source import PLANAR

SOURCE = (
    r"""
constexpr int WARPS = THREADS / 32, SLABS = (A + G - 1) / G, SLICES = (B + G - 1) / G, PITCH = C + 1, SLAB_PITCH = B * PITCH;
constexpr int HELD_ROWS = SLABS * B, TILE_ROWS = SLABS * B > SLICES * A ? SLABS * B : SLICES * A;
constexpr int SUMS = G * WARPS;  // of the warps of an image
constexpr int LAST_WARPS = SLICES * A < THREADS ? (SLICES * A + 31) / 32 : WARPS;  // of a block, that have last rows
static_assert(THREADS % 32 == 0, "");
constexpr bool IN_WARPS = B == 32 && C == 32;  // rows of a slab are those of a warp, in C and in B
constexpr bool KEPT_IN_WARPS = A == 32 && C == 32;  // and rows of a slice, in A and in C
constexpr int STREAM_PITCH = 20;  // words for each 16: 16 bytes at a time, without two in one bank
constexpr int PAD_BLOCKS = PADS ? (TURNS - 1) / 16 - PAD_WORDS / 16 + 1 : 0;
constexpr int FIRST_PAD_RANK = REALS / (HELD_ROWS * C), LAST_RANK = (A - 1) / SLABS;
constexpr int LAST_SIGN = 4 * LAYER + (ROWS - 1) * C / 32 + MASK_WORDS - (C % 32 == 0);  // the last word that rows look at
constexpr int ROW_WORDS = HELD_ROWS * C / 32 + 2;
constexpr int MADE = 3 * (ROW_WORDS / 16 + 2) + 2 + (WORDS - TURNS) / 16 + 2 + (PAD_BLOCKS + G - 1) / G;  // at most
constexpr int MADE_BACK = LAST_SIGN / 16 - 3 * LAYER / 16 + 1;
// threads that make the stream and nothing else, while the others fetch the image
constexpr int MAKERS = MADE + 32 <= THREADS ? (MADE + 31) / 32 * 32 : 0, LOADERS = THREADS - MAKERS;
constexpr int MAKERS_BACK = MADE_BACK + 32 <= THREADS ? (MADE_BACK + 31) / 32 * 32 : 0, LOADERS_BACK = THREADS - MAKERS_BACK;

enum { FROM_FEATURES, TO_SLICES, TO_PLACES, TO_SLICES_AGAIN, ENERGY, REST, EXCHANGES };

// the shared memory of a block, in bytes
constexpr int ARRIVALS_AT = 0, TILE_BYTES = (4 * TILE_ROWS * PITCH + 15) / 16 * 16, TILES_AT = ARRIVALS_AT + 64;
constexpr int STREAM_AT = TILES_AT + 3 * TILE_BYTES, PADS_AT = STREAM_AT + BLOCKS * STREAM_PITCH * 4;
constexpr int SUMS_AT = PADS_AT + PAD_BLOCKS * STREAM_PITCH * 4, POWERS_AT = SUMS_AT + 3 * 8 * SUMS;
constexpr int COLUMNS_AT = POWERS_AT + 2 * 4 * SUMS, PLACES_AT = COLUMNS_AT + 4 * 2 * C;
constexpr int MASKS_AT = PLACES_AT + 4 * TILE_ROWS, ARENA_BYTES = MASKS_AT + 4 * HELD_ROWS * MASK_WORDS;
static_assert(ARENA_BYTES <= ROOM, "the layout knows how much a block has");
#define CLUSTER __cluster_dims__(G, 1, 1)
"""
    + PLANAR
    + PUSH
    + r"""
struct Memory {
    span<unsigned long long> arrivals;
    span<float> tiles[4];    // the third is the first, which nobody needs any more when it is pushed to
    span<unsigned> stream;   // STREAM_PITCH words for each 16 that are made here
    span<unsigned> pads;     // and of those of pads
    span<double> sums;       // three arrays of SUMS
    span<float> powers;      // two arrays of SUMS
    span<unsigned> columns;  // the one that each becomes, then the one that each comes from
    span<unsigned> places;   // of each row: block << 24 | place in its tile
    span<unsigned> masks;    // signs of layer 1 of this block's rows, as columns are behind the shuffle
    int rank, thread, lane;
};

static __device__ unsigned word_of(const Memory& m, int w) { return m.stream[w / 16 * STREAM_PITCH + w % 16]; }
static __device__ unsigned pad_word(const Memory& m, int w)
{
    w += PAD_WORDS % 16;
    return m.pads[w / 16 * STREAM_PITCH + w % 16];
}
// The value of each of the first `warps` warps of a block to every block
template <class T>
static __device__ void give(const Memory& m, span<T> array, int exchange, T value, int warps = WARPS)
{
    if (m.thread / 32 >= warps) return;
    for (int to = m.lane; to < G; to += 32)
        push(towards(array, m.arrivals, exchange, to), m.rank * warps + m.thread / 32, value);
}
template <class T>
static __device__ T total(const Memory& m, span<T> array, int warps = WARPS)  // in every lane
{
    T sum = 0;
    for (int i = m.lane; i < G * warps; i += 32) sum += array[i];
    return across(sum);
}

// The t-th block of the stream that this block makes first, or -1 less how many it has less. Ranges of words, ascending
template <bool BACK>
static __device__ int made_at(int t, int first, int rows)
{
    int end = BACK ? LAST_SIGN / 16 + 1 : 0;
    #pragma unroll
    for (int i = 0; i < 5; i++) {
        int from = i * LAYER + first * C / 32, to = i * LAYER + (first + rows - 1) * C / 32 + MASK_WORDS - (C % 32 == 0);
        if (i == 3) from = COLUMN_SIGNS, to = COLUMN_SIGNS + 1;
        if (i == 4) from = TURNS, to = WORDS - 1;
        int low = from / 16, high = to / 16;
        if (!BACK || i > 2) low = max(low, end);
        if (BACK && i < 3) {
            high = min(high, 3 * LAYER / 16 - 1);
            if (i) low = max(low, ((i - 1) * LAYER + (first + rows - 1) * C / 32 + MASK_WORDS - (C % 32 == 0)) / 16 + 1);
        }
        if (i < 3 && rows <= 0) high = low - 1;
        const int count = max(0, high - low + 1);
        if (t < count) return low + t;
        t -= count;
        if (!BACK || i > 2) end = max(end, high + 1);
    }
    return -1 - t;
}
static __device__ void keep(const Memory& m, int block, const unsigned (&words)[16])
{
    #pragma unroll
    for (int i = 0; i < 16; i += 4) store4(m.stream, block * STREAM_PITCH + i, words + i);
}
template <bool BACK, bool PADS_TOO>
static __device__ void make_rows_signs(const Memory& m, INPUT(unsigned) key, int first, int rows)
{
    for (int t = THREADS - 1 - m.thread;; t += THREADS) {
        const int own = made_at<BACK>(t, first, rows), pad = (-1 - own) * G + m.rank;
        if (own < 0 && (!PADS_TOO || pad >= PAD_BLOCKS)) break;
        unsigned words[16];
        chacha(key, own >= 0 ? own : PAD_WORDS / 16 + pad, [&](int i, unsigned word) { words[i] = word; });
        if (own >= 0) keep(m, own, words);
        for (int to = own >= 0 ? LAST_RANK + 1 : FIRST_PAD_RANK; to <= LAST_RANK; to++) {
            #pragma unroll
            for (int i = 0; i < 16; i += 4)
                push4(towards(m.pads, m.arrivals, FROM_FEATURES, to), pad * STREAM_PITCH + i, words + i);
        }
    }
}
template <bool BACK>
static __device__ void make_last_signs(const Memory& m, INPUT(unsigned) key, int first, int rows)  // of layers 3 and 4
{
    int low = 3 * LAYER / 16, high = LAST_SIGN / 16;
    if (!BACK) {
        if (rows > 0) low = max(low, (2 * LAYER + (first + rows - 1) * C / 32 + MASK_WORDS - (C % 32 == 0)) / 16 + 1);
        high = min(high, COLUMN_SIGNS / 16 - 1);
    }
    for (int block = low + THREADS - 1 - m.thread; block <= high; block += THREADS) {
        unsigned words[16];
        chacha(key, block, [&](int i, unsigned word) { words[i] = word; });
        keep(m, block, words);
    }
}

static __device__ void make_columns(const Memory& m)
{
    for (int k = THREADS - 1 - m.thread; k < C; k += THREADS) {
        const unsigned mine = word_of(m, ORDER + k);
        int order = 0;  // among the columns by size, equal ones as they come
        #pragma unroll 4
        for (int other = 0; other < C; other++) {
            const unsigned word = word_of(m, ORDER + other);
            order += word < mine || (word == mine && other < k);
        }
        m.columns[order] = k, m.columns[C + k] = order;  // behind the shuffle, column `order` has become column k
    }
}

static __device__ void over_b(const Memory& m, int slabs, int from, int to, int exchange)
{
    for (int v = m.thread; v < slabs * C; v += THREADS) {
        const int slab = v / C, k = v % C, i = m.rank * SLABS + slab;
        float x[B];
        #pragma unroll
        for (int j = 0; j < B; j++) x[j] = m.tiles[from][(slab * B + j) * PITCH + k];
        along_b(x);
        #pragma unroll
        for (int owner = 0; owner < G; owner++) {
            if (owner * SLICES >= B) break;
            const auto theirs = towards(m.tiles[to], m.arrivals, exchange, owner);
            #pragma unroll
            for (int s = 0; s < SLICES; s++)
                if (owner * SLICES + s < B) push(theirs, (s * A + i) * PITCH + k, x[owner * SLICES + s]);
        }
    }
}
static __device__ void over_b_back(const Memory& m, int slabs, int tile)  // in this block
{
    for (int v = m.thread; v < slabs * C; v += THREADS) {
        const int at = v / C * B * PITCH + v % C;
        float x[B];
        #pragma unroll
        for (int j = 0; j < B; j++) x[j] = m.tiles[tile][at + j * PITCH];
        along_b_back(x);
        #pragma unroll
        for (int j = 0; j < B; j++) m.tiles[tile][at + j * PITCH] = x[j];
    }
}
static __device__ void over_a_back(const Memory& m, int slices, int from, int to, int exchange)
{
    for (int v = m.thread; v < slices * C; v += THREADS) {
        const int slice = v / C, k = v % C, j = m.rank * SLICES + slice;
        float x[A];
        #pragma unroll
        for (int i = 0; i < A; i++) x[i] = m.tiles[from][(slice * A + i) * PITCH + k];
        along_a_back(x);
        #pragma unroll
        for (int owner = 0; owner < G; owner++) {
            if (owner * SLABS >= A) break;
            const auto theirs = towards(m.tiles[to], m.arrivals, exchange, owner);
            #pragma unroll
            for (int s = 0; s < SLABS; s++)
                if (owner * SLABS + s < A) push(theirs, (s * B + j) * PITCH + k, x[owner * SLABS + s]);
        }
    }
}

// a block's own slices: row i * B + j lies at j's place among them, then at i
static __device__ int row_of(int rank, int r) { return r % A * B + rank * SLICES + r / A; }
static __device__ void rows_met() { IN_WARPS ? __syncwarp() : __syncthreads(); }
static __device__ void kept_met() { KEPT_IN_WARPS ? __syncwarp() : __syncthreads(); }
// behind a barrier of the block that has made the columns
static __device__ void make_masks(const Memory& m, int first, int rows)
{
    for (int r = THREADS - 1 - m.thread; r < rows; r += THREADS) {
        const Mask mask = mask_of(1, first + r, [&](int w) { return word_of(m, w); });
        #pragma unroll
        for (int w = 0; w < MASK_WORDS; w++) {
            unsigned word = 0;
            #pragma unroll 8
            for (int k = 0; k < 32 && w * 32 + k < C; k++) {
                const unsigned from = m.columns[C + w * 32 + k];
                unsigned before = mask.at[0];
                #pragma unroll
                for (int v = 1; v < MASK_WORDS; v++) before = from / 32 == v ? mask.at[v] : before;
                word |= (before >> (from % 32) & 1) << k;
            }
            m.masks[r * MASK_WORDS + w] = word;
        }
    }
}
// the word of a row's mask that has the sign of column k
static __device__ unsigned bits_at(const Memory& m, int layer, int row, int k)
{
    const int first = row * C / 32 + layer * LAYER + k / 32;
    return C % 32 == 0 ? word_of(m, first) : joined(word_of(m, first), word_of(m, first + 1), row * C % 32);
}
static __device__ Mask moved_mask(const Memory& m, int r)
{
    Mask mask;
    #pragma unroll
    for (int w = 0; w < MASK_WORDS; w++) mask.at[w] = m.masks[r * MASK_WORDS + w];
    return mask;
}

static __device__ Mask column_signs(const Memory& m)  // read by every row: what a loop keeps of it takes registers
{
    Mask mask;
    #pragma unroll
    for (int w = 0; w < MASK_WORDS; w++) mask.at[w] = word_of(m, COLUMN_SIGNS + w);
    return mask;
}

static __device__ Memory begin(char* arena, int rank)
{
    const int thread = threadIdx.x;
    Memory m = {part<unsigned long long>(arena, ARRIVALS_AT, EXCHANGES), {},
                part<unsigned>(arena, STREAM_AT, BLOCKS * STREAM_PITCH),
                part<unsigned>(arena, PADS_AT, PAD_BLOCKS * STREAM_PITCH), part<double>(arena, SUMS_AT, 3 * SUMS),
                part<float>(arena, POWERS_AT, 2 * SUMS), part<unsigned>(arena, COLUMNS_AT, 2 * C),
                part<unsigned>(arena, PLACES_AT, TILE_ROWS),
                part<unsigned>(arena, MASKS_AT, HELD_ROWS * MASK_WORDS), rank, thread, thread % 32};
    #pragma unroll
    for (int t = 0; t < 4; t++)
        m.tiles[t] = part<float>(arena, TILES_AT + (t == 2 ? 0 : t == 3 ? 2 : t) * TILE_BYTES, TILE_ROWS * PITCH);
    return m;
}

// features[batch][CHANNELS][REALS / CHANNELS], keys[batch][KEY], on_air[batch][SIZE], scales[batch]
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1) mix(
    INPUT(feature) features, INPUT(unsigned) keys, span<float> on_air, span<float> scales)
{
    ARENA(arena);
    const int image = blockIdx.x / G, rank = blockIdx.x % G;
    const Memory m = begin(arena, rank);
    const int slabs = max(0, min(SLABS, A - rank * SLABS)), rows = slabs * B, first = rank * HELD_ROWS;
    const int slices = max(0, min(SLICES, B - rank * SLICES)), kept = slices * A;
    const int from = first * C, end = min(REALS, from + rows * C);  // its reals that are features
    const bool has_pads = PADS && rows > 0 && from + rows * C > REALS;
    const auto stream = [&](int w) { return word_of(m, w); };
    INPUT(unsigned) key = keys + (size_t)image * KEY;

    if (m.thread == 0) {
        expects(m.arrivals, FROM_FEATURES, 4 * SUMS + (has_pads ? PAD_BLOCKS * 64 : 0));
        expects(m.arrivals, TO_SLICES, 4 * SUMS + 4 * kept * C);
        expects(m.arrivals, TO_PLACES, 4 * rows * C);
        expects(m.arrivals, TO_SLICES_AGAIN, 4 * kept * C);
        expects(m.arrivals, ENERGY, 8 * G * LAST_WARPS);
        expects(m.arrivals, REST, 16 * SUMS);
    }
    begun();
    float loud = 0;
    if (m.thread < LOADERS)
        loud = load_features(m.tiles[0], features + (size_t)image * REALS, from, end, m.thread / 32, LOADERS / 32, m.lane);
    all_begun();
    give(m, m.powers, FROM_FEATURES, across(loud));
    make_rows_signs<false, true>(m, key, first, rows);

    float power = 0, unit = 1, noise = 0;
    if (has_pads) {
        arrived(m.arrivals, FROM_FEATURES);
        power = total(m, m.powers) * 2 / REALS;
        unit = 1 / sqrtf(power < LEAST_POWER ? LEAST_POWER : power);
        for (int e = max(from, REALS) + m.thread; e < from + rows * C; e += THREADS) {
            const int i = e - REALS, at = e - from;
            const float x = pad_of(pad_word(m, i), pad_word(m, i + PADS), pad_word(m, i + 2 * PADS), pad_word(m, i + 3 * PADS));
            m.tiles[0][at / C * PITCH + at % C] = x / unit;
            noise += x * x;
        }
    }
    __syncthreads();

    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<false>(m.tiles[0] + r * PITCH, column_signs(m), mask_of(0, first + r, stream));
    rows_met();
    over_b(m, slabs, 0, 1, TO_SLICES);
    give(m, m.powers + SUMS, TO_SLICES, across(noise));
    make_columns(m);
    for (int r = THREADS - 1 - m.thread; r < kept; r += THREADS) {
        const int place = place_of(row_of(rank, r), [&](int w) { return word_of(m, TURNS + w); });
        m.places[r] = (unsigned)(place / HELD_ROWS) << 24 | place % HELD_ROWS * PITCH;
    }
    __syncthreads();

    make_masks(m, first, rows);  // threads that have no rows, as all that counts them from the last
    arrived(m.arrivals, TO_SLICES);
    for (int v = m.thread; v < slices * C; v += THREADS) {
        const int slice = v / C, k = v % C;
        const unsigned becomes = m.columns[k];
        float x[A];
        #pragma unroll
        for (int i = 0; i < A; i++) x[i] = m.tiles[1][(slice * A + i) * PITCH + k];
        along_a(x);
        #pragma unroll
        for (int i = 0; i < A; i++) {
            const unsigned place = m.places[slice * A + i];
            push(towards(m.tiles[2], m.arrivals, TO_PLACES, place >> 24), (place & 0xffffffu) + becomes, x[i]);
        }
    }
    __syncthreads();
    make_last_signs<false>(m, key, first, rows);

    arrived(m.arrivals, FROM_FEATURES);
    const float sum = total(m, m.powers);
    power = 2 * sum / REALS;
    unit = 1 / sqrtf(power < LEAST_POWER ? LEAST_POWER : power);
    const float for_pads = sqrtf(SIZE / 2 / (unit * unit * sum + total(m, m.powers + SUMS))), for_features = unit * for_pads;
    if (m.thread < rows) arrived(m.arrivals, TO_PLACES);
    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<false>(m.tiles[2] + r * PITCH, moved_mask(m, r), mask_of(2, first + r, stream), for_features);
    rows_met();
    over_b(m, slabs, 2, 3, TO_SLICES_AGAIN);

    if (kept) arrived(m.arrivals, TO_SLICES_AGAIN);
    for (int v = m.thread; v < slices * C; v += THREADS) {
        const int at = v / C * A * PITCH + v % C;
        float x[A];
        #pragma unroll
        for (int i = 0; i < A; i++) x[i] = m.tiles[3][at + i * PITCH];
        along_a(x);
        #pragma unroll
        for (int i = 0; i < A; i++) m.tiles[3][at + i * PITCH] = x[i];
    }
    __syncthreads();  // also: the signs of layers 3 and 4 are made

    double energies[4] = {};
    for (int r = m.thread; r < kept; r += THREADS) {
        const int row = row_of(rank, r);
        last_row_pass(m.tiles[3] + r * PITCH, mask_of(3, row, stream), mask_of(4, row, stream), energies);
    }
    give(m, m.sums, ENERGY, across(energies[0] + energies[1] + (energies[2] + energies[3])), LAST_WARPS);
    __syncthreads();
    arrived(m.arrivals, ENERGY);

    // every real is rounded once: the factor in two parts
    const double factor = rsqrt(total(m, m.sums, LAST_WARPS) / (SIZE / 2));
    const float most = (float)factor, least = (float)(factor - most);
    const auto scaled = [&](int e) {
        const float x = m.tiles[3][e / C * PITCH + e % C];
        return fmaf(x, most, x * least);
    };
    const span<float> out = on_air + (size_t)image * SIZE;
    if (rank == 0 && m.thread == 0) scales[image] = (float)(factor * for_features / SOFTER);
    if (!takes_rest(factor)) {
        #pragma unroll 8
        for (int e = m.thread; e < kept * C; e += THREADS) out[row_of(rank, e / C) * C + e % C] = scaled(e);
        return;
    }
    // rounding left something of the power, which the largest takes; its magnitude's bits, then the first of equals
    double energy = 0;
    unsigned long long largest = 0;
    for (int e = m.thread; e < kept * C; e += THREADS) {
        const float x = scaled(e);
        const unsigned place = row_of(rank, e / C) * C + e % C;
        energy += (double)x * x;
        const unsigned long long candidate = (unsigned long long)(bits_of(x) & 0x7fffffffu) << 32 | (0xffffffffu - place);
        largest = candidate > largest ? candidate : largest;
    }
    give(m, m.sums + SUMS, REST, across(energy));
    give(m, m.sums + 2 * SUMS, REST, __longlong_as_double((long long)largest_of(largest)));
    arrived(m.arrivals, REST);
    const double off = SIZE / 2 - total(m, m.sums + SUMS);
    largest = 0;
    for (int i = m.lane; i < SUMS; i += 32) {
        const unsigned long long candidate = (unsigned long long)__double_as_longlong(m.sums[2 * SUMS + i]);
        largest = candidate > largest ? candidate : largest;
    }
    const int takes = (int)(0xffffffffu - (unsigned)largest_of(largest));
    for (int e = m.thread; e < kept * C; e += THREADS) {
        const float x = scaled(e);
        const int place = row_of(rank, e / C) * C + e % C;
        out[place] = place == takes ? x + (float)(off / (2 * (double)x)) : x;
    }
}

// received[batch][SIZE], keys[batch][KEY], features[batch][CHANNELS][REALS / CHANNELS]
extern "C" __global__ void CLUSTER __launch_bounds__(THREADS, 1) unmix(
    INPUT(float) received, INPUT(unsigned) keys, span<feature> features)
{
    ARENA(arena);
    const int image = blockIdx.x / G, rank = blockIdx.x % G;
    const Memory m = begin(arena, rank);
    const int slabs = max(0, min(SLABS, A - rank * SLABS)), rows = slabs * B, first = rank * HELD_ROWS;
    const int slices = max(0, min(SLICES, B - rank * SLICES)), kept = slices * A;
    const int from = first * C, end = min(REALS, from + rows * C);
    const auto stream = [&](int w) { return word_of(m, w); };
    INPUT(unsigned) key = keys + (size_t)image * KEY;

    if (m.thread == 0) {
        expects(m.arrivals, TO_SLICES, 4 * rows * C);
        expects(m.arrivals, TO_PLACES, 4 * kept * C);
        expects(m.arrivals, TO_SLICES_AGAIN, 4 * rows * C);
    }
    begun();
    INPUT(float) mine = received + (size_t)image * SIZE;
    #pragma unroll 16
    for (int e = m.thread; m.thread < LOADERS_BACK && e < kept * C; e += LOADERS_BACK)
        m.tiles[0][e / C * PITCH + e % C] = mine[row_of(rank, e / C) * C + e % C];
    make_last_signs<true>(m, key, first, rows);
    all_begun();
    __syncthreads();

    for (int r = m.thread; r < kept; r += THREADS) {
        const int row = row_of(rank, r);
        row_pass<true>(m.tiles[0] + r * PITCH, mask_of(4, row, stream), mask_of(3, row, stream));
    }
    make_rows_signs<true, false>(m, key, first, rows);  // threads that have no rows
    kept_met();
    over_a_back(m, slices, 0, 1, TO_SLICES);
    __syncthreads();
    make_columns(m);
    for (int r = THREADS - 1 - m.thread; r < rows; r += THREADS) {
        const int row = source_of(first + r, [&](int w) { return word_of(m, TURNS + w); }), j = row % B;
        m.places[r] = (unsigned)(j / SLICES) << 24 | (j % SLICES * A + row / B) * PITCH;
    }
    if (m.thread < slabs * C) arrived(m.arrivals, TO_SLICES);
    over_b_back(m, slabs, 1);
    __syncthreads();

    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<true>(m.tiles[1] + r * PITCH, mask_of(2, first + r, stream), Mask{});
    __syncthreads();
    #pragma unroll 8
    for (int e = m.thread; e < rows * C; e += THREADS) {
        const int r = e / C, k = e % C;
        const unsigned place = m.places[r];
        const float x = flipped(m.tiles[1][r * PITCH + m.columns[k]], bits_at(m, 1, first + r, k), k % 32);
        push(towards(m.tiles[2], m.arrivals, TO_PLACES, place >> 24), (place & 0xffffffu) + k, x);
    }
    if (m.thread < slices * C) arrived(m.arrivals, TO_PLACES);
    over_a_back(m, slices, 2, 3, TO_SLICES_AGAIN);

    if (m.thread < slabs * C) arrived(m.arrivals, TO_SLICES_AGAIN);
    over_b_back(m, slabs, 3);
    rows_met();
    for (int r = m.thread; r < rows; r += THREADS)
        row_pass<true>(m.tiles[3] + r * PITCH, mask_of(0, first + r, stream), column_signs(m));
    __syncthreads();

    store_features(m.tiles[3], features + (size_t)image * REALS, from, end, m.thread / 32, WARPS, m.lane);
}
"""
)

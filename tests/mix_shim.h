// Runs the mix kernels' own source on the CPU, under a checker. All CUDA threads are fibers on one operating system thread; each
// runs alone until it meets a barrier. The blocks of a cluster go on in an order that the test chooses. Every access goes through a
// span, which knows its bounds and who touched a value last: two threads, one of which writes, with no barrier between that both
// of them met, are a race, also where the order that was chosen gave the right result. So is a block of a cluster that another one
// reaches into before it is known to have begun, or that ends while another one may still do so.
// Arithmetic is IEEE: compile with -ffp-contract=off.
// What is the same for every kernel is in mix_shim.cpp, which is compiled once.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#define SHIM
#define __global__
#define __device__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

struct Index { unsigned x; };
extern Index threadIdx, blockIdx, gridDim;
using std::max;
using std::min;

void fault(const char* what, long at, long size);
// A value of a memory is read or written: where it is, or null if it is out of bounds. `rank`: of the block whose memory it is
char* touched(char* memory, long from, long at, long size, int rank, int bytes, bool writes);
void pushed(char* memory, long from, long at, long size, int rank, int exchange, int bytes, const void* value);
char* arena_of(int rank);  // null if there is no such block; -1: of the block that runs
void __syncthreads();
void __syncwarp();
void begun();
void all_begun();
void meet();
void expects(int exchange, long bytes);
void arrived(int exchange);
float across(float v);
double across(double v);
unsigned long long largest_of(unsigned long long v);
const char* run(unsigned grid, unsigned threads, unsigned together, size_t arena, unsigned order, void (*kernel)(void*), void* arguments);

template <class T>
struct span {
    char* memory;            // whose shadow it has
    long from, size, at;     // its first byte in the memory; values; where this points
    int rank = -1;           // of the block that was asked for the memory
    struct Value {
        const span& s;
        long at;
        T& raw(bool writes) const
        {
            static T nowhere[1];
            char* place = touched(s.memory, s.from, at, s.size, s.rank, sizeof(T), writes);
            return place ? *(T*)place : nowhere[0];
        }
        operator T() const { return raw(false); }
        const Value& operator=(T value) const { raw(true) = value; return *this; }
        const Value& operator=(const Value& value) const { return *this = (T)value; }
    };
    Value operator[](long i) const { return {*this, at + i}; }
    span operator+(long i) const { return {memory, from, size, at + i, rank}; }
};
template <class T> static span<T> outside(T* values, long size) { return {(char*)values, 0, size, 0}; }
template <class T> using far = span<T>;
#define INPUT(type) span<type>
#define ARENA(name) char* const name = arena_of(-1)
template <class T> static span<T> part(char* arena, int at, int size) { return {arena, at, size, 0}; }
template <class T> static span<T> part(span<unsigned> work, int at, int size)
{
    if (work.at < 0 || work.at + at + size * (long)sizeof(T) / 4 > work.size) fault("out of bounds", work.at + at, work.size);
    return {work.memory, work.from + (work.at + at) * 4, size, 0};
}
template <class T> static span<T> of_block(span<T> mine, int rank)
{
    char* const there = rank < 0 ? nullptr : arena_of(rank);
    if (!there) { fault("no such block", rank, mine.size); return mine; }
    mine.memory = there, mine.rank = rank;
    return mine;
}

static int unforeseen(int x) { return x; }
template <class T> static void fetch_ahead(const T&, int) {}
template <class T> static void store_once(const span<T>& to, T x) { to[0] = x; }

template <class T> struct Push { span<T> to; int rank, exchange; };
template <class T> static Push<T> towards(span<T> mine, span<unsigned long long>, int exchange, int rank)
{
    return {of_block(mine, rank), rank, exchange};
}
template <class T> static void push(const Push<T>& there, long at, T value)
{
    const span<T>& to = there.to;
    pushed(to.memory, to.from, to.at + at, to.size, there.rank, there.exchange, sizeof(T), &value);
}
template <class To> static void push4(const To& there, long at, const unsigned* values)
{
    if ((there.to.from + (there.to.at + at) * 4) % 16) fault("not aligned", at, there.to.size);
    for (int i = 0; i < 4; i++) push(there, at + i, values[i]);
}
static void store4(span<unsigned> to, long at, const unsigned* values)
{
    if ((to.from + (to.at + at) * 4) % 16) fault("not aligned", at, to.size);
    for (int i = 0; i < 4; i++) to[at + i] = values[i];
}
static void expects(span<unsigned long long>, int exchange, long bytes) { expects(exchange, bytes); }
static void arrived(span<unsigned long long>, int exchange) { arrived(exchange); }

// Returns what was wrong, or an empty text. `together` blocks are a cluster
template <class Kernel>
static const char* launch(unsigned grid, unsigned threads, unsigned together, size_t arena, unsigned order, Kernel kernel)
{
    return run(grid, threads, together, arena, order, [](void* arguments) { (*(Kernel*)arguments)(); }, &kernel);
}

static double rsqrt(double x) { return 1 / std::sqrt(x); }
static unsigned bits_of(float x) { unsigned bits; std::memcpy(&bits, &x, 4); return bits; }
static float float_of(unsigned bits) { float x; std::memcpy(&x, &bits, 4); return x; }
static double __longlong_as_double(long long bits) { double x; std::memcpy(&x, &bits, 8); return x; }
static long long __double_as_longlong(double x) { long long bits; std::memcpy(&bits, &x, 8); return bits; }

#if HALF
static float widen(unsigned short bits) { _Float16 x; std::memcpy(&x, &bits, 2); return (float)x; }
static unsigned short narrow(float value) { const _Float16 x = (_Float16)value; unsigned short bits; std::memcpy(&bits, &x, 2); return bits; }
#endif

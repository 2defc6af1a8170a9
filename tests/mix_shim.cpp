// What mix_shim.h is for every kernel: who touched what, barriers, and running the fibers.
#include "mix_shim.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <map>
#include <numeric>
#include <vector>

Index threadIdx, blockIdx, gridDim;

enum Waits { RUNS, AT_BLOCK, AT_CLUSTER, AT_BEGIN, AT_WARP, IN_WARP, AWAITS, DONE };
enum Start { SAYS_NOTHING, SAYS_BEGUN, KNOWS_ALL_BEGUN };
// A thread's context is entered once; from then on it is left and taken up by jumps, which need no call of the system
struct Fiber {
    ucontext_t first;
    jmp_buf left;
    bool entered = false;
};
struct Block {
    unsigned id, epoch = 0;              // barriers that its threads have met
    std::vector<unsigned> warp_epochs;   // and those of each warp
    std::vector<Fiber> fibers;
    std::vector<Waits> waits;
    std::vector<char> arena;
    long expected[8] = {}, received[8] = {};  // bytes of each exchange that others push here
    std::vector<int> awaits;                  // the exchange that a thread waits for
    std::vector<unsigned> knows;              // by bits: exchanges that a thread has waited for, or one that it met at a barrier has
    std::vector<std::map<int, unsigned>> pushed;  // of each thread, by exchange and block: the number of its last push there
    std::vector<unsigned> pushes;                 // of each thread
    bool made[8] = {};             // whether the barrier object of an exchange has been made
    std::vector<Start> starts;     // of each thread
    bool reached = false, ended = false;  // by another block, in the cluster epoch ``reached_in``
    unsigned reached_in = 0;
};
struct Touch {  // who wrote a value last, and who read it since
    long launch = -1;
    int cluster = -1, block = -1, thread = -1, pushed = -1;  // the exchange, if it was pushed
    unsigned pushes = 0;                                     // of that thread until then
    unsigned of_warp = 0, of_block = 0, of_cluster = 0;
};
struct Shadow { Touch written, read; bool lanes = false, warps = false, blocks = false; };  // whether others read it since

static struct {
    jmp_buf scheduler;
    std::vector<Block> blocks;  // of the cluster that runs
    unsigned block, thread, cluster_epoch;
    int cluster;
    long launch = 0;
    void (*kernel)(void*);
    void* arguments;
    std::vector<std::vector<char>> stacks;
    std::map<const char*, std::vector<Shadow>> shadows;  // of each memory, by 4 bytes
    char fault[256];
} cuda;

void fault(const char* what, long at, long size)
{
    if (!cuda.fault[0])
        std::snprintf(cuda.fault, sizeof cuda.fault, "%s: value %ld of %ld, thread %u of block %u", what, at, size, cuda.thread,
                      cuda.blocks[cuda.block].id);
}

static void reach(int rank, long at, long size)  // into that block's memory
{
    if (rank < 0 || rank == (int)cuda.block) return;
    Block& there = cuda.blocks[rank];
    if (cuda.blocks[cuda.block].starts[cuda.thread] != KNOWS_ALL_BEGUN) fault("races the beginning of another block", at, size);
    if (there.ended) fault("races the end of another block", at, size);
}

static Touch here()
{
    const Block& block = cuda.blocks[cuda.block];
    return {cuda.launch, cuda.cluster, (int)cuda.block, (int)cuda.thread, -1, block.pushes[cuda.thread],
            block.warp_epochs[cuda.thread / 32], block.epoch, cuda.cluster_epoch};
}

static bool unordered(const Touch& then, const Touch& now)  // no barrier that both met lies between them
{
    if (then.launch != now.launch) return false;
    if (then.cluster != now.cluster) return true;
    if (then.pushed >= 0) return !(cuda.blocks[now.block].knows[now.thread] >> then.pushed & 1);
    if (then.block != now.block) return then.of_cluster == now.of_cluster;
    if (then.thread / 32 != now.thread / 32) return then.of_block == now.of_block;
    return then.thread != now.thread && then.of_warp == now.of_warp;
}

static void touched(Shadow& s, bool writes, long at, long size)
{
    const Touch now = here();
    if (s.written.launch >= 0 && unordered(s.written, now)) fault(writes ? "two writes race" : "a read races a write", at, size);
    const bool cluster = s.read.launch == now.launch && s.read.cluster == now.cluster && s.read.of_cluster == now.of_cluster;
    const bool block = cluster && s.read.of_block == now.of_block, same_block = s.read.block == now.block;
    const bool same_warp = same_block && s.read.thread / 32 == now.thread / 32;
    const bool warp = block && same_warp && s.read.of_warp == now.of_warp;
    if (writes) {
        bool races = s.read.launch == now.launch && unordered(s.read, now);
        races = races || (s.lanes && warp) || (s.warps && block) || (s.blocks && cluster);  // one of several is another one
        if (races) fault("a write races a read", at, size);
        s.written = now, s.read = {}, s.lanes = s.warps = s.blocks = false;
        return;
    }
    s.blocks = cluster && (s.blocks || !same_block);
    s.warps = block && (s.warps || !same_warp);
    s.lanes = warp && (s.lanes || s.read.thread != now.thread);
    s.read = now;
}

static const char* last_memory;  // whose shadow was asked for last
static std::vector<Shadow>* last_shadow;
static std::vector<Shadow>& shadow_of(const char* memory, size_t last)  // of this many and one more places
{
    if (memory != last_memory || !last_shadow) last_memory = memory, last_shadow = &cuda.shadows[memory];
    if (last_shadow->size() <= last) last_shadow->resize(last + 1);
    return *last_shadow;
}
static void forget(const char* memory) { cuda.shadows.erase(memory), last_shadow = nullptr; }

char* touched(char* memory, long from, long at, long size, int rank, int bytes, bool writes)
{
    if (at < 0 || at >= size) return fault("out of bounds", at, size), nullptr;
    if (rank >= 0 && rank != (int)cuda.block) {
        reach(rank, at, size);
        cuda.blocks[rank].reached = true, cuda.blocks[rank].reached_in = cuda.cluster_epoch;
    }
    const long byte = from + at * bytes;
    auto& shadow = shadow_of(memory, (byte + bytes - 1) / 4);
    if (bytes >= 4)
        for (long w = byte / 4; w <= (byte + bytes - 1) / 4; w++) touched(shadow[w], writes, at, size);
    if ((uintptr_t)(memory + byte) % bytes) fault("not aligned", at, size);
    return memory + byte;
}
char* arena_of(int rank)
{
    if (rank >= (int)cuda.blocks.size()) return nullptr;
    return cuda.blocks[rank < 0 ? cuda.block : rank].arena.data();
}

static void yield(Waits waits)
{
    Block& block = cuda.blocks[cuda.block];
    block.waits[cuda.thread] = waits;
    if (!_setjmp(block.fibers[cuda.thread].left)) _longjmp(cuda.scheduler, 1);
}

void __syncthreads() { yield(AT_BLOCK); }
void __syncwarp() { yield(AT_WARP); }
void begun()
{
    Start& start = cuda.blocks[cuda.block].starts[cuda.thread];
    if (start != SAYS_NOTHING) fault("it begins twice: its arrivals race", 0, 0);
    start = SAYS_BEGUN;
}

void all_begun()  // orders nothing but the barrier objects, which were made before
{
    if (cuda.blocks[cuda.block].starts[cuda.thread] != SAYS_BEGUN) fault("its beginning races others: it does not say so", 0, 0);
    yield(AT_BEGIN);
    cuda.blocks[cuda.block].starts[cuda.thread] = KNOWS_ALL_BEGUN;
}

void meet()
{
    Start& start = cuda.blocks[cuda.block].starts[cuda.thread];
    if (start == SAYS_BEGUN) fault("two arrivals at one barrier of the cluster race", 0, 0);
    yield(AT_CLUSTER);
    start = KNOWS_ALL_BEGUN;
}

// Pushing: who has waited for all bytes of an exchange may read them. A place that was in use may be pushed to by who knows that it
// is so no more: by an exchange in which the thread that used it last has pushed to the block of who pushes now, after that use
static bool free_to_push(const Shadow& s)
{
    const bool read = s.read.launch == cuda.launch;
    const Touch& last = read ? s.read : s.written;
    if (last.launch != cuda.launch) return true;
    if (read && (s.lanes || s.warps || s.blocks)) return false;
    if (last.cluster != cuda.cluster) return false;
    auto& pushed = cuda.blocks[last.block].pushed[last.thread];
    for (int e = 0; e < 8; e++)  // all of an exchange that the pusher knows to be over has been pushed to it
        if (cuda.blocks[cuda.block].knows[cuda.thread] >> e & 1 && pushed[e * 64 + cuda.block] > last.pushes) return true;
    return false;
}
void pushed(char* memory, long from, long at, long size, int rank, int exchange, int bytes, const void* value)
{
    const long byte = from + at * bytes;
    if (at < 0 || at >= size) return fault("out of bounds", at, size);
    reach(rank, at, size);
    if (!cuda.blocks[rank].made[exchange]) fault("a push races the making of its barrier object", at, size);
    auto& shadow = shadow_of(memory, (byte + bytes - 1) / 4);
    for (long w = byte / 4; w <= (byte + bytes - 1) / 4; w++) {
        if (!free_to_push(shadow[w])) fault("a push races what was there", at, size);
        shadow[w] = {here(), {}}, shadow[w].written.pushed = exchange;
    }
    if ((uintptr_t)(memory + byte) % bytes) fault("not aligned", at, size);
    std::memcpy(memory + byte, value, bytes);
    Block& mine = cuda.blocks[cuda.block];
    mine.pushed[cuda.thread][exchange * 64 + rank] = ++mine.pushes[cuda.thread];
    Block& block = cuda.blocks[rank];
    block.received[exchange] += bytes;
    if (block.received[exchange] > block.expected[exchange]) fault("more pushed than expected", at, size);
}
void expects(int exchange, long bytes)
{
    Block& block = cuda.blocks[cuda.block];
    if (block.starts[cuda.thread] != SAYS_NOTHING) fault("making a barrier object races its use: this block has begun", 0, 0);
    if (block.made[exchange]) fault("a barrier object is made twice", 0, 0);
    block.made[exchange] = true, block.expected[exchange] = bytes;
}
void arrived(int exchange)
{
    if (cuda.blocks[cuda.block].starts[cuda.thread] != KNOWS_ALL_BEGUN) fault("a wait races the making of its barrier object", 0, 0);
    cuda.blocks[cuda.block].awaits[cuda.thread] = exchange;
    yield(AWAITS);
}

// a shuffle: all lanes of a warp give a value before any of them takes one. It orders no memory
static double exchange[64][32];
static unsigned long long exchange_bits[64][32];
template <class T>
static T sum_across(T v)
{
    exchange[cuda.thread / 32][cuda.thread % 32] = v;
    yield(IN_WARP);
    T lanes[32];
    std::copy_n(exchange[cuda.thread / 32], 32, lanes);
    yield(IN_WARP);
    for (int d = 16; d; d /= 2)
        for (int i = 0; i < d; i++) lanes[i] += lanes[i + d];
    return lanes[0];
}

float across(float v) { return sum_across(v); }
double across(double v) { return sum_across(v); }

unsigned long long largest_of(unsigned long long v)
{
    exchange_bits[cuda.thread / 32][cuda.thread % 32] = v;
    yield(IN_WARP);
    const unsigned long long largest = *std::max_element(exchange_bits[cuda.thread / 32], exchange_bits[cuda.thread / 32] + 32);
    yield(IN_WARP);
    return largest;
}

static void fiber_main()
{
    cuda.kernel(cuda.arguments);
    yield(DONE);
}

// What threads that meet know of exchanges, each of them knows
static void share(Block& block, unsigned first, unsigned count)
{
    unsigned known = 0;
    for (unsigned t = first; t < first + count; t++) known |= block.knows[t];
    std::fill_n(block.knows.begin() + first, count, known);
}

// A block that ends: nobody may reach into it any more, and all that is pushed to it has come
static void end(unsigned b)
{
    Block& block = cuda.blocks[b];
    unsigned known = 0;
    for (unsigned knows : block.knows) known |= knows;
    for (int e = 0; e < 8; e++)
        if (block.received[e] && !(known >> e & 1)) fault("its end races what is pushed to it", e, 8);
    if (block.reached && block.reached_in == cuda.cluster_epoch) fault("its end races others that reach into it", 0, 0);
    block.ended = true;
}

static __attribute__((noinline)) void enter(Fiber& fiber)  // until it yields
{
    if (_setjmp(cuda.scheduler)) return;
    if (fiber.entered) _longjmp(fiber.left, 1);
    fiber.entered = true;
    setcontext(&fiber.first);
}

enum Ran { TO_BARRIER, AGAIN_LATER, STUCK, APART };

// Lets every thread of a block run up to its next barrier; APART when they have met different ones, STUCK when none could run
static Ran run_block(unsigned b, unsigned order, unsigned& random)
{
    Block& block = cuda.blocks[b];
    const unsigned threads = block.fibers.size();
    std::vector<unsigned> turn(threads / 32);
    bool progress = false;
    for (;;) {
        std::iota(turn.begin(), turn.end(), 0);
        if (order == 1) std::reverse(turn.begin(), turn.end());
        for (size_t i = turn.size(); order > 1 && i > 1; i--) {
            random = random * 1664525u + 1013904223u;
            std::swap(turn[i - 1], turn[(random >> 8) % i]);
        }
        bool ran = false;
        for (unsigned warp : turn) {
            Waits* waits = &block.waits[warp * 32];
            if (std::all_of(waits, waits + 32, [](Waits w) { return w == IN_WARP; })) std::fill_n(waits, 32, RUNS);
            if (std::all_of(waits, waits + 32, [](Waits w) { return w == AT_WARP; })) {
                block.warp_epochs[warp]++;
                share(block, warp * 32, 32), std::fill_n(waits, 32, RUNS);
            }
            for (unsigned lane = 0; lane < 32; lane++) {
                const unsigned t = warp * 32 + (order % 2 ? 31 - lane : lane);
                if (block.waits[t] == AWAITS && block.received[block.awaits[t]] == block.expected[block.awaits[t]])
                    block.knows[t] |= 1u << block.awaits[t], block.waits[t] = RUNS;
                if (block.waits[t] != RUNS) continue;
                ran = progress = true;
                cuda.block = b, cuda.thread = threadIdx.x = t, blockIdx.x = block.id;
                enter(block.fibers[t]);
            }
        }
        if (!ran) break;
    }
    const auto first = block.waits[0];
    if (first != IN_WARP && first != AT_WARP && first != AWAITS)
        if (std::all_of(block.waits.begin(), block.waits.end(), [&](Waits w) { return w == first; })) return TO_BARRIER;
    const bool waits = std::any_of(block.waits.begin(), block.waits.end(), [](Waits w) { return w == AWAITS; });
    return !waits ? APART : progress ? AGAIN_LATER : STUCK;
}

const char* run(unsigned grid, unsigned threads, unsigned together, size_t arena, unsigned order, void (*kernel)(void*), void* arguments)
{
    cuda.kernel = kernel, cuda.arguments = arguments;
    cuda.fault[0] = 0, cuda.launch++, gridDim.x = grid;
    unsigned random = order * 7919 + 1;
    for (unsigned c = 0; c < grid / together; c++) {
        cuda.cluster = order == 1 ? grid / together - 1 - c : c, cuda.cluster_epoch = 0;
        for (auto& block : cuda.blocks) forget(block.arena.data());
        cuda.blocks.assign(together, {});
        cuda.stacks.resize(together * threads);
        for (unsigned b = 0; b < together; b++) {
            Block& block = cuda.blocks[b];
            block.id = cuda.cluster * together + b;
            block.arena.assign(arena + 16, (char)0xff);
            block.fibers.resize(threads), block.waits.assign(threads, RUNS);
            block.warp_epochs.assign(threads / 32, 0), block.awaits.assign(threads, 0), block.knows.assign(threads, 0);
            block.pushed.assign(threads, {}), block.pushes.assign(threads, 0), block.starts.assign(threads, SAYS_NOTHING);
            forget(block.arena.data());
            for (unsigned t = 0; t < threads; t++) {
                auto& stack = cuda.stacks[b * threads + t];
                stack.resize(1 << 16);
                ucontext_t& first = block.fibers[t].first;
                getcontext(&first);
                first.uc_stack.ss_sp = stack.data(), first.uc_stack.ss_size = stack.size();
                makecontext(&first, fiber_main, 0);
            }
        }
        std::vector<unsigned> left(together);
        std::iota(left.begin(), left.end(), 0);
        unsigned stuck = 0;  // tries since any thread ran
        const auto met = [&](Block& block) {
            block.epoch++;
            for (auto& epoch : block.warp_epochs) epoch++;
            share(block, 0, threads);
        };
        while (!left.empty()) {  // blocks that have not come to a barrier of the cluster, or to their end
            random = random * 1664525u + 1013904223u;
            const size_t pick = stuck ? stuck % left.size() : order > 1 ? (random >> 8) % left.size() : order == 1 ? left.size() - 1 : 0;
            Block& block = cuda.blocks[left[pick]];
            const Ran ran = run_block(left[pick], order, random);
            if (ran == APART) { fault("threads of a block met different barriers", 0, 0); return cuda.fault; }
            stuck = ran == TO_BARRIER ? 0 : stuck + 1;
            if (stuck > 2 * together) { fault("it waits for bytes that never come", 0, 0); return cuda.fault; }
            if (ran != TO_BARRIER) continue;
            if (block.waits[0] == AT_BLOCK) {
                met(block), std::fill(block.waits.begin(), block.waits.end(), RUNS);
                continue;
            }
            if (block.waits[0] == DONE) end(left[pick]);
            left.erase(left.begin() + pick);
            if (!left.empty()) continue;
            const Waits all = cuda.blocks[0].waits[0];
            for (auto& other : cuda.blocks)
                if (other.waits[0] != all) { fault("blocks of a cluster met different barriers", 0, 0); return cuda.fault; }
            if (all == DONE) break;
            cuda.cluster_epoch += all == AT_CLUSTER;
            for (unsigned b = 0; b < together; b++) {
                if (all == AT_CLUSTER) met(cuda.blocks[b]);
                left.push_back(b), std::fill(cuda.blocks[b].waits.begin(), cuda.blocks[b].waits.end(), RUNS);
            }
        }
    }
    return cuda.fault;
}

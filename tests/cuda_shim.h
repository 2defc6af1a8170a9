// Runs a CUDA kernel's own source on the CPU. A block is an operating system thread and its CUDA threads are fibers on it:
// each runs alone until it meets a barrier, in an order that the test chooses, so a missing barrier shows as a wrong result.
// `resident` blocks run at a time and begin in any order, as on a GPU. Arithmetic is IEEE: compile with -ffp-contract=off.
#include <pthread.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define CLUSTER

struct Index { unsigned x; };
static thread_local Index threadIdx, blockIdx;
static Index gridDim;

struct Block {
    ucontext_t scheduler;
    std::vector<ucontext_t> fibers;
    std::vector<std::vector<char>> stacks;
    std::vector<bool> done;
    unsigned running;
    void (*kernel)(void*);
    void* arguments;
};
static thread_local Block* block;
static std::atomic<bool> diverged;

static void __syncthreads() { swapcontext(&block->fibers[block->running], &block->scheduler); }

// a cluster: blocks that run at once, each on its thread, and reach into each other's thread_local memory
static pthread_barrier_t cluster;
static thread_local char anchor;
static char* anchors[16];
static thread_local bool at_cluster;
// What a block is given by others of its cluster: bytes, counted at its barrier object. `wrong`: they are not those that it waits
// for, or it may be reached into before it has begun or when it has ended
static std::atomic<bool> wrong;
struct Given {
    std::atomic<long> bytes{0};
    long expected = -1;               // until its barrier object is made
    std::vector<bool> begun, others;  // of each CUDA thread: whether it said so, and whether it knows so of the others
    bool waited = false;
};
static thread_local Given here;
static Given* given[16];
static void begun(unsigned long long*, int bytes)
{
    if (threadIdx.x == 0) here.expected = bytes;
    here.begun[threadIdx.x] = true;
}
static void all_begun()
{
    if (!here.begun[threadIdx.x]) wrong = true;
    here.others[threadIdx.x] = true;
}
static void __syncwarp() {}
static void arrived(unsigned long long*)
{
    at_cluster = true;
    __syncthreads();  // and what all others of the cluster do until they wait
    if (!here.others[threadIdx.x] || here.bytes != here.expected) wrong = true;
    here.waited = true;
}
static void give(float* mine, unsigned long long*, int to, float value)
{
    if (!here.others[threadIdx.x]) wrong = true;
    given[to]->bytes += sizeof(float);
    *(float*)(anchors[to] + ((char*)mine - &anchor)) = value;
}

static thread_local float exchange[1024];
static float across(float sum)
{
    for (int d = 16; d; d /= 2) {
        exchange[threadIdx.x] = sum;
        __syncthreads();
        const float other = exchange[threadIdx.x ^ d];
        __syncthreads();
        sum += other;
    }
    return sum;
}

static void fiber_main() {
    block->kernel(block->arguments);
    block->done[block->running] = true;
    swapcontext(&block->fibers[block->running], &block->scheduler);
}

static void shuffle(std::vector<unsigned>& of, unsigned& random) {
    for (size_t i = of.size(); i > 1; i--) {
        random = random * 1664525u + 1013904223u;
        std::swap(of[i - 1], of[(random >> 8) % i]);
    }
}

// order: 0 ascending, 1 descending, from 2 on shuffled anew between any two barriers
static void run_block(unsigned id, unsigned threads, unsigned order) {
    blockIdx.x = id;
    here.begun.assign(threads, false), here.others.assign(threads, false);
    block->fibers.assign(threads, {});
    block->done.assign(threads, false);
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&block->fibers[t]);
        block->fibers[t].uc_stack.ss_sp = block->stacks[t].data();
        block->fibers[t].uc_stack.ss_size = block->stacks[t].size();
        makecontext(&block->fibers[t], fiber_main, 0);
    }
    std::vector<unsigned> turn(threads);
    std::iota(turn.begin(), turn.end(), 0);
    if (order == 1) std::reverse(turn.begin(), turn.end());
    unsigned random = order * 7919 + id;
    for (unsigned left = threads; left;) {
        if (order > 1) shuffle(turn, random);
        for (unsigned t : turn) {
            block->running = threadIdx.x = t;
            swapcontext(&block->scheduler, &block->fibers[t]);
        }
        left = std::count(block->done.begin(), block->done.end(), false);
        if (left && left != threads) { diverged = true; return; }  // some wait at a barrier that others never reach
        if (at_cluster) pthread_barrier_wait(&cluster);
        at_cluster = false;
    }
}

// Returns false when a block's threads met different barriers, or for what is wrong between the blocks of a cluster.
template <class Kernel>
static bool launch(unsigned grid, unsigned threads, unsigned resident, unsigned order, Kernel kernel, unsigned together = 1) {
    gridDim.x = grid;
    diverged = wrong = false;
    std::vector<unsigned> ids(grid);
    std::iota(ids.begin(), ids.end(), 0);
    unsigned random = order;
    shuffle(ids, random);
    std::atomic<unsigned> next(0);
    std::vector<std::thread> multiprocessors;
    if (together > 1) {
        for (unsigned id = 0; id < grid; id++) ids[id] = id;
        resident = together;  // one cluster at a time
        pthread_barrier_init(&cluster, nullptr, together);
    }
    for (unsigned m = 0; m < std::min(resident, grid); m++)
        multiprocessors.emplace_back([&, m] {
            Block mine;
            mine.kernel = [](void* arguments) { (*(Kernel*)arguments)(); };
            mine.arguments = &kernel;
            mine.stacks.assign(threads, std::vector<char>(1 << 15));
            block = &mine;
            if (together > 1) {
                anchors[m] = &anchor, given[m] = &here;
                pthread_barrier_wait(&cluster);
                for (unsigned i = m; i < grid; i += together) {
                    run_block(ids[i], threads, order);
                    if (here.expected > 0 && !here.waited) wrong = true;
                    pthread_barrier_wait(&cluster);
                    here.bytes = 0, here.expected = -1, here.waited = false;
                    pthread_barrier_wait(&cluster);
                }
                return;
            }
            for (unsigned i; (i = next++) < grid;) run_block(ids[i], threads, order);
        });
    for (auto& multiprocessor : multiprocessors) multiprocessor.join();
    return !diverged && !wrong;
}

static unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST); }
static unsigned atomicInc(unsigned* at, unsigned last) {
    unsigned old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (!__atomic_compare_exchange_n(at, &old, old >= last ? 0 : old + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    return old;
}
static unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST); }
static unsigned atomicAnd(unsigned* at, unsigned value) { return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST); }
static void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static void __nanosleep(unsigned) { std::this_thread::yield(); }

static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fsqrt_rn(float a) { return std::sqrt(a); }

#if HALF
static float widen(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    float value;
    const unsigned shifted = rest << 13;
    std::memcpy(&value, &shifted, 4);
    value *= 0x1p112f;  // the exponent's other bias; also right for subnormal halves
    unsigned out;
    std::memcpy(&out, &value, 4);
    out = sign | (rest < 0x7c00u ? out : 0x7f800000u | shifted);
    std::memcpy(&value, &out, 4);
    return value;
}
static unsigned short narrow(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    const unsigned sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fffu;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above
    if (magnitude < 0x38800000u) return sign | (unsigned)std::nearbyint(std::ldexp(std::fabs(value), 24));  // subnormal
    return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
}
#endif

"""The CUDA source by which a block reaches into the memory of another of its cluster, from compute capability 9.0 on.

``PUSH``: a store is asynchronous, and counts its bytes at a barrier object (mbarrier) beside what it writes; who reads waits
until as many have come as it expects. That costs the way. ``FAR``: plain loads and stores, ordered by a barrier of the cluster.
That costs some 750 clocks more on an H100, because the fence in front of it (MEMBAR.ALL.GPU) waits for all of memory.

In both, a block says that it has ``begun``, and none reaches into another before ``all_begun``; none ends before all that
others do in its memory is done.
"""

FAR = r"""
#ifndef SHIM
#if G == 1
template <class T> using far = T*;  // into the memory of any block of an image
template <class T> static __device__ T* of_block(T* mine, int) { return mine; }
static __device__ void begun() {}
static __device__ void all_begun() {}
static __device__ void meet() { __syncthreads(); }
#else
static __device__ float load_far(unsigned at, float)
{
    float x;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at));
    return x;
}
static __device__ unsigned load_far(unsigned at, unsigned)
{
    unsigned x;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(x) : "r"(at));
    return x;
}
static __device__ void store_far(unsigned at, float x) { asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(x)); }
static __device__ void store_far(unsigned at, double x) { asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(at), "d"(x)); }
template <class T> struct far {
    unsigned at;
    struct value {
        unsigned at;
        __device__ operator T() const { return load_far(at, T()); }
        __device__ void operator=(T x) const { store_far(at, x); }
    };
    __device__ value operator[](int i) const { return {at + i * (unsigned)sizeof(T)}; }
    __device__ far operator+(int i) const { return {at + i * (unsigned)sizeof(T)}; }
};
template <class T>
static __device__ far<T> of_block(T* mine, int rank)  // what `mine` is in another block
{
    far<T> theirs;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs.at) : "r"((unsigned)__cvta_generic_to_shared(mine)), "r"(rank));
    return theirs;
}
static __device__ void begun()  // this block can be reached into
{
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
static __device__ void all_begun() { __syncwarp(); asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
static __device__ void meet()  // of all threads of an image: what was written before it can be read behind it
{
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#endif
template <class T> static __device__ T* part(char* arena, int at, int) { return (T*)(arena + at); }
static __device__ int unforeseen(int x)  // so that nothing is kept in registers from one image to the next
{
    asm volatile("" : "+r"(x));
    return x;
}
template <class T> static __device__ void fetch_ahead(const T* from, int count)  // into L2
{
    for (int i = threadIdx.x * (128 / sizeof(T)); i < count; i += THREADS * (128 / sizeof(T)))
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + i));
}
#endif
"""

PUSH = r"""
#ifndef SHIM
template <class T> struct far { unsigned at, arrival; };  // into another block's memory, and what counts there
template <class T> static __device__ T* part(char* arena, int at, int) { return (T*)(arena + at); }
static __device__ unsigned of_block(const void* mine, int rank)
{
    unsigned theirs;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(theirs) : "r"((unsigned)__cvta_generic_to_shared(mine)), "r"(rank));
    return theirs;
}
template <class T>
static __device__ far<T> towards(T* mine, unsigned long long* arrivals, int exchange, int rank)
{
    return {of_block(mine, rank), of_block(arrivals + exchange, rank)};
}
static __device__ void push(far<float> to, int at, float x)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 ::"r"(to.at + 4 * at), "r"(__float_as_uint(x)), "r"(to.arrival) : "memory");
}
static __device__ void push(far<double> to, int at, double x)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
                 ::"r"(to.at + 8 * at), "l"(__double_as_longlong(x)), "r"(to.arrival) : "memory");
}
static __device__ void push4(far<unsigned> to, int at, const unsigned* x)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                 ::"r"(to.at + 4 * at), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(to.arrival) : "memory");
}
static __device__ void store4(unsigned* to, int at, const unsigned* x)
{
    *(uint4*)(to + at) = make_uint4(x[0], x[1], x[2], x[3]);
}
static __device__ void expects(unsigned long long* arrivals, int exchange, int bytes)
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(arrivals + exchange);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
static __device__ void arrived(unsigned long long* arrivals, int exchange)  // what was pushed here can be read
{
    const unsigned at = (unsigned)__cvta_generic_to_shared(arrivals + exchange);
    unsigned done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n"
                     "selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(at) : "memory");
    } while (!done);
}
static __device__ void begun()  // this block can be pushed to
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
static __device__ void all_begun() { __syncwarp(); asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#endif
"""

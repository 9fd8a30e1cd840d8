// Runs CUDA kernels on the CPU so that their indexing and synchronisation can be tested without a GPU.
//
// Every thread of a block is a fiber on one OS thread; blocks run one after another, each on an OS thread of its own,
// so that __shared__ is that thread's local storage. The order is fixed: a run is reproducible. Under ThreadSanitizer
// only what synchronises on a GPU synchronises here (barriers, shuffles, the end of a launch), not the fixed order:
// an access without its barrier, or two blocks writing one address, is reported in every run.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include <ucontext.h>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define FASTLIP_UNTRACKED __attribute__((no_sanitize_thread, noinline))
#else
#define FASTLIP_UNTRACKED __attribute__((noinline))
#endif

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)

namespace cuda_shim {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStackBytes = 1 << 17;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

[[noreturn]] inline void fail(const char* reason) {
  std::fprintf(stderr, "cuda_shim: %s\n", reason);
  std::abort();
}

// What TSan is told. Sync objects are addresses.
namespace tsan {
#if defined(__SANITIZE_THREAD__)
inline void* current() { return __tsan_get_current_fiber(); }
inline void* create() { return __tsan_create_fiber(0); }
inline void destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void enter(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
inline void release(void* object) { __tsan_release(object); }
inline void acquire(void* object) { __tsan_acquire(object); }
#else
inline void* current() { return nullptr; }
inline void* create() { return nullptr; }
inline void destroy(void*) {}
inline void enter(void*) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif
}  // namespace tsan

// Two sync objects in turn: a thread that runs ahead to the next barrier must not seem ordered before one that has
// yet to leave this barrier.
struct Barrier {
  uint32_t mask = 0;
  unsigned arrived = 0, phase = 0;
  char object[2] = {};
};

struct Warp {
  static constexpr int kMasks = 64;  // distinct masks that one warp of a kernel may synchronise on
  Barrier barriers[kMasks];
  uint64_t slots[kWarp];
};

struct Block;

struct Lane {
  Block* block = nullptr;
  Dim3 thread, index;
  ucontext_t context;
  void* fiber = nullptr;
  std::unique_ptr<char[]> stack;
  bool done = false;
};

struct Block {
  const std::function<void()>* kernel;
  Dim3 threads, blocks;
  Barrier barrier;
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  void* fiber;
  char* finished;  // sync object: the launch's end
  std::unique_ptr<char[]> shared;
  unsigned waits = 0;
};

inline thread_local Lane* running = nullptr;

FASTLIP_UNTRACKED inline Lane& lane() { return *running; }

FASTLIP_UNTRACKED inline void yield(Lane* self) {
  tsan::enter(self->block->fiber);
  swapcontext(&self->context, &self->block->scheduler);
}

FASTLIP_UNTRACKED inline void wait(Barrier* barrier, unsigned expected) {
  Lane* self = running;
  const unsigned phase = barrier->phase;
  char* object = &barrier->object[phase % 2];
  tsan::release(object);
  ++self->block->waits;
  if (++barrier->arrived == expected) {
    barrier->arrived = 0;
    ++barrier->phase;
  } else {
    while (barrier->phase == phase) yield(self);
  }
  tsan::acquire(object);
}

FASTLIP_UNTRACKED inline Barrier* warp_barrier(uint32_t mask) {
  Lane* self = running;
  Barrier* barrier = self->block->warps.data()[self->thread.x / kWarp].barriers;
  for (int i = 0; i < Warp::kMasks; ++i, ++barrier) {
    if (barrier->mask == 0) barrier->mask = mask;
    if (barrier->mask == mask) return barrier;
  }
  fail("a warp synchronises on too many different masks");
}

FASTLIP_UNTRACKED inline uint64_t exchange(uint32_t mask, uint64_t value, unsigned source) {
  Lane* self = running;
  if ((mask >> self->thread.x % kWarp & 1) == 0) fail("a thread calls a warp function whose mask leaves it out");
  const unsigned count = static_cast<unsigned>(__builtin_popcount(mask));
  uint64_t* slots = self->block->warps.data()[self->thread.x / kWarp].slots;
  slots[self->thread.x % kWarp] = value;
  wait(warp_barrier(mask), count);
  const uint64_t result = slots[source % kWarp];
  wait(warp_barrier(mask), count);
  return result;
}

// Trampoline: makecontext passes no pointers.
FASTLIP_UNTRACKED inline void body() {
  Lane* self = running;
  (*self->block->kernel)();
  tsan::release(self->block->finished);
  self->done = true;
  yield(self);
}

FASTLIP_UNTRACKED inline void resume(Lane* lane) {
  running = lane;
  tsan::enter(lane->fiber);
  swapcontext(&lane->block->scheduler, &lane->context);
}

FASTLIP_UNTRACKED inline bool step(Block* block) {
  bool alive = false;
  for (unsigned i = 0; i < block->threads.x; ++i) {
    Lane* lane = block->lanes.data() + i;
    if (lane->done) continue;
    resume(lane);
    alive |= !lane->done;
  }
  return alive;
}

FASTLIP_UNTRACKED inline char* dynamic_shared() { return running->block->shared.get(); }

inline void prepare(Lane& lane) {
  lane.stack.reset(new char[kStackBytes]);
  lane.fiber = tsan::create();
  getcontext(&lane.context);
  lane.context.uc_stack.ss_sp = lane.stack.get();
  lane.context.uc_stack.ss_size = kStackBytes;
  lane.context.uc_link = nullptr;
  makecontext(&lane.context, body, 0);
}

inline void run_block(Block& block, unsigned index) {
  block.fiber = tsan::current();
  for (unsigned i = 0; i < block.threads.x; ++i) {
    Lane& lane = block.lanes[i];
    lane.block = &block;
    lane.thread = {i, 0, 0};
    lane.index = {index, 0, 0};
    prepare(lane);
  }
  while (step(&block)) {
    if (block.waits == 0) fail("threads wait at a barrier that others never reach");
    block.waits = 0;
  }
  for (Lane& lane : block.lanes) tsan::destroy(lane.fiber);
}

// kernel<<<blocks, threads, shared>>>
inline void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel, size_t shared = 0) {
  char finished = 0;
  if (threads > kMaxThreads) fail("more than 1024 threads per block");
  // All blocks live until the end: freed stacks would be reused, which TSan would report as a race.
  std::vector<Block> all(blocks);
  for (unsigned index = 0; index < blocks; ++index) {
    Block& block = all[index];
    block.kernel = &kernel;
    block.threads = {threads, 1, 1};
    block.blocks = {blocks, 1, 1};
    block.lanes = std::vector<Lane>(threads);
    block.warps = std::vector<Warp>((threads + kWarp - 1) / kWarp);
    block.finished = &finished;
    block.shared.reset(new char[shared]);
    std::thread(run_block, std::ref(block), index).join();
  }
  tsan::acquire(&finished);
}

}  // namespace cuda_shim

#define threadIdx (::cuda_shim::lane().thread)
#define blockIdx (::cuda_shim::lane().index)
#define blockDim (::cuda_shim::lane().block->threads)
#define gridDim (::cuda_shim::lane().block->blocks)

inline void __syncthreads() {
  cuda_shim::Block* block = cuda_shim::lane().block;
  cuda_shim::wait(&block->barrier, block->threads.x);
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int offset) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_shim::exchange(mask, bits, threadIdx.x ^ static_cast<unsigned>(offset));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

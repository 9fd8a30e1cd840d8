// MaxMin on the GPU. Layout of x and of the mask: see maxmin_cpu.cpp.
//
// A thread moves one 16-byte vector of each of two streams (or one vector of neighbours), and the threads that share a
// byte of the mask, neighbours in a warp, combine their bits by shuffles. Both directions are one pass over memory.

#include <cstdint>

#include "common/cuda_launch.cuh"
#include "common/registry.h"

namespace fastlip {
namespace {

constexpr int kVectorBytes = 16;

struct alignas(kVectorBytes) Vector {
  uint32_t word[4];
};

// An element type: how it is stored, and when b > a. NaN compares false, as in IEEE arithmetic.
template <class T>
struct Real {
  using Storage = T;
  static __device__ bool greater(T b, T a) { return b > a; }
};
using Float32 = Real<float>;
using Float64 = Real<double>;

// Sixteen-bit floats are compared as integers: sign and magnitude become two's complement, both zeros become 0.
template <int infinity>
struct Real16 {
  using Storage = int16_t;
  static __device__ bool greater(int16_t b, int16_t a) {
    const int size_a = a & 0x7fff, size_b = b & 0x7fff;
    const int order_a = a < 0 ? -size_a : size_a, order_b = b < 0 ? -size_b : size_b;
    return order_b > order_a && size_a <= infinity && size_b <= infinity;
  }
};
using Float16 = Real16<0x7c00>;
using BFloat16 = Real16<0x7f80>;

// Up to kCount consecutive elements; one access where they are complete and aligned.
template <class T>
struct Elements {
  static constexpr int kCount = kVectorBytes / sizeof(T);
  union {
    Vector vector;
    T value[kCount];
  };

  __device__ void load(const T* source, int64_t available) {
    if (whole(source, available)) {
      vector = *reinterpret_cast<const Vector*>(source);
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] = i < available ? source[i] : T{};
  }

  __device__ void store(T* target, int64_t available) const {
    if (whole(target, available)) {
      *reinterpret_cast<Vector*>(target) = vector;
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < available) target[i] = value[i];
    }
  }

  static __device__ bool whole(const T* address, int64_t available) {
    return available >= kCount && reinterpret_cast<uintptr_t>(address) % kVectorBytes == 0;
  }
};

// x as runs of pairs along memory; an odd last channel is a run of its own, to be copied.
template <class Index>
struct Runs {
  Index count, chunks;    // runs, and threads for each: a multiple of those that share a byte of the mask
  Index groups, slots;    // runs of an image: with pairs, and with the odd channel's
  int64_t channels, inner, length, mask_stride;
  int64_t next_run, second;  // from one run of an image to the next, and from a pair's first to its second element
};

// The bits of the threads that share a byte: pairs each has in its low bits, the result is the whole byte.
template <int pairs>
__device__ uint32_t gather_byte(uint32_t bits) {
  constexpr int kSharers = 8 / pairs;
  const uint32_t lane = threadIdx.x % kWarpSize;
  const uint32_t sharers = ((1u << kSharers) - 1) << (lane & ~(kSharers - 1u));
  bits <<= lane % kSharers * pairs;
#pragma unroll
  for (int step = 1; step < kSharers; step *= 2) bits |= __shfl_xor_sync(sharers, bits, step);
  return bits;
}

// Bits of pairs [first, first + pairs) of a run: compared and written to the mask, or read from it.
template <class Type, int pairs, bool compare, class T>
__device__ uint32_t swaps(const T (&a)[pairs], const T (&b)[pairs], uint8_t* mask, int64_t first, int64_t length) {
  const int shift = static_cast<int>(first % 8);
  if constexpr (!compare) {
    return first < length ? static_cast<uint32_t>(mask[first / 8]) >> shift : 0;
  }
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < pairs; ++i) bits |= static_cast<uint32_t>(Type::greater(b[i], a[i])) << i;
  const uint32_t byte = gather_byte<pairs>(bits);
  if (shift == 0) mask[first / 8] = static_cast<uint8_t>(byte);
  return bits;
}

template <int pairs, class T>
__device__ void swap_marked(T (&a)[pairs], T (&b)[pairs], uint32_t bits) {
#pragma unroll
  for (int i = 0; i < pairs; ++i) {
    const bool swap = bits >> i & 1;
    const T high = swap ? b[i] : a[i], low = swap ? a[i] : b[i];
    a[i] = high;
    b[i] = low;
  }
}

// A pair of streams: pair i at (x[i], x[second + i]).
template <class Type, bool compare, class T>
__device__ void separate(const T* x, T* y, uint8_t* mask, int64_t chunk, int64_t length, int64_t second) {
  constexpr int kPairs = Elements<T>::kCount;
  const int64_t first = chunk * kPairs, available = length - first;
  Elements<T> a, b;
  a.load(x + first, available);
  b.load(x + second + first, available);
  swap_marked(a.value, b.value, swaps<Type, kPairs, compare>(a.value, b.value, mask, first, length));
  a.store(y + first, available);
  b.store(y + second + first, available);
}

// Neighbours in memory: pair i at (x[2 i], x[2 i + 1]).
template <class Type, bool compare, class T>
__device__ void interleaved(const T* x, T* y, uint8_t* mask, int64_t chunk, int64_t length) {
  constexpr int kPairs = Elements<T>::kCount / 2;
  const int64_t first = chunk * kPairs, available = 2 * (length - first);
  Elements<T> both;
  both.load(x + 2 * first, available);
  T a[kPairs], b[kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) a[i] = both.value[2 * i], b[i] = both.value[2 * i + 1];
  swap_marked(a, b, swaps<Type, kPairs, compare>(a, b, mask, first, length));
#pragma unroll
  for (int i = 0; i < kPairs; ++i) both.value[2 * i] = a[i], both.value[2 * i + 1] = b[i];
  both.store(y + 2 * first, available);
}

template <class Type, bool compare, bool neighbours, class Index>
__global__ void __launch_bounds__(kThreadsPerBlock)
    maxmin_kernel(const typename Type::Storage* x, typename Type::Storage* y, uint8_t* mask, Runs<Index> runs) {
  using T = typename Type::Storage;
  const Index items = runs.count * runs.chunks;
  for (Index item = first_item<Index>(); item < items; item += item_stride<Index>()) {
    const Index run = item / runs.chunks, image = run / runs.slots, group = run - image * runs.slots;
    const int64_t chunk = item - run * runs.chunks;
    const int64_t origin = image * runs.channels * runs.inner;
    if (group == runs.groups) {
      constexpr int kCount = Elements<T>::kCount;
      const int64_t offset = origin + (runs.channels - 1) * runs.inner + chunk * kCount;
      Elements<T> rest;
      rest.load(x + offset, runs.inner - chunk * kCount);
      rest.store(y + offset, runs.inner - chunk * kCount);
      continue;
    }
    const int64_t offset = origin + group * runs.next_run;
    uint8_t* bits = mask + (static_cast<int64_t>(image) * runs.groups + group) * runs.mask_stride;
    if constexpr (neighbours) {
      interleaved<Type, compare>(x + offset, y + offset, bits, chunk, runs.length);
    } else {
      separate<Type, compare>(x + offset, y + offset, bits, chunk, runs.length, runs.second);
    }
  }
}

template <class Type, bool compare, bool neighbours, class Index>
void run(const void* x, void* y, uint8_t* mask, const Runs<int64_t>& runs, void* stream) {
  using T = typename Type::Storage;
  const Runs<Index> narrowed = {static_cast<Index>(runs.count),  static_cast<Index>(runs.chunks),
                                static_cast<Index>(runs.groups), static_cast<Index>(runs.slots),
                                runs.channels,                   runs.inner,
                                runs.length,                     runs.mask_stride,
                                runs.next_run,                   runs.second};
  launch(maxmin_kernel<Type, compare, neighbours, Index>, blocks_for(runs.count * runs.chunks), stream,
         static_cast<const T*>(x), static_cast<T*>(y), mask, narrowed);
}

template <class Type, bool compare>
void maxmin(const void* x, void* y, uint8_t* mask, int64_t outer, int64_t channels, int64_t inner, int64_t halves,
            void* stream) {
  if (outer == 0 || channels == 0 || inner == 0) return;
  const int64_t pairs = channels / 2, odd = channels % 2;
  const bool neighbours = inner == 1 && halves == 0;
  Runs<int64_t> runs = {};
  runs.channels = channels;
  runs.inner = inner;
  runs.length = inner == 1 ? pairs : inner;
  runs.groups = pairs == 0 ? 0 : inner == 1 ? 1 : pairs;
  runs.slots = runs.groups + odd;
  runs.count = outer * runs.slots;
  runs.mask_stride = (runs.length + 7) / 8;
  runs.next_run = halves != 0 ? inner : 2 * inner;
  runs.second = halves != 0 ? pairs * inner : inner;
  const int64_t pairs_of_thread = kVectorBytes / sizeof(typename Type::Storage) / (neighbours ? 2 : 1);
  runs.chunks = std::max<int64_t>(1, runs.mask_stride * 8 / pairs_of_thread);
  // 64-bit divisions would cost as much as the memory traffic; the loop's last step must not overflow either.
  const bool narrow = runs.count * runs.chunks < (int64_t{1} << 31);
  if (neighbours) {
    (narrow ? run<Type, compare, true, uint32_t> : run<Type, compare, true, int64_t>)(x, y, mask, runs, stream);
  } else {
    (narrow ? run<Type, compare, false, uint32_t> : run<Type, compare, false, int64_t>)(x, y, mask, runs, stream);
  }
}

}  // namespace

FASTLIP_KERNEL(maxmin_forward_float32, maxmin<Float32, true>);
FASTLIP_KERNEL(maxmin_forward_float64, maxmin<Float64, true>);
FASTLIP_KERNEL(maxmin_forward_float16, maxmin<Float16, true>);
FASTLIP_KERNEL(maxmin_forward_bfloat16, maxmin<BFloat16, true>);
FASTLIP_KERNEL(maxmin_swap_float32, maxmin<Float32, false>);
FASTLIP_KERNEL(maxmin_swap_float64, maxmin<Float64, false>);
FASTLIP_KERNEL(maxmin_swap_float16, maxmin<Float16, false>);
FASTLIP_KERNEL(maxmin_swap_bfloat16, maxmin<BFloat16, false>);

}  // namespace fastlip

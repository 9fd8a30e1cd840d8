// Kernels with known defects: the shim under ThreadSanitizer must pass the right one and report the others.
#include <cstdint>

#include "common/cuda_launch.cuh"
#include "common/registry.h"

namespace fastlip {
namespace {

// Reverses each block's stretch through shared memory.
template <bool barrier>
__global__ void reverse_kernel(const float* x, float* y) {
  __shared__ float tile[kThreadsPerBlock];
  tile[threadIdx.x] = x[first_item<int64_t>()];
  if constexpr (barrier) __syncthreads();
  y[first_item<int64_t>()] = tile[blockDim.x - 1 - threadIdx.x];
}

// Every block writes its count to one address.
__global__ void collide_kernel(const float* x, float* y) {
  if (threadIdx.x == 0) y[0] = x[blockIdx.x];
}

// Half of the threads never reach the barrier.
__global__ void stuck_kernel(const float* x, float* y) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  y[first_item<int64_t>()] = x[first_item<int64_t>()];
}

template <void (*kernel)(const float*, float*)>
void over(const float* x, float* y, int64_t size) {
  launch(kernel, blocks_for(size), nullptr, x, y);
}
void reverse(const void* x, void* y, int64_t size) {
  over<reverse_kernel<true>>(static_cast<const float*>(x), static_cast<float*>(y), size);
}
void reverse_without_barrier(const void* x, void* y, int64_t size) {
  over<reverse_kernel<false>>(static_cast<const float*>(x), static_cast<float*>(y), size);
}
void collide(const void* x, void* y, int64_t size) {
  over<collide_kernel>(static_cast<const float*>(x), static_cast<float*>(y), size);
}
void stuck(const void* x, void* y, int64_t size) {
  over<stuck_kernel>(static_cast<const float*>(x), static_cast<float*>(y), size);
}

}  // namespace

FASTLIP_KERNEL(selftest_reverse, reverse);
FASTLIP_KERNEL(selftest_reverse_without_barrier, reverse_without_barrier);
FASTLIP_KERNEL(selftest_collide, collide);
FASTLIP_KERNEL(selftest_stuck, stuck);

}  // namespace fastlip

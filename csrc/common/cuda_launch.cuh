// Launching a CUDA kernel on a stream. Under nvcc this is <<<>>>; any other compiler gets tests/cuda_shim, which runs
// the same source on the CPU. csrc/*/*_cuda.cu includes this file and no CUDA header.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#else
#include "cuda_shim.h"
#endif

namespace fastlip {

constexpr int kWarpSize = 32;
#if defined(__CUDACC__)
constexpr int kThreadsPerBlock = 256;
constexpr int64_t kMaxBlocks = 1 << 20;
#else
constexpr int kThreadsPerBlock = 64;
constexpr int64_t kMaxBlocks = 4;  // few, so that tests reach the second turn of the loops over items
#endif

// Threads loop over their items with this stride, so that any number of items fits any grid.
template <class Index>
__device__ Index first_item() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}
template <class Index>
__device__ Index item_stride() {
  return static_cast<Index>(gridDim.x) * blockDim.x;
}

inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(std::min((items + kThreadsPerBlock - 1) / kThreadsPerBlock, kMaxBlocks));
}

#if defined(__CUDACC__)
inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA launch: ") + cudaGetErrorString(status));
}

// The shared memory that a launch gives each block; it begins at a multiple of 16 bytes.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ uint4 fastlip_dynamic_shared[];
  return reinterpret_cast<T*>(fastlip_dynamic_shared);
}

template <class... Parameters, class... Arguments>
void launch_blocks(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, int64_t shared_bytes,
                   void* stream, Arguments... arguments) {
  const int bytes = static_cast<int>(shared_bytes);
  // Beyond 48 KB a kernel must be told; that is no work of the stream, so it may happen while a graph is captured.
  if (bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               bytes));
  }
  kernel<<<blocks, threads, bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}
#else
template <class T>
__device__ T* dynamic_shared() {
  return reinterpret_cast<T*>(cuda_shim::dynamic_shared());
}

template <class... Parameters, class... Arguments>
void launch_blocks(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, int64_t shared_bytes, void*,
                   Arguments... arguments) {
  cuda_shim::run(blocks, threads, [=] { kernel(arguments...); }, static_cast<size_t>(shared_bytes));
}
#endif

template <class... Parameters, class... Arguments>
void launch_with_shared(void (*kernel)(Parameters...), unsigned blocks, int64_t shared_bytes, void* stream,
                        Arguments... arguments) {
  launch_blocks(kernel, blocks, kThreadsPerBlock, shared_bytes, stream, arguments...);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, void* stream, Arguments... arguments) {
  launch_with_shared(kernel, blocks, 0, stream, arguments...);
}

}  // namespace fastlip

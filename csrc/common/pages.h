// Hints about memory that is written once as a whole: none of them changes a result.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common/gemm.h"

namespace fastlip {

// Asks for large pages where an array is large and perhaps fresh: a first write to each small page costs more than the
// write itself. The system may ignore it.
template <class T>
inline void prefer_large_pages(T* data, int64_t size) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096, kWorthwhile = 4 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + size) / kPage * kPage;
  if (end > begin + kWorthwhile) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(size);
#endif
}

// Stores a vector without reading what it overwrites; target is aligned. Needs finish_streaming before another thread
// reads.
template <class T>
inline void stream_lanes(T* target, Lanes<T> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_stream_ps(target, reinterpret_cast<__m512>(value));
  if constexpr (sizeof(T) == 8) _mm512_stream_pd(target, reinterpret_cast<__m512d>(value));
#else
  store_lanes<T>(target, value);
#endif
}

inline void finish_streaming() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

}  // namespace fastlip

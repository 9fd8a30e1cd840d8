// A register-blocked product of small panels, C += Σ_p A_p B_p, for kernels that build larger products from tiles.
// The vectors have the width of the instruction set that this copy of the file is built for.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastlip {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPanelRows = 8;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kPanelRows = 4;
#else
constexpr int kVectorBytes = 16;
constexpr int kPanelRows = 4;
#endif
constexpr int kPanelVectors = 2;

template <class T>
struct LanesOf {
  using type __attribute__((vector_size(kVectorBytes))) = T;
  static constexpr int count = kVectorBytes / sizeof(T);
};
template <class T>
using Lanes = typename LanesOf<T>::type;

template <class T>
constexpr int kLaneCount = LanesOf<T>::count;

template <class T>
inline Lanes<T> load_lanes(const T* source) {
  Lanes<T> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class T>
inline void store_lanes(T* target, Lanes<T> value) {
  std::memcpy(target, &value, sizeof(value));
}

// Where the p-th pair of panels begins, relative to the pointers given to multiply_panels.
struct PanelPair {
  int64_t a;
  int64_t b;
};

// C[r, :] (+)= Σ_p Σ_l A_p[l, r] B_p[l, :] for kPanelRows rows and `vectors` vectors of columns, l < length.
// A_p[l, r] is at a + pairs[p].a + l * step + r * row, and rows of B_p and of C are ld elements apart. Each call sums
// in registers from zero before it adds to C, which keeps the rounding error of long sums down.
template <class T, int vectors, int64_t row, int64_t step, int64_t ld>
inline void multiply_panels(T* c, const T* a, const T* b, const PanelPair* pairs, int64_t count, int64_t length,
                            bool add) {
  constexpr int lanes = kLaneCount<T>;
  Lanes<T> sum[kPanelRows][vectors] = {};
  for (int64_t p = 0; p < count; ++p) {
    const T* pa = a + pairs[p].a;
    const T* pb = b + pairs[p].b;
#pragma GCC unroll 4
    for (int64_t l = 0; l < length; ++l, pa += step, pb += ld) {
      Lanes<T> value[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) value[v] = load_lanes(pb + v * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sum[r][v] += pa[r * row] * value[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      T* target = c + r * ld + v * lanes;
      store_lanes<T>(target, add ? load_lanes(target) + sum[r][v] : sum[r][v]);
    }
  }
}

}  // namespace fastlip

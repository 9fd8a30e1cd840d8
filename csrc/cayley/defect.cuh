// How far the columns of Q = [2B - I; -2P] are from orthonormal, estimated by one block; see forward.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/number.cuh"

namespace fastlip::cayley {

// The defect of orthonormality that is allowed, in roundings of S: as on the CPU (cayley_cpu.cpp).
template <class S>
constexpr double kAllowed = 48 * static_cast<double>(std::numeric_limits<S>::epsilon());

// A matrix of one batch member: element (i, j) at [i * row + j], its parts in planes or next to each other.
template <class T>
struct Planes {
  const T *re, *im;
  int64_t row;
  static constexpr int kStep = 1;
};
template <class T>
struct Pairs {
  const T *re, *im;
  int64_t row;
  static constexpr int kStep = 2;
};

template <class N, class View>
__device__ N element(const View& a, int64_t i, int64_t j) {
  const int64_t at = (i * a.row + j) * View::kStep;
  if constexpr (std::is_floating_point_v<N>) {
    return a.re[at];
  } else {
    return {a.re[at], a.im[at]};
  }
}
// Real matrices lie in memory without gaps, whichever the view.
template <class T, bool complex, class N>
__device__ auto view(const N* data, int64_t row) {
  if constexpr (complex) {
    return Pairs<T>{&data->re, &data->im, row};
  } else {
    return Planes<T>{data, data, row};
  }
}

// y = scale A x - (identity ? x : 0), one row per warp.
template <class N, class T, class View>
__device__ void apply_rows(const View& a, int64_t rows, int64_t n, T scale, bool identity, const N* x, N* y) {
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t i = threadIdx.x / kWarpSize; i < rows; i += kWarps) {
    N sum = {};
    for (int64_t j = lane; j < n; j += kWarpSize) sum = sum + element<N>(a, i, j) * x[j];
    const T re = sum_of_warp(real(sum)), im = sum_of_warp(imaginary(sum));
    if (lane != 0) continue;
    const N product = number<N>(scale * re, scale * im);
    y[i] = identity ? product - x[i] : product;
  }
}

// z += scale Aᴴ y, one column per thread.
template <class N, class T, class View>
__device__ void add_columns(const View& a, int64_t rows, int64_t n, T scale, const N* y, N* z) {
  for (int64_t j = threadIdx.x; j < n; j += kThreadsPerBlock) {
    N sum = {};
    for (int64_t i = 0; i < rows; ++i) sum = sum + conjugate(element<N>(a, i, j)) * y[i];
    z[j] = z[j] + scale * sum;
  }
}

// z = (QᴴQ - I) x; y has room for a column of Q.
template <class N, class T, class View, class Below>
__device__ void apply_defect(const View& b, const Below& p, int64_t n, int64_t extra, const N* x, N* y, N* z) {
  apply_rows(b, n, n, T{2}, true, x, y);
  apply_rows(p, extra, n, T{-2}, false, x, y + n);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < n; i += kThreadsPerBlock) z[i] = number<N>(T{0}, T{0}) - y[i] - x[i];
  add_columns(b, n, n, T{2}, y, z);
  add_columns(p, extra, n, T{-2}, y + n, z);
  __syncthreads();
}

template <class N>
__device__ double square_norm(const N* x, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreadsPerBlock) sum += static_cast<double>(square(x[i]));
  return sum_of_block(sum);
}

// The estimate of forward.h; memory holds 3 n + extra numbers. Every thread calls it and gets the result.
template <class T, bool complex, class View, class Below>
__device__ double defect(const View& b, const Below& p, int64_t n, int64_t extra, Number<T, complex>* memory) {
  using N = Number<T, complex>;
  N *x = memory, *z = x + n, *y = z + n;
  for (int64_t i = threadIdx.x; i < n; i += kThreadsPerBlock) {
    x[i] = number<N>(static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15 >> 63 ? T{-1} : T{1}, T{0});
  }
  __syncthreads();
  apply_defect<N, T>(b, p, n, extra, x, y, z);
  const double once = square_norm(z, n);
  apply_defect<N, T>(b, p, n, extra, z, y, x);
  const double twice = square_norm(x, n);
  return once == 0 ? 0 : sqrt(twice / once);
}

}  // namespace fastlip::cayley

// Real and complex numbers as torch stores them, and the block's sums.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/cuda_launch.cuh"

namespace fastlip {

template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

template <class T, bool complex>
using Number = std::conditional_t<complex, Complex<T>, T>;

template <class T>
__device__ T real(T x) {
  return x;
}
template <class T>
__device__ T real(Complex<T> x) {
  return x.re;
}
template <class T>
__device__ T imaginary(T) {
  return 0;
}
template <class T>
__device__ T imaginary(Complex<T> x) {
  return x.im;
}

template <class N, class T>
__device__ N number(T re, [[maybe_unused]] T im) {
  if constexpr (std::is_floating_point_v<N>) {
    return static_cast<N>(re);
  } else {
    using Part = decltype(N::re);
    return {static_cast<Part>(re), static_cast<Part>(im)};
  }
}

// From one precision to another.
template <class N, class M>
__device__ N convert(M x) {
  return number<N>(real(x), imaginary(x));
}

template <class N>
__device__ N conjugate(N x) {
  return number<N>(real(x), -imaginary(x));
}
template <class T>
__device__ Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
__device__ Complex<T> operator*(T a, Complex<T> b) {
  return {a * b.re, a * b.im};
}
template <class N>
__device__ auto square(N x) {
  return real(x) * real(x) + imaginary(x) * imaginary(x);
}
template <class N>
__device__ N reciprocal(N x) {
  const auto scale = 1 / square(x);
  return number<N>(scale * real(x), -scale * imaginary(x));
}
template <>
__device__ inline float reciprocal(float x) {
  return 1 / x;
}
template <>
__device__ inline double reciprocal(double x) {
  return 1 / x;
}

// The sum over a warp, in every lane.
template <class T>
__device__ T sum_of_warp(T x) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

constexpr int kWarps = kThreadsPerBlock / kWarpSize;

// The sum over the block, in every thread.
__device__ inline double sum_of_block(double x) {
  __shared__ double sums[kWarps];
  x = sum_of_warp(x);
  __syncthreads();  // an earlier sum may still be read
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = x;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += sums[i];
  return total;
}

// Four neighbours, loaded and stored in vectors of 16 bytes.
template <class T>
struct alignas(16) Quad {
  T value[4];
};

template <class T>
__device__ Quad<T> load_quad(const T* source) {
  return *reinterpret_cast<const Quad<T>*>(source);
}
template <class T>
__device__ void store_quad(T* target, const Quad<T>& x) {
  *reinterpret_cast<Quad<T>*>(target) = x;
}

}  // namespace fastlip

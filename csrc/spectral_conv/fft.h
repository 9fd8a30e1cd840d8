// Discrete Fourier transforms of any length, one in each lane of a vector: x_k -> Σ_j x_j e^{-2πi jk/n}.
// A complex vector is two vectors, its real and its imaginary part. With the parts exchanged before and after, the same
// function is the inverse up to the factor 1/n.
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/gemm.h"
#include "common/scratch.h"

namespace fastlip::spectral_conv {

template <class T>
struct ComplexLanes {
  Lanes<T> re, im;
};

template <class T>
inline ComplexLanes<T> load_complex(const T* source) {
  return {load_lanes(source), load_lanes(source + kLaneCount<T>)};
}

template <class T>
inline void store_complex(T* target, Lanes<T> re, Lanes<T> im) {
  store_lanes<T>(target, re);
  store_lanes<T>(target + kLaneCount<T>, im);
}

// cos and sin of 2π k / n for k < n, from integers, in double.
template <class T>
struct Circle {
  std::vector<T> cosine, sine;
  explicit Circle(int64_t n) : cosine(n), sine(n) {
    const double step = 2 * 3.14159265358979323846 / static_cast<double>(n);
    for (int64_t k = 0; k < n; ++k) {
      cosine[k] = static_cast<T>(std::cos(step * static_cast<double>(k)));
      sine[k] = static_cast<T>(std::sin(step * static_cast<double>(k)));
    }
  }
};

template <class T>
inline void butterfly2(ComplexLanes<T>* z) {
  const ComplexLanes<T> a = z[0], b = z[1];
  z[0] = {a.re + b.re, a.im + b.im};
  z[1] = {a.re - b.re, a.im - b.im};
}

template <class T>
inline void butterfly4(ComplexLanes<T>* z) {
  const ComplexLanes<T> sum02{z[0].re + z[2].re, z[0].im + z[2].im}, sum13{z[1].re + z[3].re, z[1].im + z[3].im};
  const ComplexLanes<T> difference02{z[0].re - z[2].re, z[0].im - z[2].im};
  const ComplexLanes<T> difference13{z[1].re - z[3].re, z[1].im - z[3].im};
  z[0] = {sum02.re + sum13.re, sum02.im + sum13.im};
  z[1] = {difference02.re + difference13.im, difference02.im - difference13.re};
  z[2] = {sum02.re - sum13.re, sum02.im - sum13.im};
  z[3] = {difference02.re - difference13.im, difference02.im + difference13.re};
}

template <class T>
inline void butterfly8(ComplexLanes<T>* z) {
  ComplexLanes<T> even[4] = {z[0], z[2], z[4], z[6]}, odd[4] = {z[1], z[3], z[5], z[7]};
  butterfly4<T>(even);
  butterfly4<T>(odd);
  constexpr T half = static_cast<T>(0.70710678118654752440);
  odd[1] = {(odd[1].re + odd[1].im) * half, (odd[1].im - odd[1].re) * half};
  odd[2] = {odd[2].im, -odd[2].re};
  odd[3] = {(odd[3].im - odd[3].re) * half, (odd[3].re + odd[3].im) * -half};
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    z[k] = {even[k].re + odd[k].re, even[k].im + odd[k].im};
    z[k + 4] = {even[k].re - odd[k].re, even[k].im - odd[k].im};
  }
}

// An odd length, by sums and differences of x_j and x_{n-j}: half the products of the definition.
template <class T>
inline void butterfly_odd(ComplexLanes<T>* z, int64_t radix, const Circle<T>& circle) {
  ComplexLanes<T>* sum = z + radix;
  const int64_t half = radix / 2;
  const ComplexLanes<T> first = z[0];
  ComplexLanes<T> total = first;
  for (int64_t j = 1; j <= half; ++j) {
    const ComplexLanes<T> a = z[j], b = z[radix - j];
    sum[j] = {a.re + b.re, a.im + b.im};
    sum[half + j] = {a.re - b.re, a.im - b.im};
    total = {total.re + sum[j].re, total.im + sum[j].im};
  }
  z[0] = total;
  for (int64_t k = 1; k <= half; ++k) {
    ComplexLanes<T> even = first, odd = {};
    int64_t turn = 0;
    for (int64_t j = 1; j <= half; ++j) {
      turn += k;
      if (turn >= radix) turn -= radix;
      const T cosine = circle.cosine[turn], sine = circle.sine[turn];
      even.re += sum[j].re * cosine;
      even.im += sum[j].im * cosine;
      odd.re += sum[half + j].re * sine;
      odd.im += sum[half + j].im * sine;
    }
    z[k] = {even.re + odd.im, even.im - odd.re};
    z[radix - k] = {even.re - odd.im, even.im + odd.re};
  }
}

template <int radix, class T>
inline void butterfly(ComplexLanes<T>* z, int64_t odd_radix, const Circle<T>& circle) {
  if constexpr (radix == 2) {
    butterfly2<T>(z);
  } else if constexpr (radix == 4) {
    butterfly4<T>(z);
  } else if constexpr (radix == 8) {
    butterfly8<T>(z);
  } else {
    butterfly_odd<T>(z, radix == 0 ? odd_radix : radix, circle);
  }
}

// Stockham's algorithm: each pass reads one array and writes another, and the result is in natural order.
template <class T>
class Fourier {
 public:
  static constexpr int64_t lanes = kLaneCount<T>;

  explicit Fourier(int64_t length) : length_(length) {
    for (int64_t rest = length, stride = 1; rest > 1;) {
      const int64_t radix = next_radix(rest);
      passes_.emplace_back(radix, rest / radix, stride);
      rest /= radix;
      stride *= radix;
    }
  }

  int64_t length() const { return length_; }

  // Of `length` complex vectors; returns where the result lies: in one of the two arrays given, or where it came from.
  const T* operator()(const T* x, T* first, T* second) const {
    for (const Pass& pass : passes_) {
      pass.run(x, first);
      x = first;
      std::swap(first, second);
    }
    return x;
  }

 private:
  struct Pass {
    int64_t radix, rest, stride;
    std::vector<T> twiddles;  // [p][j]: e^{-2πi pj / (rest radix)}, j from 1
    Circle<T> circle;

    Pass(int64_t radix, int64_t rest, int64_t stride)
        : radix(radix), rest(rest), stride(stride), circle(radix % 2 == 0 ? 0 : radix) {
      const Circle<T> phases(rest * radix);
      for (int64_t p = 0; p < rest; ++p) {
        for (int64_t j = 1; j < radix; ++j) {
          twiddles.push_back(phases.cosine[p * j]);
          twiddles.push_back(-phases.sine[p * j]);
        }
      }
    }

    void run(const T* x, T* y) const {
      switch (radix) {
        case 2: return run<2>(x, y);
        case 3: return run<3>(x, y);
        case 4: return run<4>(x, y);
        case 5: return run<5>(x, y);
        case 8: return run<8>(x, y);
        default: return run<0>(x, y);
      }
    }

    template <int fixed>
    void run(const T* x, T* y) const {
      const int64_t size = fixed == 0 ? radix : fixed;
      ComplexLanes<T> local[fixed == 0 ? 1 : 2 * fixed];
      ComplexLanes<T>* z = fixed == 0 ? scratch<ComplexLanes<T>, struct OddButterfly>(2 * radix) : local;
      const T* twiddle = twiddles.data();
      for (int64_t p = 0; p < rest; ++p, twiddle += 2 * (size - 1)) {
        for (int64_t q = 0; q < stride; ++q) {
#pragma GCC unroll 8
          for (int64_t j = 0; j < size; ++j) z[j] = load_complex(x + 2 * lanes * (q + stride * (p + rest * j)));
          butterfly<fixed, T>(z, radix, circle);
          T* target = y + 2 * lanes * (q + stride * size * p);
          store_complex<T>(target, z[0].re, z[0].im);
#pragma GCC unroll 8
          for (int64_t j = 1; j < size; ++j) {
            const T re = twiddle[2 * j - 2], im = twiddle[2 * j - 1];
            const Lanes<T> a = z[j].re, b = z[j].im;
            store_complex<T>(target + 2 * lanes * stride * j, a * re - b * im, a * im + b * re);
          }
        }
      }
    }
  };

  static int64_t next_radix(int64_t rest) {
    if (rest == 8 || rest % 32 == 0) return 8;
    if (rest % 4 == 0) return 4;
    for (int64_t radix : {2, 3, 5}) {
      if (rest % radix == 0) return radix;
    }
    int64_t radix = 7;
    while (rest % radix != 0 && radix * radix <= rest) radix += 2;
    return rest % radix == 0 ? radix : rest;
  }

  int64_t length_;
  std::vector<Pass> passes_;
};

}  // namespace fastlip::spectral_conv

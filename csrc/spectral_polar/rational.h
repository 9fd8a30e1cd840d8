// The steps by which singular values approach 1: dynamically weighted Halley iteration.
//
// x -> x (a + b x²) / (1 + c x²) with the weights of Nakatsukasa, Bai, Gygi, "Optimizing Halley's iteration for computing
// the matrix polar decomposition", SIAM J. Matrix Anal. Appl. 2010: the least value of [l, 1] becomes as large as
// possible. With a = 3, b = 1, c = 3, to which they tend, it converges cubically from every x > 0, so that no estimate
// of the singular values needs to be a bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cayley/combine.h"
#include "cayley/planar.h"

namespace fastlip::spectral_polar {

using cayley::combine;
using cayley::Planar;

struct Weights {
  double a, b, c;
};

class Halley {
 public:
  // Of the next step; one step more than a matrix of condition 2000 needs is refused.
  Weights next() {
    const double l = lowest_, square = l * l, d = std::cbrt(4 * (1 - square) / (square * square));
    const double root = std::sqrt(1 + d);
    const double a = root + 0.5 * std::sqrt(std::max(0.0, 8 - 4 * d + 8 * (2 - square) / (square * root)));
    const double b = (a - 1) * (a - 1) / 4, c = a + b - 1;
    lowest_ = std::min(1.0, l * (a + b * square) / (1 + c * square));
    ++steps_;
    return {a, b, c};
  }

  bool is_exhausted() const { return steps_ == kMostSteps; }

 private:
  static constexpr int kMostSteps = 9;
  double lowest_ = 0.3;  // of singular values relative to the largest: two steps suffice from there
  int steps_ = 0;
};

// About the largest eigenvalue of a positive Hermitian matrix; 0 unless division by it is sound.
template <class T, bool complex>
double scale_of(const Planar<T, complex>& matrix, int64_t n) {
  constexpr double kLargestToMean = 1.5, kLeast = std::numeric_limits<T>::min() / std::numeric_limits<T>::epsilon();
  const double scale = kLargestToMean * cayley::square_norm(matrix, n) / cayley::trace(matrix, n);
  return scale >= kLeast && scale <= std::numeric_limits<T>::max() ? scale : 0;
}

// G is G - I afterwards. Whether its norm is so small that squaring it leaves a rounding.
template <class T, bool complex>
bool subtract_identity(const Planar<T, complex>& gram, int64_t n) {
  cayley::add_to_diagonal(gram, n, T{-1});
  return cayley::square_norm(gram, n) <= std::numeric_limits<T>::epsilon();
}

// Rows that fill up vectors are 0: products and transposes keep what fills up rows and columns at 0 then.
template <class T, bool complex>
void clear_padding(const Planar<T, complex>& matrix, int64_t n) {
  std::fill(matrix.at(n, 0), matrix.at(cayley::padded<T>(n), 0), T{0});
}

}  // namespace fastlip::spectral_polar

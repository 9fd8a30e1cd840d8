// Sums of planar matrices with factors, and what the choice of an iteration's next step needs to know of a matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "linalg/planar.h"

namespace fastlip::linalg {

template <class T, bool complex>
struct Term {
  double factor;
  const Planar<T, complex>& matrix;
};

// target = Σ factor * matrix + diagonal * I, where target may be one of the matrices.
template <class T, bool complex, size_t count>
void combine(const Planar<T, complex>& target, int64_t n, const Term<T, complex> (&terms)[count], double diagonal,
             bool parallel = false) {
  constexpr int64_t lanes = kLaneCount<T>;
  parallel_for(n, parallel ? kShare : n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j < target.kPlanes * target.plane; j += lanes) {
        Lanes<T> sum = static_cast<T>(terms[0].factor) * load_lanes(terms[0].matrix.at(i, j));
#pragma GCC unroll 4
        for (size_t t = 1; t < count; ++t) {
          sum += static_cast<T>(terms[t].factor) * load_lanes(terms[t].matrix.at(i, j));
        }
        store_lanes<T>(target.at(i, j), sum);
      }
    }
  });
  if (diagonal != 0) add_to_diagonal(target, n, static_cast<T>(diagonal));
}

// ‖M‖_F², rows in double; what fills up vectors counts too.
template <class T, bool complex>
double square_norm(const Planar<T, complex>& matrix, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    Lanes<T> squares = {};
    for (int64_t j = 0; j < matrix.kPlanes * matrix.plane; j += kLaneCount<T>) {
      const Lanes<T> value = load_lanes(matrix.at(i, j));
      squares += value * value;
    }
    for (int lane = 0; lane < kLaneCount<T>; ++lane) sum += squares[lane];
  }
  return sum;
}

template <class T, bool complex>
double trace(const Planar<T, complex>& matrix, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += *matrix.at(i, i);
  return sum;
}

}  // namespace fastlip::linalg

// Products of real matrices for dense layers.

#include <algorithm>
#include <cstdint>

#include "common/registry.h"
#include "linear/gemm.h"

namespace fastlip::linear {
namespace {

// c (rows x columns) = alpha a b, or c + alpha a b, or bias + alpha a b where bias is not null. Of a and b the distances
// of neighbours in a column and in a row are given, one of which is 1; rows of c are `step` apart.
template <class T>
void product(const T* a, const T* b, T* c, const T* bias, int64_t rows, int64_t columns, int64_t length, int64_t a_down,
             int64_t a_right, int64_t b_down, int64_t b_right, int64_t step, double alpha, int64_t add) {
  if (length == 0 && add == 0) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) c[i * step + j] = bias != nullptr ? bias[j] : T{0};
    }
    return;
  }
  gemm<T>({a, a_down, a_right}, {b, b_down, b_right}, c, step, rows, columns, length, static_cast<T>(alpha), add != 0,
          bias);
}

}  // namespace
}  // namespace fastlip::linear

namespace fastlip {

FASTLIP_KERNEL(product_float32, linear::product<float>);
FASTLIP_KERNEL(product_float64, linear::product<double>);

}  // namespace fastlip

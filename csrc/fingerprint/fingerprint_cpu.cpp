// A 64-bit fingerprint of the bytes of up to four arrays, in order: equal bytes have equal fingerprints, and different
// bytes have different ones but for a chance of about 2^-64. The construction is that of XXH3 (Yann Collet): 64-byte
// stripes are mixed with keys into eight accumulators by 32 x 32 bit products, which are scrambled every 1,024 bytes.
//
// An array is cut into blocks of 64 KiB. Each has a digest that depends on its index, and the sum of the digests does
// not depend on how blocks are split over threads. The vector code gives the same bits as the scalar code.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "common/parallel.h"
#include "common/registry.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 reports values that its own header leaves undefined on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace fastlip::fingerprint {
namespace {

constexpr int64_t kStripe = 64, kStripes = 16, kChunk = kStripe * kStripes, kBlock = 64 * kChunk;
constexpr int64_t kLanes64 = 8;
constexpr int64_t kGrain = 4;  // blocks for which a second thread pays
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15, kPrime32 = 0x9E3779B1;

// The finaliser of MurmurHash3 and SplitMix64 (Stafford's variant 13): a bijection in which every bit counts.
constexpr uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

// Stripe s of a chunk uses keys s to s + 7, the scrambling the last eight: a word that moves meets another key.
constexpr auto kKeys = [] {
  std::array<uint64_t, kStripes + 2 * kLanes64> keys{};
  for (uint64_t i = 0; i < keys.size(); ++i) keys[i] = mix(kGolden * (i + 1));
  return keys;
}();

#if defined(__AVX512F__)

class Accumulators {
 public:
  explicit Accumulators(uint64_t seed) {
    alignas(64) uint64_t start[kLanes64];
    for (uint64_t i = 0; i < kLanes64; ++i) start[i] = mix(seed + i * kGolden);
    value_ = load(start);
  }

  void stripe(const uint8_t* data, const uint64_t* keys) {
    const __m512i word = load(data), keyed = _mm512_xor_si512(word, load(keys));
    const __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
    const __m512i neighbour = _mm512_shuffle_epi32(word, _MM_PERM_BADC);
    value_ = _mm512_add_epi64(value_, _mm512_add_epi64(product, neighbour));
  }

  void scramble(const uint64_t* keys) {
    const __m512i prime = _mm512_set1_epi64(static_cast<int64_t>(kPrime32));
    const __m512i keyed = _mm512_xor_si512(_mm512_xor_si512(value_, _mm512_srli_epi64(value_, 47)), load(keys));
    const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(keyed, 32), prime);
    value_ = _mm512_add_epi64(_mm512_mul_epu32(keyed, prime), _mm512_slli_epi64(high, 32));
  }

  uint64_t digest(uint64_t seed) const {
    alignas(64) uint64_t lanes[kLanes64];
    _mm512_store_si512(lanes, value_);
    for (const uint64_t lane : lanes) seed = mix(seed * kGolden + lane);
    return seed;
  }

 private:
  static __m512i load(const void* source) { return _mm512_loadu_si512(source); }

  __m512i value_;
};

#elif defined(__AVX2__)

class Accumulators {
 public:
  explicit Accumulators(uint64_t seed) {
    alignas(32) uint64_t start[kLanes64];
    for (uint64_t i = 0; i < kLanes64; ++i) start[i] = mix(seed + i * kGolden);
    for (int half = 0; half < 2; ++half) value_[half] = load(start + 4 * half);
  }

  void stripe(const uint8_t* data, const uint64_t* keys) {
    for (int half = 0; half < 2; ++half) {
      const __m256i word = load(data + 32 * half), keyed = _mm256_xor_si256(word, load(keys + 4 * half));
      const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
      const __m256i neighbour = _mm256_shuffle_epi32(word, _MM_SHUFFLE(1, 0, 3, 2));
      value_[half] = _mm256_add_epi64(value_[half], _mm256_add_epi64(product, neighbour));
    }
  }

  void scramble(const uint64_t* keys) {
    const __m256i prime = _mm256_set1_epi64x(static_cast<int64_t>(kPrime32));
    for (int half = 0; half < 2; ++half) {
      const __m256i folded = _mm256_xor_si256(value_[half], _mm256_srli_epi64(value_[half], 47));
      const __m256i keyed = _mm256_xor_si256(folded, load(keys + 4 * half));
      const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(keyed, 32), prime);
      value_[half] = _mm256_add_epi64(_mm256_mul_epu32(keyed, prime), _mm256_slli_epi64(high, 32));
    }
  }

  uint64_t digest(uint64_t seed) const {
    alignas(32) uint64_t lanes[kLanes64];
    for (int half = 0; half < 2; ++half) _mm256_store_si256(reinterpret_cast<__m256i*>(lanes) + half, value_[half]);
    for (const uint64_t lane : lanes) seed = mix(seed * kGolden + lane);
    return seed;
  }

 private:
  static __m256i load(const void* source) { return _mm256_loadu_si256(static_cast<const __m256i*>(source)); }

  __m256i value_[2];
};

#else

class Accumulators {
 public:
  explicit Accumulators(uint64_t seed) {
    for (uint64_t i = 0; i < kLanes64; ++i) value_[i] = mix(seed + i * kGolden);
  }

  void stripe(const uint8_t* data, const uint64_t* keys) {
    uint64_t words[kLanes64];
    std::memcpy(words, data, sizeof(words));
    for (int i = 0; i < kLanes64; ++i) {
      const uint64_t keyed = words[i] ^ keys[i];
      value_[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32) + words[i ^ 1];
    }
  }

  void scramble(const uint64_t* keys) {
    for (int i = 0; i < kLanes64; ++i) value_[i] = (value_[i] ^ (value_[i] >> 47) ^ keys[i]) * kPrime32;
  }

  uint64_t digest(uint64_t seed) const {
    for (const uint64_t lane : value_) seed = mix(seed * kGolden + lane);
    return seed;
  }

 private:
  uint64_t value_[kLanes64];
};

#endif

// Of at most one block. Memory is asked for a chunk ahead, half as fast again on what the caches' own guesses miss.
uint64_t block(const uint8_t* data, int64_t size, uint64_t seed) {
  Accumulators sums(seed);
  for (; size >= kChunk; data += kChunk, size -= kChunk) {
    for (int64_t s = 0; s < kStripes; ++s) {
      __builtin_prefetch(data + s * kStripe + kChunk);
      sums.stripe(data + s * kStripe, kKeys.data() + s);
    }
    sums.scramble(kKeys.data() + kStripes + kLanes64);
  }
  int64_t s = 0;
  for (; size >= kStripe; data += kStripe, size -= kStripe) sums.stripe(data, kKeys.data() + s++);
  if (size > 0) {  // the array's size is in the seed: zeros behind its end are not mistaken for its own
    uint8_t rest[kStripe] = {};
    std::memcpy(rest, data, static_cast<size_t>(size));
    sums.stripe(rest, kKeys.data() + s);
  }
  sums.scramble(kKeys.data() + kStripes + kLanes64);
  return sums.digest(seed);
}

uint64_t array(const uint8_t* data, int64_t size, uint64_t seed) {
  seed = mix(seed + kGolden * static_cast<uint64_t>(size + 1));
  const int64_t blocks = (size + kBlock - 1) / kBlock;
  std::atomic<uint64_t> total{seed};
  parallel_for(blocks, kGrain, [&](int64_t begin, int64_t end) {
    uint64_t sum = 0;
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kBlock;
      sum += block(data + first, std::min(kBlock, size - first), mix(seed + kGolden * static_cast<uint64_t>(b)));
    }
    total.fetch_add(sum, std::memory_order_relaxed);
  });
  return mix(total.load());
}

// The fingerprint goes to result; unused arrays have the size 0 and follow those in use.
void fingerprint(uint64_t* result, int64_t seed, const uint8_t* first, int64_t first_size, const uint8_t* second,
                 int64_t second_size, const uint8_t* third, int64_t third_size, const uint8_t* fourth,
                 int64_t fourth_size) {
  uint64_t value = static_cast<uint64_t>(seed);
  value = array(first, first_size, value);
  value = array(second, second_size, value);
  value = array(third, third_size, value);
  *result = array(fourth, fourth_size, value);
}

}  // namespace

FASTLIP_KERNEL(fingerprint, fingerprint);

}  // namespace fastlip::fingerprint

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

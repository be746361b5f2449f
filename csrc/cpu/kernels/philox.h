// Random words without a state: Philox 4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011. A word depends on its key and its counter alone, so
// that any thread may draw it, in any order, and the backward pass draws it again.
#pragma once
#include "cpu/kernels/config.h"

namespace fastrnn::cpu {
namespace {

// Units of one row in groups of 64: four blocks' words of 16 counters that follow each other.
// Word w of counter 16 * group + lane belongs to unit 64 * group + 16 * w + lane, so that words
// lie in the order of units however wide a vector is.
constexpr int64_t kPhiloxLanes = 16;
constexpr int64_t kPhiloxGroup = 4 * kPhiloxLanes;

struct PhiloxKey {
  uint32_t low, high;
};

// 16 bits decide: those below this do what has the probability `rate`, met to within 2^-17.
FASTRNN_INLINE uint32_t philox_threshold(double rate) {
  return static_cast<uint32_t>(rate * 65536 + 0.5);
}

// words: `groups` times kPhiloxGroup; the counter is (unit's counter, c1, c2, c3).
FASTRNN_NOINLINE void philox_row(PhiloxKey key, uint32_t c1, uint32_t c2, uint32_t c3,
                                 int64_t groups, uint32_t* words) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  constexpr int kRounds = 10;
  for (int64_t group = 0; group < groups; ++group, words += kPhiloxGroup) {
    uint32_t x0[kPhiloxLanes], x1[kPhiloxLanes], x2[kPhiloxLanes], x3[kPhiloxLanes];
    for (int i = 0; i < kPhiloxLanes; ++i) {
      x0[i] = static_cast<uint32_t>(group * kPhiloxLanes + i);
      x1[i] = c1;
      x2[i] = c2;
      x3[i] = c3;
    }
    uint32_t k0 = key.low, k1 = key.high;
    for (int round = 0; round < kRounds; ++round, k0 += kWeyl0, k1 += kWeyl1) {
      for (int i = 0; i < kPhiloxLanes; ++i) {
        const uint64_t a = kMultiplier0 * x0[i], b = kMultiplier1 * x2[i];
        x0[i] = static_cast<uint32_t>(b >> 32) ^ x1[i] ^ k0;
        x1[i] = static_cast<uint32_t>(b);
        x2[i] = static_cast<uint32_t>(a >> 32) ^ x3[i] ^ k1;
        x3[i] = static_cast<uint32_t>(a);
      }
    }
    for (int i = 0; i < kPhiloxLanes; ++i) {
      words[i] = x0[i];
      words[kPhiloxLanes + i] = x1[i];
      words[2 * kPhiloxLanes + i] = x2[i];
      words[3 * kPhiloxLanes + i] = x3[i];
    }
  }
}

}  // namespace
}  // namespace fastrnn::cpu

// Storage types of the kernels and the type each computes in.
#pragma once
#include <cstdint>

namespace fastrnn::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

}  // namespace fastrnn::cpu

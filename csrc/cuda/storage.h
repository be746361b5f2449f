// Values as they lie in memory. 16-bit types are their bits alone; float and
// double are themselves. Arithmetic is in Compute<T>.
#pragma once
#include <cstdint>

namespace fastrnn::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// 16 bytes, the widest access there is.
struct alignas(16) Words {
  uint32_t w[4];
};

// Whom a wait for another block tells that it has run out: a word that the host reads too, and what
// is left there.
struct Watch {
  uint32_t* note;
  uint32_t code;
};

}  // namespace fastrnn::cuda

#include "cpu/kernels/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw")
#include "cpu/kernels/vec_avx2.h"
#include "cpu/kernels/table.h"
#pragma GCC pop_options

namespace fastrnn::cpu {
extern const Kernels kAvx2Float;
const Kernels kAvx2Float = make_kernels<float>();
}  // namespace fastrnn::cpu
#endif

#include "cpu/kernels/base.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,prfchw,avx512f,avx512bw,avx512dq,avx512vl")
#include "cpu/kernels/vec_avx512.h"
#include "cpu/kernels/table.h"
#pragma GCC pop_options

namespace fastrnn::cpu {
extern const Kernels kAvx512Double;
const Kernels kAvx512Double = make_kernels<double>();
}  // namespace fastrnn::cpu
#endif

#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cpu/kernels/table.h"

namespace fastrnn::cpu {
extern const Kernels kGenericBf16;
const Kernels kGenericBf16 = make_kernels<BFloat16>();
}  // namespace fastrnn::cpu

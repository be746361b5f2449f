#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cpu/kernels/table.h"

namespace fastrnn::cpu {
extern const Kernels kGenericDouble;
const Kernels kGenericDouble = make_kernels<double>();
}  // namespace fastrnn::cpu

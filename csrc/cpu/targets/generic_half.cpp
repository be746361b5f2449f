#include "cpu/kernels/base.h"
#include "cpu/kernels/vec_generic.h"
#include "cpu/kernels/table.h"

namespace fastrnn::cpu {
extern const Kernels kGenericHalf;
const Kernels kGenericHalf = make_kernels<Half>();
}  // namespace fastrnn::cpu

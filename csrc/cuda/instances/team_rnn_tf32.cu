#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnTanhTf32 = team_table_of<cells::RnnTanh, Numeric::kTf32>();
const TeamTable kTeamRnnReluTf32 = team_table_of<cells::RnnRelu, Numeric::kTf32>();

}  // namespace fastrnn::cuda

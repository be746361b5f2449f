#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnTanhBFloat16 = team_table_of<cells::RnnTanh, Numeric::kBFloat16>();
const TeamTable kTeamRnnReluBFloat16 = team_table_of<cells::RnnRelu, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda

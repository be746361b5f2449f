#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnTanhHalf = team_table_of<cells::RnnTanh, Numeric::kHalf>();
const TeamTable kTeamRnnReluHalf = team_table_of<cells::RnnRelu, Numeric::kHalf>();

}  // namespace fastrnn::cuda

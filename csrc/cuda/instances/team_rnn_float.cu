#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnTanhFloat = team_table_of<cells::RnnTanh, Numeric::kFloat>();
const TeamTable kTeamRnnReluFloat = team_table_of<cells::RnnRelu, Numeric::kFloat>();

}  // namespace fastrnn::cuda

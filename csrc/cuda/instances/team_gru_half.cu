#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamGruHalf = team_table_of<cells::Gru, Numeric::kHalf>();

}  // namespace fastrnn::cuda

#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamGruBFloat16 = team_table_of<cells::Gru, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda

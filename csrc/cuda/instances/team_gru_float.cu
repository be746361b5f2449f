#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamGruFloat = team_table_of<cells::Gru, Numeric::kFloat>();

}  // namespace fastrnn::cuda

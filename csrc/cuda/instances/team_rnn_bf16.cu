#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnBFloat16 = team_table_of<Rnn, Numeric::kBFloat16>();

}  // namespace fastrnn::cuda

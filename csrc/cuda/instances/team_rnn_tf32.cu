#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnTf32 = team_table_of<Rnn, Numeric::kTf32>();

}  // namespace fastrnn::cuda

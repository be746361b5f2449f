#include "cuda/kernels/team_table.h"

namespace fastrnn::cuda {

const TeamTable kTeamRnnFloat = team_table_of<Rnn, Numeric::kFloat>();

}  // namespace fastrnn::cuda

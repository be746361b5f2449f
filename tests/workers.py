"""What the two processes of test_distributed.py do. Each leaves its results in a file."""

import datetime

import torch
from torch import distributed, nn
from torch.distributed.checkpoint import state_dict as full_state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastrnn

WORLD = 2


class Network(nn.Module):
    """Layers with projection and both directions, a shared layer, and a cell."""

    def __init__(self, library):
        super().__init__()
        self.lstm = library.LSTM(3, 4, 2, bidirectional=True, proj_size=3)
        self.gru = library.GRU(6, 6)
        self.cell = library.RNNCell(6, 2)

    def forward(self, x):
        y, _ = self.gru(self.gru(self.lstm(x)[0])[0])
        return self.cell(y[-1])


def network(library=fastrnn):
    torch.manual_seed(5)
    return Network(library).double()


def batches():
    """Three batches of 4 sequences; each process trains on every second sequence."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(3, 5, 4, 3, generator=generator, dtype=torch.float64)


def train(model, rank=None):
    """Three steps of Adam; the gradients of the first and the parameters of the last step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    first = None
    for x in batches():
        optimizer.zero_grad()
        mine = x if rank is None else x[:, rank::WORLD]
        (model(mine) - 0.3).square().mean().backward()
        if first is None:
            first = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return first


def data_parallel(rank):
    model = DistributedDataParallel(network())
    gradients = train(model, rank)
    return {"gradients": gradients, "state": model.module.state_dict()}


def fully_sharded(rank, folder):
    model, mesh = network(), init_device_mesh("cpu", (WORLD,))
    for module in (model.lstm, model.cell, model):
        fully_shard(module, mesh=mesh)
    assert isinstance(model.lstm, FSDPModule) and isinstance(model.lstm, fastrnn.LSTM)
    gradients = {name: g.full_tensor() for name, g in train(model, rank).items()}
    distributed.checkpoint.save({"model": model.state_dict()}, checkpoint_id=folder / "sharded")
    fresh = network()
    loaded = {"model": fresh.state_dict()}
    distributed.checkpoint.load(loaded, checkpoint_id=folder / "sharded")
    options = full_state.StateDictOptions(full_state_dict=True)
    state = full_state.get_model_state_dict(model, options=options)
    return {"gradients": gradients, "state": state, "loaded": loaded["model"]}


def hogwild(shared, rank):
    """Both processes train the one model in shared memory, without locks."""
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.2)
    x = torch.full((5, 4, 3), 0.5)
    for _ in range(40):
        optimizer.zero_grad()
        (shared(x)[0] - 0.3).square().mean().backward()
        optimizer.step()
    return {"pointers": [p.is_shared() for p in shared.parameters()]}


def main(rank, folder, shared):
    """The entry of a process."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=100),
    )  # fmt: skip
    results = {
        "data_parallel": data_parallel(rank),
        "fully_sharded": fully_sharded(rank, folder),
        "hogwild": hogwild(shared, rank),
    }
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()

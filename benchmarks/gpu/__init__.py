"""All that a few minutes on a GPU are for, in one command: ``python -m benchmarks.gpu --help``.

__main__.py     arguments, and the order of the stages
plan.py         the stages: what each runs, for how long, and when it is left out
stages.py       children in process groups of their own, the results folder; no torch
rows.py         results as JSON lines; no torch
cells.py        what is timed: the list of cells, in order of importance; no torch
environment.py  versions, and whether the extension loads
smoke.py        every regime on small layers
sample.py       a pytest plugin: the telling tests first, then a sample of the others
outcomes.py     a pytest plugin: failures as rows
core.py         times of one contestant: torch.nn, a regime, what the plan chooses, a peer
peers.py        Haste and FlashRNN, where they are installed
calibrate.py    step costs of one regime
profile.py      what ncu watches, and the names of kernels
training.py     the demo's language model, trained by both
measure.py      what these share: devices, layers and their data, errors, times
table.py        the summary, from the rows; no torch
prims.cu        exchanges and fences of the GPU alone, in cycles
bundle.sh       packs what a machine without compilers needs; run.sh starts it there
"""

"""Benchmarks of fastrnn beside torch.nn: ``python -m benchmarks --help``.

cases.py    what is measured: sizes, flop counts, pairs of layers with equal weights
checks.py   the numerical check that every row must pass before it is shown
timing.py   interleaved timing and its statistics
suites.py   one function per suite, each yields rows
peers.py    ONNX Runtime and OpenVINO, optional
derivatives.py  second derivatives, forward mode, vmap: python -m benchmarks.derivatives
builds.py   two builds of fastrnn side by side: ``python -m benchmarks.builds OLD``
build_worker.py  one of them, in a process of its own
memory.py   peak memory of one layer, measured in a fresh process
probes.py   what one can do with a layer: a function per capability, tried on both libraries
capabilities.py  `python -m benchmarks.capabilities`: the table of the probes
features.py      `python -m benchmarks.features`: every feature of every kind of layer
report.py   tables, the summary, the environment, JSON
plot.py     PNG plots (needs matplotlib)
gpu/        all that a few minutes on a GPU are for: ``python -m benchmarks.gpu --help``
step_costs.py   what a step costs in each regime of the CUDA engine, as a header
progress.py a progress bar on stderr
"""

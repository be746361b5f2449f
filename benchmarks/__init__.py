"""Benchmarks of fastrnn beside torch.nn: ``python -m benchmarks --help``.

builds.py, build_worker.py  two builds side by side: ``python -m benchmarks.builds OLD``
bounds.py         how near results are to what their machine could do at best
variants.py, options.py, checkpointing.py, derivatives.py  what those cost
capabilities.py, features.py  the tables of docs/capabilities.md and docs/features.md
gpu/              all that a few minutes on a GPU are for: ``python -m benchmarks.gpu --help``

lib/              what the commands share; imports none of them
    cases.py      what is measured: sizes, flop counts, pairs of layers with equal weights
    checks.py     the numerical check that every row must pass before it is shown
    timing.py     interleaved timing and its statistics
    jobs.py, suites.py, steps.py  one function per suite, each yields rows
    probes.py     what one can do with a layer: a function per capability
    trials.py     one trial, and the tables that hold them
    peers.py      ONNX Runtime and OpenVINO, optional
    memory.py     peak memory of one layer, measured in a fresh process
    report.py     tables, the summary, the environment, JSON
    plot.py       PNG plots (needs matplotlib)
    progress.py   a progress bar on stderr
tools/            what writes sources: step_costs.py, the CUDA engine's costs of a step, as a header
results/          what was measured
"""

"""One model of time: work as it is counted, a host as it was measured, and from both how long steps take.

Below scheduler, executors and benchmarks, which all stand on it; no torch. `work` counts operations and bytes,
`profile` is a host's rates, `times` are a layout's measured step times and `engine_times` all of an engine's,
`estimate` makes such times from rates where there is nothing to measure, `balance` makes a pipeline's steps alike.
"""

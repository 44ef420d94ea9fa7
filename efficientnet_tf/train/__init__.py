"""Training: where it runs, the optimizer, the loop, and what a run leaves behind.

`run.train(config, workdir)` is the whole of it; `loop` holds the compiled steps, which are the same
on one device, on several and (by design, untested) on TPUs.
"""

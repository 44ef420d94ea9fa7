"""Networks found by training many for a short time: V2's search, and V1's compound scaling.

`nas` chooses a kind of block, layers, kernel and expansion for each stage, by accuracy, step time
and parameters (V2 Sec. 3.3). `compound` finds how depth, width and resolution are scaled together
(V1 Sec. 3.3). Both train by `trial.run`, which is `train.run.train` in a folder of its own, and go
on where they were killed.
"""

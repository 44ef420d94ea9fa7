"""Published weights: which there are, how to get them, and how to read every format.

`registry` lists the checkpoints as records, `fetch` downloads and verifies them, `load` reads any
of the formats (`official`, `keras_h5`, `pytorch`) strictly and puts the arrays into a model.
Arrays travel as `{"layer/variable": array}` in Keras' layouts, for example
`"block1a_dwconv/kernel"` of shape (3, 3, 32, 1).
"""

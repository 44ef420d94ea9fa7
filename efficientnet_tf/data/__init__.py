"""Pictures on their way into a network: reading, decoding, cropping and resizing.

`images` turns encoded pictures into what a set of weights expects (see
`efficientnet_tf.preprocessing`). `imagenet_classes.tsv` lists the 1000 ImageNet classes in
index order, `wnid<TAB>name`; `efficientnet_tf.labels` reads it.
"""

"""Export: a SavedModel, a TFLite file made from it, and the proof that both answer alike.

`artifacts.export` makes and checks all of them, and puts nothing in place that fails.
"""

"""EfficientNet for Keras 3 on TensorFlow: every published network, weights and recipe."""

"""Where in a picture the evidence for a class is: class activation maps and their overlays.

from efficientnet_tf import cam

maps = cam.cam(model, pictures)                                  # (batch, h, w) in [0, 1]
maps = cam.cam(model, pictures, 281, "block5a_expand_activation", "gradcam++")
shown = cam.overlay(picture, maps[0], preprocessing)             # uint8, the picture's size
"""

from efficientnet_tf.cam.maps import METHODS, cam, layers
from efficientnet_tf.cam.overlay import covered, overlay, placed

__all__ = ["METHODS", "cam", "covered", "layers", "overlay", "placed"]

"""Pictures for people: class activation maps, augmentation, the papers' figures, training.

Each function gives a matplotlib `Figure`, which `drawing.save` writes.
"""

"""Training of image backbones on labelled pictures."""

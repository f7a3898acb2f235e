"""Sound: read, cut into clips, split by speaker, augmented and turned into log-mel features."""

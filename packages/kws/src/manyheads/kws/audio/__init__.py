"""Audio: reading files, clips, split by speaker, augmentation and log-mel features."""

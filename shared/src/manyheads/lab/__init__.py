"""The lab: describe, train, save, resume and report experiments; data sets; the command line."""

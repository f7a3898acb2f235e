"""Pictures: labelled sets of them, from scikit-learn or from a folder."""

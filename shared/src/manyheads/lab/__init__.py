"""How every experiment is described, run, saved, resumed and reported."""
